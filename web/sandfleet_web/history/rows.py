"""Ended runs as rows of the history file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sandfleet_config.codes import Category, read_code
from sandfleet_config.ended_run import Try
from sandfleet_config.failure_kind import fingerprint_failure

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_config.ended_run import EndedRun

MILLI: Final = 1000
COLUMNS: Final = (
    *(
        "seq",
        "number",
        "ended",
        "is_newest",
        "run",
        "attempts",
        "run_ms",
        "exit_code",
        "category",
        "code",
        "queue",
        "host",
    ),
    *("image", "batch", "fingerprint", "cpu_ms", "memory", "program_ms", "started", "submitted", "job_id", "line"),
    "message",
)
KINDS: Final = ("category", "code", "queue", "host", "image")
"""The kinds of keys under which the runs of a minute are counted."""
TRIES: Final = ("tries", "failed_tries")
"""The kinds under which tries are counted by host, and those of them that failed by our doing."""
OK: Final = "ok"
MAX_SECONDS: Final = 10 * 366 * 86400.0
MAX_ATTEMPTS: Final = 1000
MAX_TIME: Final = 4_102_444_800.0
"""The year 2100."""
_pack: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False).encode


class NewRow(NamedTuple):
    """A run that is to be stored: its number, and when it ended (ms)."""

    number: int
    ended: int
    run: EndedRun

    @property
    def is_ok(self) -> bool:
        """Whether it ended OK."""
        return self.run.category == OK


def to_row(seq: int, new: NewRow) -> tuple[Any, ...]:
    """Return the values of `COLUMNS`."""
    run = new.run
    started = _time(run.started)
    fingerprint = None if new.is_ok else to_fingerprint(new)
    return (
        *(
            seq,
            new.number,
            new.ended,
            1,
            run.run,
            min(run.attempts, MAX_ATTEMPTS),
            _count_run(new),
            run.exit_code,
            run.category,
            run.code,
        ),
        *(run.queue or None, run.host or None, run.image or None, run.batch or None, fingerprint),
        *(None if run.cpu_seconds is None else _ms(run.cpu_seconds), run.memory_bytes or None),
        *(_count_program(new), started or None, _time(run.submitted) or None),
        *(run.job_id, run.line or None, run.message or None),
    )


def to_facts(run: EndedRun) -> str:
    """Return the facts that a run is not searched by, as JSON."""
    facts: dict[str, Any] = {
        "labels": dict(run.labels),
        "steps": dict(run.steps),
        "digest": run.image_digest,
        "signal": run.signal,
        "start": run.start,
        "peak": run.memory_peak_bytes,
        "spec": run.spec_sha256,
        "tries": [_list_try(one) for one in run.tries],
        "slots": [one.slot for one in run.tries] if any(one.slot is not None for one in run.tries) else [],
    }
    return _pack({name: value for name, value in facts.items() if value not in ("", None, {}, [])})


def list_counted(new: NewRow) -> Iterator[tuple[str, str]]:
    """Yield the kinds and keys under which the run is counted in its minute."""
    run = new.run
    yield from zip(KINDS, (run.category, run.code, run.queue, run.host, run.image), strict=True)


def list_tries(new: NewRow) -> Iterator[tuple[str, str]]:
    """Yield the kinds and hosts under which each try of the run is counted.

    One that was not charged is not: a drain or the end of a worker cut it. Of a run whose tries
    have no place in its summary, its end counts as the only one.
    """
    run = new.run
    last = Try(run.host, code=run.code) if run.host else None
    for one in run.tries or ((last,) if last else ()):
        if one.charged and one.host:
            yield "tries", one.host
            if _is_by_us(one.code or run.code, run):
                yield "failed_tries", one.host


def _is_by_us(code: str, run: EndedRun) -> bool:
    try:
        return read_code(code, run.category if code == run.code else None).category is Category.HOST
    except ValueError:
        return False


def count_times(new: NewRow) -> tuple[int, int, int]:
    """Return the run's attempts, and the ms for which it was queued and for which it ran."""
    return min(new.run.attempts, MAX_ATTEMPTS), _ms(new.run.steps.get("queued", 0.0)), _count_run(new)


def count_use(new: NewRow) -> tuple[int, float]:
    """Return the run's CPU in ms, and its memory limit times the ms of its program."""
    return _ms(new.run.cpu_seconds or 0.0), float(new.run.memory_bytes) * _count_program(new)


def to_fingerprint(new: NewRow) -> str:
    """Return the fingerprint of a failure, as whoever ended the run found it in the whole message."""
    return new.run.fingerprint or fingerprint_failure(new.run.code, new.run.message)


def _count_program(new: NewRow) -> int:
    program = new.run.steps.get("run")
    return _count_run(new) if program is None else _ms(program)


def _count_run(new: NewRow) -> int:
    started = _time(new.run.started)
    return min(max(0, new.ended - started), _ms(MAX_SECONDS)) if started else 0


def _list_try(one: Try) -> list[Any]:
    return [one.host, one.worker, one.code, _time(one.started), _time(one.ended), int(one.charged)]


def _ms(seconds: float) -> int:
    """Return a duration in ms. A forged one is bounded, so that no sum overflows."""
    return round(min(seconds, MAX_SECONDS) * MILLI)


def _time(at: float) -> int:
    """Return a unix time in ms, 0 for a forged one of a far future."""
    return round(at * MILLI) if at < MAX_TIME else 0
