"""The outcome, the one record of how an accepted job ended; and the seed's plain result."""

from __future__ import annotations

import base64
from dataclasses import field
from datetime import datetime
from importlib import import_module
from typing import Annotated, Any, Final, Literal, Self

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from sandfleet_config.codes import Category, ErrorCode
from sandfleet_config.derived_fields import find_category, find_retryable, find_start
from sandfleet_config.new_codes import replace_new_codes
from sandfleet_config.payload import encode_payload
from sandfleet_config.record import Record
from sandfleet_config.terminal import cut_to_end, safe_text

PART: Final = ConfigDict(extra="ignore")
"""Config of an outcome's parts. They are slotted dataclasses: models took most of its memory."""


@dataclass(frozen=True, slots=True, config=PART)
class StoredObject:
    """An object of the store: the SHA-256 of its bytes in hex, its size in bytes, and the store."""

    sha256: str
    size: int
    place: str = ""


@dataclass(frozen=True, slots=True, config=PART)
class Artifact:
    """A file that the program left, now in the store. `path` is relative to ``/work``.

    `mode` is octal, such as ``0644``. `place` names the store; fetch the object there by `sha256`.
    """

    path: str
    size: int
    sha256: str
    mode: str
    place: str = ""


@dataclass(frozen=True, slots=True, config=PART)
class StreamOutput:
    """The kept bytes of one output stream, and the number of bytes that the program wrote."""

    data: str = field(default="", repr=False)
    encoding: Literal["utf-8", "base64"] = "utf-8"
    total_bytes: int = 0
    truncated: bool = False
    stored: StoredObject | None = None
    """The stream in the store, if the spec says ``output.store`` and it exceeds the kept bytes."""

    @classmethod
    def of(cls, kept: bytes, total_bytes: int | None = None) -> Self:
        """Encode `kept`.

        `total_bytes` is the number of bytes that the program wrote, by default those kept.
        """
        total = len(kept) if total_bytes is None else total_bytes
        truncated = total > len(kept) if total_bytes is not None else False
        return cls(**encode_payload(kept), total_bytes=total, truncated=truncated)  # type: ignore[arg-type]

    def dropped(self) -> StreamOutput:
        """Return this stream without its data; it counts as truncated."""
        return StreamOutput(total_bytes=self.total_bytes, truncated=self.total_bytes > 0, stored=self.stored)

    def __str__(self) -> str:
        """Return the last lines of the kept bytes, for people; control characters are escaped."""
        if not self.total_bytes:
            return "empty"
        cut = f", {len(self.bytes)} kept" if self.truncated else ""
        return f"{self.total_bytes} bytes{cut}\n{safe_text(cut_to_end(self.text))}"

    @property
    def bytes(self) -> bytes:
        """The kept bytes."""
        return base64.b64decode(self.data) if self.encoding == "base64" else self.data.encode()

    @property
    def text(self) -> str:
        """The kept bytes as text; bytes that are not UTF-8 become U+FFFD."""
        return self.data if self.encoding == "utf-8" else self.bytes.decode(errors="replace")


def _is_none(value: object) -> bool:
    return value is None


@dataclass(frozen=True, slots=True, kw_only=True, config=PART)
class Attempt:
    """One start of the job on one worker; a charged one counts towards `max_attempts`."""

    host: str
    worker: str
    code: ErrorCode | None = None
    started: datetime
    ended: datetime | None = None
    charged: bool = True
    """False if the job did not cause the end: a drain, another job or a power cut may have."""
    slot: Annotated[int | None, Field(exclude_if=_is_none)] = None
    """The number of the host's slot that it had; null where its worker is of an earlier release."""
    limits: Annotated[dict[str, float] | None, Field(exclude_if=_is_none)] = None
    """Its `memory_bytes` and `timeout`; null unless the spec raises them (`retry_with`)."""


@dataclass(frozen=True, slots=True, config=PART)
class Timing:
    """The duration of each step in seconds; null for a step that did not happen."""

    queued: float | None = None
    image: float | None = None
    create: float | None = None
    run: float | None = None
    collect: float | None = None
    cleanup: float | None = None

    @classmethod
    def of(cls, **seconds: float | None) -> Self:
        """Return these durations, each rounded to microseconds."""
        return cls(**{step: None if value is None else round(value, 6) for step, value in seconds.items()})


@dataclass(frozen=True, slots=True, config=PART)
class Usage:
    """Resources that the sandbox used, its kernel included.

    Null if the host does not count them.
    """

    cpu_seconds: float | None = None
    memory_peak_bytes: int | None = None
    pids_peak: int | None = None


@dataclass(frozen=True, slots=True, config=PART)
class LimitState:
    """A limit in force: its value in its own unit, and whether the host could enforce it."""

    value: float | int
    enforced: bool


@dataclass(frozen=True, slots=True, config=PART)
class Runtime:
    """The runtime of the sandbox. `warm`: the sandbox was a spare, booted before the job came."""

    name: str = "runsc"
    version: str = ""
    platform: str = ""
    warm: bool = False


