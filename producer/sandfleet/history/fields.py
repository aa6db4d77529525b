"""Answers of the history as plain fields: for ``-o json``, the JSON API, and back from there."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

from sandfleet.history.questions import (
    FailureGroup,
    HistoryStatus,
    PastAttempt,
    PastRun,
    RollupPoint,
    RunTimes,
    UsageRow,
)
from sandfleet.history.words import format_time

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_T = TypeVar("_T")
_RUN_TIMES: Final = ("submitted", "started", "ended")
_GROUP_TIMES: Final = ("first", "last")
_STATUS_TIMES: Final = ("at", "lost_at", "oldest", "begun")


def run_fields(run: PastRun) -> dict[str, Any]:
    """Return a run for programs: the names are those of a job, and more."""
    return {
        "job_id": run.job_id,
        "state": "ended",
        "code": run.code,
        "category": run.category,
        "run": run.run,
        "batch": run.batch or None,
        "queue": run.queue,
        "labels": dict(run.labels),
        "line": run.line,
        "image": run.image,
        "host": run.host or None,
        "attempts": run.attempt_count,
        "submitted": _to_iso(run.submitted),
        "started": _to_iso(run.started),
        "ended": _to_iso(run.ended),
        "seconds": round(run.seconds, 3) if run.started else None,
        "why": None,
        "number": run.number,
        "message": run.message,
        "exit_code": run.exit_code,
        "signal": run.signal,
        "start": run.start or None,
        "steps": dict(run.steps),
        "cpu_seconds": run.cpu_seconds,
        "memory_peak_bytes": run.memory_peak_bytes,
        "memory_bytes": run.memory_bytes,
        "image_digest": run.image_digest or None,
        "fingerprint": run.fingerprint or None,
        "spec_sha256": run.spec_sha256,
        "tries": [_attempt_fields(attempt) for attempt in run.attempts],
    }


def read_run(fields: Mapping[str, Any]) -> PastRun:
    """Return the run of `run_fields`.

    Raises:
        TypeError, KeyError or ValueError: they are none.
    """
    names = PastRun.__dataclass_fields__.keys() & fields.keys() - {"attempts", "seconds"}
    known: dict[str, Any] = {name: fields[name] for name in names if fields[name] is not None}
    known |= {name: _from_iso(fields[name]) for name in _RUN_TIMES}
    tries = tuple(_read_attempt(item) for item in fields["tries"])
    return PastRun(**known, attempts=tries, attempt_count=fields["attempts"])


def failure_fields(group: FailureGroup) -> dict[str, Any]:
    """Return a group of failures for programs."""
    return _with_iso(asdict(group) | {"trend": list(group.trend)}, _GROUP_TIMES)


def read_failure(fields: Mapping[str, Any]) -> FailureGroup:
    """Return the group of `failure_fields`."""
    known = _from_isos(fields, _GROUP_TIMES)
    known["trend"] = tuple(known["trend"])
    return _new(FailureGroup, known)


def usage_fields(row: UsageRow) -> dict[str, Any]:
    """Return use for programs."""
    return asdict(row)


def read_usage(fields: Mapping[str, Any]) -> UsageRow:
    """Return the use of `usage_fields`."""
    return _new(UsageRow, fields)


def point_fields(point: RollupPoint) -> dict[str, Any]:
    """Return a step of a rollup for programs; `at` is unix time."""
    return asdict(point)


def read_point(fields: Mapping[str, Any]) -> RollupPoint:
    """Return the step of `point_fields`."""
    return _new(RollupPoint, fields)


def times_fields(times: RunTimes) -> dict[str, Any]:
    """Return times for programs."""
    return asdict(times)


def read_times(fields: Mapping[str, Any]) -> RunTimes:
    """Return the times of `times_fields`."""
    return _new(RunTimes, fields)


def status_fields(status: HistoryStatus) -> dict[str, Any]:
    """Return the state of the history for programs."""
    return _with_iso(asdict(status), _STATUS_TIMES)


def read_status(fields: Mapping[str, Any]) -> HistoryStatus:
    """Return the state of `status_fields`, of earlier releases, too."""
    return _new(HistoryStatus, _from_isos({"lost_at": None, **fields}, _STATUS_TIMES))


def _attempt_fields(attempt: PastAttempt) -> dict[str, Any]:
    times = {"started": _to_iso(attempt.started), "ended": _to_iso(attempt.ended)}
    return asdict(attempt) | times | {"code": attempt.code or None}


def _read_attempt(fields: Mapping[str, Any]) -> PastAttempt:
    known = _from_isos(fields, ("started", "ended"))
    known["code"] = known["code"] or ""
    return _new(PastAttempt, known)


def _new(kind: Callable[..., _T], fields: Mapping[str, Any]) -> _T:
    """Return a value of its fields. A `sandfleet-web` of a newer release may send others, too."""
    known: Mapping[str, object] = getattr(kind, "__dataclass_fields__", {})
    return kind(**{name: value for name, value in fields.items() if name in known})


def _with_iso(fields: dict[str, Any], times: tuple[str, ...]) -> dict[str, Any]:
    return fields | {name: _to_iso(fields[name]) for name in times}


def _from_isos(fields: Mapping[str, Any], times: tuple[str, ...]) -> dict[str, Any]:
    return dict(fields) | {name: _from_iso(fields[name]) for name in times}


def _to_iso(at: float) -> str | None:
    """Return a unix time as ISO 8601 in UTC, None if it is not known."""
    return format_time(at) if at else None


def _from_iso(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else 0.0
