"""The sandbox spec: image, command, limits and security of a job, and how it is delivered.

Construction raises pydantic's ``ValidationError`` with every fault at once. `sandfleet_config.wire`
makes of it ``SpecInvalid`` or ``SecurityViolation``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from sandfleet_config.after import AfterSpec
from sandfleet_config.bounds import (
    MAX_COMMAND_ITEMS,
    MAX_NAME_CHARS,
    MAX_PATH_BYTES,
    MIN_CPU_QUOTA,
    MIN_DISK_BYTES,
    MIN_MEMORY_BYTES,
    MIN_TIMEOUT_SECONDS,
    check_arguments,
    least,
    refuse_longer,
)
from sandfleet_config.codes import Category, ErrorCode
from sandfleet_config.fields import (
    SECURITY_VIOLATION,
    Bytes,
    ContractModel,
    Env,
    Labels,
    Name,
    PreparationName,
    RetriedCodes,
    Seconds,
    Text,
    Texts,
    check_image,
    refuse_control_characters,
)
from sandfleet_config.files import Artifacts, Datasets, Files
from sandfleet_config.files import Payload as Payload  # noqa: PLC0414  users import it from here
from sandfleet_config.redaction import hide_secrets, join_words
from sandfleet_config.retry_with import RetrySpec, check_raise

DEFAULT_TIMEOUT_SECONDS = 30.0
DEFAULT_GRACE_SECONDS = 5.0
DEFAULT_OUTPUT_BYTES = 64 * 1024
DEFAULT_PRIORITY = 6
LAST_PRIORITY = 9
DEFAULT_QUEUE_TTL_SECONDS = 86400.0
MAX_QUEUE_TTL_SECONDS = 7 * 86400.0
DEFAULT_ATTEMPTS = 3
MAX_ATTEMPTS = 20
MAX_KEY_CHARS = 256
RETRIED_CODES = tuple(code for code in ErrorCode if code.category is Category.HOST)


_hide_secrets: Final = lru_cache(maxsize=4)(hide_secrets)
"""Remembers few, since a command may be long: jobs that differ in labels or files have the same one."""


class ResourceSpec(ContractModel):
    """Limits of one job.

    Zero is the host's ceiling; more than the ceiling is refused, never lowered silently.
    """

    memory_bytes: Annotated[Bytes, least("memory_bytes", MIN_MEMORY_BYTES)] = Field(
        default=0, description="Memory of the whole sandbox; files on tmpfs count. Takes `256MiB`."
    )
    cpu_quota: Annotated[int, Field(ge=0, le=1 << 40), least("cpu_quota", MIN_CPU_QUOTA)] = Field(
        default=0, description="Microseconds of CPU in each 100 ms; 50000 is half a core."
    )
    pids_limit: int = Field(
        default=0, ge=0, le=1 << 22, description="Processes and threads at once; past it fork fails (EAGAIN)."
    )
    disk_bytes: Annotated[Bytes, least("disk_bytes", MIN_DISK_BYTES)] = Field(
        default=0, description="Bytes in all writable folders together; they count as memory too."
    )


class SecuritySpec(ContractModel):
    """User, root filesystem, network and privileges of the sandbox.

    The host's policy outranks it.
    """

    user: Name = Field(
        default="", description="`name`, `uid`, `name:group` or `uid:gid`; empty is the image's own if not root."
    )
    read_only_rootfs: bool = Field(default=True, description="/tmp and HOME are writable all the same.")  # noqa: S108  the sandbox's own
    network_mode: Literal["none", "sandbox"] = Field(default="none", description="`host` is a violation.")
    seccomp_profile: Name = Field(default="", description="A profile of the host's policy; no host lists one yet.")
    privileged: bool = Field(default=False, description="Always a violation when true.")

    @field_validator("network_mode", mode="before")
    @classmethod
    def _refuse_host_network(cls, value: object) -> object:
        if value == "host":
            msg = "host network not allowed"
            raise PydanticCustomError(SECURITY_VIOLATION, msg)
        return value or "none"

    @field_validator("privileged")
    @classmethod
    def _refuse_privileged(cls, value: bool) -> bool:  # noqa: FBT001  the field is one
        if value:
            msg = "privileged sandboxes are not allowed"
            raise PydanticCustomError(SECURITY_VIOLATION, msg)
        return value


class OutputSpec(ContractModel):
    """How much of stdout and of stderr is kept. Both are always read to their end and counted."""

    max_bytes: Bytes = Field(
        default=DEFAULT_OUTPUT_BYTES, description="Kept bytes a stream; zero is the host's ceiling."
    )
    keep: Literal["head", "tail", "both"] = Field(
        default="head", description="`both` joins head and tail with a marker line."
    )
    on_limit: Literal["truncate", "kill"] = "truncate"
    store: bool = Field(
        default=False, description="Keep a stream that goes past `max_bytes` whole in the store, to the host's ceiling."
    )
    live: bool = Field(
        default=False, description="Show the output while the job runs: its newest MiB, 10 chunks a second at most."
    )


DELIVERY_FIELDS: Final = ("idempotency_key", "priority", "queue_ttl", "max_attempts", "retry_on")
"""Fields of contract version 2: how a job is delivered.