class SandboxResult(Record):
    """The seed's result: both streams as text; `duration` is the program's, in seconds."""

    exit_code: int
    stdout: str = Field(repr=False)
    stderr: str = Field(repr=False)
    duration: float


class Outcome(Record):
    """How one job ended. Null means "did not happen", never 0.

    Invariant: no validator and no private attribute. Each would make pydantic leave its compiled
    path, and slow down a producer that collects a hundred thousand outcomes.
    """

    job_id: str
    batch: str | None = None
    labels: dict[str, str] = Field(default_factory=dict)
    code: ErrorCode
    # Both follow from the code. They are sent for readers that do not have the table of codes.
    category: Category = Field(default_factory=find_category)
    retryable: bool = Field(default_factory=find_retryable)
    message: str = ""
    exit_code: int | None = None
    signal: int | None = None
    timed_out: Literal["soft", "hard"] | None = None
    stdout: StreamOutput = StreamOutput()
    stderr: StreamOutput = StreamOutput()
    duration: float | None = None
    timing: Timing = Timing()
    usage: Usage = Usage()
    limits: dict[str, LimitState] = Field(default_factory=dict)
    attempts: tuple[Attempt, ...] = ()
    host: str = ""
    runtime: Runtime = Runtime()
    # A text, not a Literal: an older reader keeps a kind of start that it does not know.
    start: str | None = Field(default_factory=find_start)
    image_ref: str | None = None
    image_digest: str | None = None
    artifacts: tuple[Artifact, ...] = ()
    artifacts_lost: str | None = None
    spec_sha256: str = ""
    run: int = 1
    # Stored beside the outcome in a result record, not in its JSON: few outcomes have any.
    faults: tuple[dict[str, str], ...] = Field(
        default=(), exclude=True, repr=False, description="Faults of a refused request: `field` and `message` of each."
    )

    @classmethod
    def of(cls, code: ErrorCode, job_id: str, message: str = "", **fields: Any) -> Self:
        """Build an outcome; `category` and `retryable` follow from `code`."""
        return cls(
            code=code, job_id=job_id, message=message, category=code.category, retryable=code.is_retryable, **fields
        )

    @classmethod
    def read(cls, raw: object) -> Self:
        """Parse the JSON form of any release.

        A code of a newer release is kept, and counts as its category.

        Raises:
            pydantic.ValidationError: `raw` is not an outcome.
        """
        return cls.model_validate(replace_new_codes(raw))

    @property
    def is_ok(self) -> bool:
        """Whether the program exited 0 within its limits."""
        return self.code is ErrorCode.OK or self.code.category is Category.OK

    def raise_for_code(self) -> Self:
        """Return this outcome if its code is ``OK``; else raise the exception of the code.

        Raises:
            SandboxError: the class of the code, such as `ExitNonZero` or `OutOfMemory`; it carries
            the
                whole outcome.
        """
        if not self.is_ok:
            # By name and at the call: errors are made of outcomes, so their module imports this
            # one.
            raise import_module("sandfleet_config.errors").new_error(self)
        return self

    def __str__(self) -> str:
        """Return the ending for people, in several lines: code, exit, last lines of both outputs.

        It holds program output: log ``outcome.to_summary()`` or ``repr(outcome)`` instead.
        """
        end = self.to_summary() if self.code.is_known or self.message else self.code.value
        facts = [
            *([] if self.exit_code is None or self.code is ErrorCode.EXIT_NONZERO else [f"exit {self.exit_code}"]),
            *([] if self.signal is None else [f"signal {self.signal}"]),
            *([] if self.duration is None else [f"{self.duration:.3f} s"]),
        ]
        head = f"job {self.job_id}: {end}" + (f" ({', '.join(facts)})" if facts else "")
        streams = [f"{name}: {stream}" for name, stream in (("stdout", self.stdout), ("stderr", self.stderr))]
        return "\n".join([safe_text(head), *streams])

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form that is sent."""
        return self.model_dump(mode="json")

    def to_summary(self) -> str:
        """Return a short text of the ending: ``OK``, ``exit 3``, ``OUT_OF_MEMORY: ...``."""
        match self.code:
            case ErrorCode.OK:
                return "OK"
            case ErrorCode.EXIT_NONZERO:
                return f"exit {self.exit_code}"
            case _:
                return f"{self.code.value}: {self.message}"

    @property
    def output_bytes(self) -> int:
        """The size of both streams as encoded, in characters."""
        return len(self.stdout.data) + len(self.stderr.data)

    def without_output(self, why: str) -> Outcome:
        """Return this outcome without its output, which counts as truncated.

        `why` is added to the message.
        """
        message = f"{self.message}; {why}" if self.message else why
        dropped = {"stdout": self.stdout.dropped(), "stderr": self.stderr.dropped(), "message": message}
        return self.model_copy(update=dropped)
