"""The settings of producers and workers, read from ``SANDFLEET_*``.

An unknown name is an error, not a silent default.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote, urlsplit, urlunsplit

from pydantic import BaseModel, BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sandfleet_config.bounds import MAX_LABELS
from sandfleet_config.fields import Bytes, LabelKey, LabelValue

# Users import the models from here.
from sandfleet_config.host_settings import LimitName as LimitName  # noqa: PLC0414
from sandfleet_config.host_settings import PolicySettings as PolicySettings  # noqa: PLC0414
from sandfleet_config.host_settings import RunscSettings as RunscSettings  # noqa: PLC0414
from sandfleet_config.host_settings import WarmSettings as WarmSettings  # noqa: PLC0414
from sandfleet_config.image_settings import ImagesSettings as ImagesSettings  # noqa: PLC0414
from sandfleet_config.metrics_settings import MetricsSettings
from sandfleet_config.prepared_settings import PreparedSettings
from sandfleet_config.processes import Processes, count_processes
from sandfleet_config.queues import DEFAULT_QUEUE, HOST_NAME, check_queue
from sandfleet_config.redis_settings import RedisSettings
from sandfleet_config.redis_url import SENTINEL_SCHEMES, SentinelUrl, is_sentinel, parse_sentinel_url
from sandfleet_config.section import NameList, Section, split_list
from sandfleet_config.store_settings import REDIS_URL, FilesSettings, StoreSettings
from sandfleet_config.traces_settings import TracesSettings
from sandfleet_config.wire import MAX_SPEC_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

PREFIX = "SANDFLEET_"
NESTED = "__"
REDIS_SCHEMES = ("redis", "rediss", "unix", *SENTINEL_SCHEMES)
LOCAL_STORE = "store"
"""In `local_dir`, the store of `sandfleet-worker local`: a link to where the objects are."""
LOCAL_HISTORY = "history.db"
"""In `local_dir`, the history of `sandfleet-worker local`."""
FOUND_LABELS = ("arch", "runsc")
"""Labels that each host has by itself: `uname -m`, and the release of runsc as yyyymmdd."""
DERIVED = {
    "SANDFLEET_CONCURRENCY": "the host's cores",
    "SANDFLEET_WARM__SIZE": "the host's cores, twice",
    "SANDFLEET_HOST_LABELS": "",
}
"""Defaults that depend on the host, as the table of settings words them."""
_MODEL_CONFIG = SettingsConfigDict(
    env_prefix=PREFIX,
    env_nested_delimiter=NESTED,
    frozen=True,
    extra="forbid",
    populate_by_name=True,
    hide_input_in_errors=True,  # an input may be a secret
)


class SettingsInvalid(ValueError):
    """A variable of the environment or a settings argument is wrong.

    The message names every fault.
    """


class Settings(BaseSettings):
    """The settings that producers and workers share."""

    model_config = _MODEL_CONFIG

    redis_url: SecretStr = Field(
        default=SecretStr(""),
        description="Broker and result store: redis://, rediss://, unix://, or sentinel://HOST:26379,HOST2:26379/SERVICE/0"
        " (sentinels:// with TLS). Empty: the `local` stack, else 127.0.0.1:6379.",
    )
    redis: RedisSettings = RedisSettings()
    queue: str = Field(default=DEFAULT_QUEUE, min_length=1, description="The queue jobs go to.")
    result_ttl_seconds: int = Field(default=86400, gt=0, description="How long an outcome is kept.")
    max_spec_bytes: int = Field(default=MAX_SPEC_BYTES, gt=0, description="Largest encoded spec.")
    max_queued: int = Field(
        default=1_000_000,
        ge=0,
        description="Submit is refused (`QueueFull`) past so many jobs in a queue; 0 is no bound.",
    )
    memory_high_percent: int = Field(
        default=80,
        ge=0,
        le=100,
        description="Submit is refused (`QueueFull`) above this share of Redis's maxmemory; 0 is no bound.",
    )
    claim_memory_percent: int = Field(
        default=90,
        ge=0,
        le=100,
        description="Workers claim nothing above this share of Redis's maxmemory, so that what runs can end; 0 is no bound.",
    )
    local_dir: Path = Field(
        default=Path("/run/sandfleet/local"), description="Where `sandfleet-worker local` keeps its socket."
    )
    show_commands: Literal["redacted", "whole"] = Field(
        default="redacted",
        description="Command lines in records, lists, Flower and pages: `redacted` hides arguments that look secret.",
    )
    languages: str = Field(default="", description="A TOML file with languages: more of them, or other compilers.")
    store: StoreSettings = StoreSettings()
    traces: TracesSettings = TracesSettings()

    @field_validator("queue")
    @classmethod
    def _check_queue(cls, value: str) -> str:
        return check_queue(value)

    @field_validator("redis_url")
    @classmethod
    def _check_scheme(cls, value: SecretStr) -> SecretStr:
        raw = value.get_secret_value()
        if raw and raw.partition(":")[0] not in REDIS_SCHEMES:
            msg = f"must start with one of {', '.join(scheme + '://' for scheme in REDIS_SCHEMES)}"
            raise ValueError(msg)
        if is_sentinel(raw):
            parse_sentinel_url(raw)
        return value

    @property
    def shows_whole_commands(self) -> bool:
        """Whether command lines are shown with arguments that look secret."""
        return self.show_commands == "whole"

    @property
    def redis_dsn(self) -> str:
        """The Redis URL in force, as redis-py spells it (``unix:///path?db=0`` for a socket).

        It may hold a password.
        """
        given = self.redis_url.get_secret_value()
        if given:
            return given
        socket = self.local_dir / "redis.sock"
        return f"unix://{socket}?db=0" if socket.exists() else "redis://127.0.0.1:6379/0"

    @property
    def sentinels(self) -> SentinelUrl | None:
        """The sentinels that know where Redis is; None where its address is set."""
        return parse_sentinel_url(self.redis_dsn) if is_sentinel(self.redis_dsn) else None

    @property
    def replicas(self) -> int:
        """How many replicas must have a job before its submit returns; 0: none."""
        known = self.redis.replicas
        return int(is_sentinel(self.redis_dsn)) if known is None else known

    @property
    def store_url(self) -> str:
        """The URL of the store in force."""
        if self.store.url:
            return self.store.url
        folder = self.local_dir / LOCAL_STORE
        return f"file://{quote(str(folder))}" if self.is_local and folder.exists() else REDIS_URL

    @property
    def is_local(self) -> bool:
        """Whether the Redis in force is that of `sandfleet-worker local`."""
        return self.redis_dsn.startswith(f"unix://{self.local_dir}/redis.sock")

    @property
    def redis_address(self) -> str:
        """The Redis URL without user and password, for messages."""
        if self.sentinels:
            return self.sentinels.address
        parts = urlsplit(self.redis_dsn)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


class HostSettings(BaseSettings):
    """The settings of a host that runs sandboxes; `RunscRunner` needs no others."""

    model_config = _MODEL_CONFIG

    runsc: RunscSettings = RunscSettings()
    images: ImagesSettings = ImagesSettings()
    warm: WarmSettings = Field(default_factory=WarmSettings)
    prepared: PreparedSettings = PreparedSettings()
    policy: PolicySettings = PolicySettings()
    files: FilesSettings = FilesSettings()
    allow_unenforced: Annotated[frozenset[LimitName], NoDecode, BeforeValidator(split_list)] = Field(
        default=frozenset(),
        description="Limits that may go unenforced where the host cannot hold them: any of memory,cpu,pids,disk.",
    )


class WorkerSettings(Settings, HostSettings):
    """The settings of a worker."""

    host: str = Field(
        default="",
        description="The host's name in the fleet, one for all its workers; in Kubernetes the node's. Empty: its hostname.",
    )
    concurrency: int = Field(
        default_factory=lambda: os.cpu_count() or 1,
        gt=0,
        le=4096,
        description="Sandboxes at once on this host, all its workers together.",
    )
    processes: Processes = Field(
        default=1,
        description="Worker processes of `start`, which share the host's slots and the spares; `auto`: one for each 12 cores.",
    )
    waiting_jobs: int = Field(
        default=8, ge=0, le=4096, description="More jobs that wait for an image, or for the store."
    )
    memory_budget_bytes: Bytes = Field(
        default=0,
        description="Memory that the jobs of this host may use together, by their limits; 0: found, less than the host has.",
    )
    host_labels: Annotated[dict[LabelKey, LabelValue], NoDecode] = Field(
        default_factory=dict,
        max_length=MAX_LABELS,
        description="What a job may require of this host (`requires`): key=value, separated by commas.",
    )
    slots_dir: Path = Field(
        default=Path("/run/sandfleet/slots"), description="Lock files that the workers of a host share."
    )
    queues: NameList = Field(
        default=("*",), description="Other queues to take jobs from, in turn with `queue`: glob patterns."
    )
    lease_seconds: float = Field(
        default=6.0, ge=1, le=300, description="A worker that is silent for so long is dead: its jobs run elsewhere."
    )
    drain_seconds: float = Field(
        default=30.0, ge=0, description="How long running jobs may go on after SIGTERM; then they go back to the queue."
    )
    local_state_dir: Path = Field(
        default=Path("/var/lib/sandfleet/local"), description="Where `sandfleet-worker local` keeps its Redis' data."
    )
    metrics: MetricsSettings = MetricsSettings()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="The worker's log level."
    )
    log_format: Literal["line", "json"] = Field(
        default="line", description="How logs are written: a line for people, or one JSON object a line (ECS)."
    )

    @property
    def host_name(self) -> str:
        """The name of this host: in slots, attempts, `avoid`, boots, marks and statuses."""
        return self.host or socket.gethostname()

    @property
    def process_count(self) -> int:
        """How many processes `processes` means on this host."""
        return count_processes(self.processes, self.concurrency)

    @field_validator("host")
    @classmethod
    def _check_host(cls, value: str) -> str:
        if value and not HOST_NAME.match(value):
            msg = "must be 1 to 253 of A-Z a-z 0-9 . _ - and start with a letter or a digit"
            raise ValueError(msg)
        return value

    @field_validator("host_labels", mode="before")
    @classmethod
    def _split_labels(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        parts = [part.strip() for part in value.split(",") if part.strip()]
        if any("=" not in part for part in parts):
            msg = "must be key=value, separated by commas"
            raise ValueError(msg)
        return dict(part.split("=", 1) for part in parts)

    @field_validator("host_labels")
    @classmethod
    def _refuse_found_labels(cls, value: dict[str, str]) -> dict[str, str]:
        if taken := [key for key in FOUND_LABELS if key in value]:
            msg = f"{' and '.join(taken)} cannot be set: the worker finds out itself"
            raise ValueError(msg)
        return value


def setting_names(
    model: type[BaseModel] = WorkerSettings, prefix: str = PREFIX
) -> Iterator[tuple[str, str, object, str]]:
    """Yield (variable, type, default, description) of each setting, nested sections included."""
    for name, field in model.model_fields.items():
        key = f"{prefix}{name}".upper()
        section: Any = field.annotation
        if section in Section.__subclasses__():
            yield from setting_names(section, f"{key}{NESTED}")
        else:
            shown = DERIVED[key] if field.default_factory else field.default
            yield key, str(section), shown, field.description or ""