`requires` (version 3) says on which hosts it may run.
"""
STORED_FIELDS: Final = ("files", "datasets", "artifacts")
"""Fields of contract version 4; so are an image by reference, `stdin.sha256` and `output.store`."""
BATCH_FIELDS: Final = ("after", "retry_with")
"""Fields of contract version 5; so is `output.live`.

They are about delivery, too: `fingerprint.spec_sha256` does not count them.
"""


class SandboxSpec(ContractModel):
    """One job: an image, a command and its limits.

    `timeout` and `grace` are seconds. At `timeout` the program gets SIGTERM; `grace` later the
    sandbox is killed. Both clocks start when the program has started. Paths are inside the image.
    The last fields (`DELIVERY_FIELDS` and `BATCH_FIELDS`) say how the job is delivered;
    `fingerprint.spec_sha256` does not count them.
    """

    image: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS), AfterValidator(check_image)]
    command: Annotated[Texts, Field(max_length=MAX_COMMAND_ITEMS)] = ()
    working_dir: Text = ""
    env: Env = Field(default=(), description="`KEY=VALUE` strings; a mapping is taken too.")
    resources: ResourceSpec = ResourceSpec()
    security: SecuritySpec = SecuritySpec()
    platform: Name = ""
    runsc_path: Name = ""
    root_dir: Name = ""
    timeout: Annotated[Seconds, least("timeout", MIN_TIMEOUT_SECONDS)] = 0.0
    labels: Labels = Field(default_factory=dict)
    requires: Labels = Field(
        default_factory=dict,
        description="Labels that the job's host must have: its own (`SANDFLEET_HOST_LABELS`), `arch` and `runsc`.",
    )
    stdin: Payload = Payload()
    files: Files = Field(default=(), description="Files that the program finds; see below.")
    datasets: Datasets = Field(default=(), description="Read-only folders under `/data` that jobs share; see below.")
    artifacts: Artifacts = Field(default=(), description="Files to collect after the end; see below.")
    grace: Seconds = DEFAULT_GRACE_SECONDS
    prepared: PreparationName | None = Field(
        default=None,
        description="A preparation of the image's hosts: the job starts in a Python that has done its imports, if one is"
        " ready and the command fits. `off`: never; null: as the host does by default.",
    )
    output: OutputSpec = OutputSpec()
    idempotency_key: Annotated[str, Field(max_length=MAX_KEY_CHARS), AfterValidator(refuse_control_characters)] = Field(
        default="", description="The same key and spec are the same job, as long as its outcome is kept; empty is none."
    )
    priority: int = Field(default=DEFAULT_PRIORITY, ge=0, le=LAST_PRIORITY, description="0 first; in steps 0, 3, 6, 9.")
    queue_ttl: float = Field(
        default=DEFAULT_QUEUE_TTL_SECONDS,
        gt=0,
        le=MAX_QUEUE_TTL_SECONDS,
        description="Seconds that the job may wait in the queue. Then it ends as `EXPIRED`. It cannot wait without an end.",
    )
    max_attempts: int = Field(
        default=DEFAULT_ATTEMPTS, ge=1, le=MAX_ATTEMPTS, description="Charged starts at most; 1 is one start."
    )
    retry_on: RetriedCodes = Field(
        default=RETRIED_CODES, description="Codes after which the job is tried again: the host category."
    )
    after: AfterSpec = AfterSpec()
    retry_with: RetrySpec = RetrySpec()

    @field_validator("retry_with")
    @classmethod
    def _check_retry(cls, value: RetrySpec, info: ValidationInfo) -> RetrySpec:
        known = info.data  # without the fields that are faulty, which are told themselves
        asked = {"max_attempts": known.get("max_attempts", 0)}
        if "resources" in known and "timeout" in known:
            asked["memory_bytes"] = known["resources"].memory_bytes
            asked["timeout"] = known["timeout"] or DEFAULT_TIMEOUT_SECONDS
            return check_raise(value, asked)
        return value

    @field_validator("command", mode="before")
    @classmethod
    def _refuse_string(cls, value: object) -> object:
        if isinstance(value, str):
            msg = "must be a list of strings, such as ['sh', '-c', '...']"
            raise PydanticCustomError("command_type", msg)
        return value

    @field_validator("command")
    @classmethod
    def _refuse_empty_program(cls, value: Sequence[str]) -> Sequence[str]:
        if value and not value[0]:
            msg = "the program's name must not be empty"
            raise PydanticCustomError("command_empty", msg)
        return value

    @field_validator("working_dir")
    @classmethod
    def _refuse_relative(cls, value: str) -> str:
        if value and not value.startswith("/"):
            msg = "must be an absolute path inside the image"
            raise PydanticCustomError("working_dir", msg)
        refuse_longer(value, MAX_PATH_BYTES, "a path can be no longer")
        return value

    @model_validator(mode="after")
    def _check_sum(self) -> Self:
        check_arguments((*self.command, *self.env))
        return self

    @property
    def timeout_seconds(self) -> float:
        """The soft limit in force, in seconds: 30 s, as in the seed, if the spec says 0."""
        return self.timeout or DEFAULT_TIMEOUT_SECONDS

    @property
    def longest_timeout_seconds(self) -> float:
        """The soft limit of its longest attempt, in seconds: see `retry_with`."""
        return max(self.timeout_seconds, self.retry_with.timeout)

    def raised(self, codes: Collection[ErrorCode | None]) -> SandboxSpec:
        """Return the spec of an attempt after ends with these codes.

        It has the limits that `retry_with` raises.
        """
        wish, changes = self.retry_with, dict[str, object]()
        if wish.memory_bytes > self.resources.memory_bytes and ErrorCode.OUT_OF_MEMORY in codes:
            changes["resources"] = self.resources.model_copy(update={"memory_bytes": wish.memory_bytes})
        if wish.timeout > self.timeout_seconds and ErrorCode.TIMEOUT in codes:
            changes["timeout"] = wish.timeout
        return self.model_copy(update=changes) if changes else self

    def to_line(self, width: int = 120, *, is_whole: bool = False) -> str:
        """Return one printable line for people: the label `name`, image and command.

        Env, stdin and output are never in it. The values of arguments that look secret are hidden,
        unless it `is_whole` (`SANDFLEET_SHOW_COMMANDS`).
        """
        name = self.labels.get("name", "")
        words = join_words(self.command) if is_whole else _hide_secrets(tuple(self.command))
        line = f"{name + ': ' if name else ''}{self.image} {words}".rstrip()
        return line if len(line) <= width else line[: width - 3] + "..."
