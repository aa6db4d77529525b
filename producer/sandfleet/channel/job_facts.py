"""`JobFacts`: what Redis says about a job, ended or not, without its spec and outcome."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, cast

from sandfleet_config.codes import ErrorCode, read_code
from sandfleet_config.queues import host_of_owner

from sandfleet.channel.ended_in_queue import parse_attempts
from sandfleet.channel.record_reader import MILLI

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet_config.outcome import Attempt

FACT_FIELDS: Final = (
    *("record", "state", "code", "run", "queue", "step", "batch", "attempts", "max_attempts", "submitted"),
    *("ended", "expires", "queue_ttl", "needs", "why", "why_at", "owner"),
)
"""The fields of a job's record that `parse_facts` takes, in this order."""


@dataclass(frozen=True, slots=True)
class JobFacts:
    """A job as Redis has it now. Times are unix times, 0.0 where they are not known.

    `state` is ``queued``, ``waiting``, ``running`` or ``ended``; `attempts` are those of its newest
    run; `needs` are the limits and labels that it asks for; `queue_ttl` is in seconds, 0.0 where it
    is not known. `owner` is the worker that has it. Never env, stdin or output.
    """

    job_id: str
    state: str = ""
    code: ErrorCode | None = None
    run: int = 1
    batch: str | None = None
    queue: str = ""
    step: int = 0
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    line: str = ""
    spec_sha256: str = ""
    image: str = ""
    needs: Mapping[str, Any] = field(default_factory=dict[str, Any])
    attempts: tuple[Attempt, ...] = ()
    max_attempts: int = 0
    queue_ttl: float = 0.0
    submitted: float = 0.0
    ended: float = 0.0
    expires: float = 0.0
    why: str = ""
    why_at: float = 0.0
    owner: str = ""

    @property
    def name(self) -> str:
        """The label `name`, else the command line, else the id."""
        return self.labels.get("name") or self.line or self.job_id

    @property
    def host(self) -> str:
        """The host whose worker has it, else that of its last attempt; empty if it has not started."""
        if self.owner and self.state in {"waiting", "running"}:  # a waiting job has no attempt of its own yet
            return host_of_owner(self.owner)
        return self.attempts[-1].host if self.attempts else ""

    @property
    def started(self) -> float:
        """When its last attempt started."""
        return self.attempts[-1].started.timestamp() if self.attempts else 0.0

    def count_seconds(self, now: float | None = None) -> float | None:
        """Return for how long its last attempt has run by `now`, or ran; None if there was none."""
        if not self.started:
            return None
        last = self.attempts[-1]
        if last.ended is not None:
            return max(0.0, last.ended.timestamp() - self.started)
        end = self.ended or (time.time() if now is None else now)
        return max(0.0, end - self.started)


def parse_facts(job_id: str, values: Sequence[bytes | None]) -> JobFacts | None:
    """Parse the values of `FACT_FIELDS`; None if there is no such job."""
    found = {name: (value or b"").decode(errors="replace") for name, value in zip(FACT_FIELDS, values, strict=True)}
    if not found["state"]:
        return None
    record, needs = _parse_object(found["record"]), _parse_object(found["needs"])
    submitted = _parse_number(found["submitted"]) / MILLI or float(record.get("submitted") or 0.0)
    is_queued = found["state"] == "queued"
    return JobFacts(
        job_id=job_id,
        state=found["state"],
        code=_parse_code(found["code"]),
        run=int(_parse_number(found["run"]) or 1),
        batch=found["batch"] or record.get("batch"),
        queue=found["queue"],
        step=int(_parse_number(found["step"])),
        labels=record.get("labels") or {},
        line=str(record.get("line") or ""),
        spec_sha256=str(record.get("spec_sha256") or ""),
        image=str(needs.pop("image", "")),
        needs=needs,
        attempts=parse_attempts(found["attempts"]),
        max_attempts=int(_parse_number(found["max_attempts"])),
        queue_ttl=_parse_number(found["queue_ttl"]) / MILLI,
        submitted=submitted,
        ended=_parse_number(found["ended"]) / MILLI,
        expires=_parse_number(found["expires"]) / MILLI,
        why=found["why"] if is_queued else "",
        why_at=_parse_number(found["why_at"]) / MILLI if is_queued else 0.0,
        owner=found["owner"],
    )


def _parse_object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _parse_number(text: str) -> float:
    return float(text) if text.isdigit() else 0.0


def _parse_code(text: str) -> ErrorCode | None:
    try:
        return read_code(text)
    except ValueError:
        return None
