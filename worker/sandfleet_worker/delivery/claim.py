"""A worker's claim on one job, as the Lua scripts return it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from pydantic import TypeAdapter, ValidationError
from sandfleet_config.new_codes import replace_new_code
from sandfleet_config.outcome import Attempt
from sandfleet_config.units import format_count

if TYPE_CHECKING:
    from sandfleet_config.codes import ErrorCode

DEFAULT_MAX_ATTEMPTS = 3
MAX_STARTS = 20
"""Most starts of a job, charged or not: without a limit a job could be started for ever."""
_attempts: Final = TypeAdapter(tuple[Attempt, ...])


class Flag(StrEnum):
    """Why a job was handed out: to run, or for its outcome only."""

    START = "start"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class Refused(StrEnum):
    """Why a job that has waited may not start."""

    CANCELLED = "cancelled"
    CORDONED = "cordoned"
    FENCED = "fenced"


_FLAGS: Final = frozenset(flag.value.encode() for flag in Flag)


@dataclass(frozen=True)
class Claim:
    """A worker's claim on one job.

    `claim_id` is the fencing token. `attempts` include this one if it starts.
    """

    claim_id: str
    job_id: str
    flag: Flag
    message: bytes
    queue: str = ""
    is_waiting: bool = False
    """Whether the job waits for what its start needs: none of `attempts` is this claim's."""
    attempts: tuple[Attempt, ...] = ()
    lost_waits: int = 0
    """How many workers have died while the job waited for its start."""
    max_attempts: int = DEFAULT_MAX_ATTEMPTS
    suspect_seconds: float | None = None
    """How long the job may not run beside other suspects; None if it is none.

    A suspect may have killed its worker.
    """
    run: int = 1
    started_monotonic: float = field(default_factory=time.monotonic, compare=False)
    """When the answer about the last start came, by this process's monotonic clock."""

    @property
    def charged_count(self) -> int:
        """How many attempts count towards `max_attempts`."""
        return sum(attempt.charged for attempt in self.attempts)

    @property
    def is_last_attempt(self) -> bool:
        """Whether this attempt is the last one that the job may have."""
        return self.charged_count >= self.max_attempts or (bool(self.attempts) and self.is_last_start)

    @property
    def is_last_start(self) -> bool:
        """Whether this attempt is the last one even if it is not charged."""
        return self.max_attempts == 1 or len(self.attempts) >= MAX_STARTS

    def describe_limit(self) -> str:
        """Say which limit ends the job with its last attempt."""
        if len(self.attempts) >= MAX_STARTS:
            return f"the job was started {format_count(len(self.attempts), 'time')}, {MAX_STARTS} starts are the most of any job"
        if self.max_attempts == 1:
            return "max_attempts=1 allows one start"
        return f"no attempt is left ({self.charged_count} of {self.max_attempts})"

    def end_attempts(self, code: ErrorCode) -> tuple[Attempt, ...]:
        """Return the attempts, the last one ended with `code` if it is this claim's.

        Earlier ends do not change. The end is by Redis's clock, as the start is: this host's may be
        wrong, or be set meanwhile.
        """
        if not self.is_started:
            return self.attempts
        last = self.attempts[-1]
        ended = last.started + timedelta(seconds=time.monotonic() - self.started_monotonic)
        return (*self.attempts[:-1], replace(last, code=code, ended=ended))

    @property
    def is_started(self) -> bool:
        """Whether the last attempt is this claim's, and goes on."""
        is_own = self.flag is Flag.START and not self.is_waiting
        return is_own and bool(self.attempts) and self.attempts[-1].ended is None


def parse_claim(claim_id: str, *facts: bytes) -> Claim:
    """Parse what `claim.lua` and `reap.lua` return of a job.

    Unreadable fields of a forged record get their defaults.
    """
    job_id, flag, message, queue, attempts, max_attempts, run, *suspect_ms = facts
    return Claim(
        claim_id,
        job_id.decode(errors="replace"),
        Flag(flag.decode()) if flag in _FLAGS else Flag.START,
        message,
        queue=queue.decode(errors="replace"),
        attempts=parse_attempts(attempts),
        max_attempts=parse_number(max_attempts) or DEFAULT_MAX_ATTEMPTS,
        suspect_seconds=parse_suspect(*suspect_ms),
        run=parse_number(run) or 1,
    )


def parse_suspect(text: bytes = b"") -> float | None:
    """Return the milliseconds in `text` as seconds; None where it is empty or no number."""
    milliseconds = parse_number(text)
    return None if milliseconds is None else milliseconds / 1000


def parse_number(text: bytes) -> int | None:
    """Return the number of at most nine digits in `text`, or None."""
    return int(text) if text.isdigit() and len(text) < 10 else None  # noqa: PLR2004


def parse_attempts(raw: bytes | str) -> tuple[Attempt, ...]:
    """Read the attempts of a job's hash; their times are milliseconds of Redis's clock.

    Unreadable ones count as none.
    """
    try:
        return _attempts.validate_json(raw) if raw else ()
    except ValidationError:
        return _parse_unusual_attempts(raw)


def _parse_unusual_attempts(raw: bytes | str) -> tuple[Attempt, ...]:
    """Read attempts with codes of a newer release: they count, too."""
    try:
        items: Any = json.loads(raw)
        return _attempts.validate_python([replace_new_code(item) for item in items])
    except (ValueError, TypeError, RecursionError):
        return ()
