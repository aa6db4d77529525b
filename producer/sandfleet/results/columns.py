"""The columns of a batch's table: name, kind, and how each is read from a job."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from sandfleet.results.rows import ENDED, FORGOTTEN, BatchJob

if TYPE_CHECKING:
    from sandfleet_config.outcome import Attempt, Outcome

Kind: TypeAlias = Literal["text", "integer", "number", "truth", "time", "labels", "limits", "attempts", "artifacts"]
LABEL: Final = "labels."
SHOWN_NAMES: Final = 3


class ColumnUnknown(ValueError):
    """There is no column of that name."""


@dataclass(frozen=True)
class Column:
    """A column: its name, its kind, and the value that a job has there; None if it has none.

    `needs_record`: it is read from the job's record, which costs one more read of each job.
    """

    name: str
    kind: Kind
    read: Callable[[BatchJob], Any]
    needs_record: bool = False


def _of(name: str, kind: Kind, read: Callable[[Outcome], Any]) -> Column:
    """Return a column of the outcome."""
    return Column(name, kind, lambda job: None if job.outcome is None else read(job.outcome))


def _field(name: str, kind: Kind, *, part: str = "", field: str = "") -> Column:
    """Return a column that is a field of the outcome, or of one of its parts."""
    if part:
        return _of(name, kind, lambda outcome: getattr(getattr(outcome, part), field or name))
    return _of(name, kind, lambda outcome: getattr(outcome, field or name))


def _read_labels(job: BatchJob) -> dict[str, str] | None:
    if job.outcome is not None:
        return job.outcome.labels
    return job.record.labels if job.record is not None else None


def _read_message(job: BatchJob) -> str:
    if job.outcome is not None:
        return job.outcome.message
    if job.state == FORGOTTEN:
        return "its outcome has expired or was deleted"
    return job.record.why if job.record is not None else ""


def _read_run(job: BatchJob) -> int | None:
    if job.outcome is not None:
        return job.outcome.run
    return job.record.run if job.record is not None else None


def _list_attempts(attempts: Sequence[Attempt]) -> list[dict[str, Any]]:
    return [{**asdict(attempt), "code": attempt.code and attempt.code.value} for attempt in attempts]


def _stream(name: Literal["stdout", "stderr"]) -> tuple[Column, ...]:
    return (
        _field(name, "text", part=name, field="data"),
        _field(f"{name}_encoding", "text", part=name, field="encoding"),
        _field(f"{name}_bytes", "integer", part=name, field="total_bytes"),
        _field(f"{name}_truncated", "truth", part=name, field="truncated"),
    )


COLUMNS: Final = (
    Column("job_id", "text", lambda job: job.job_id),
    Column("batch", "text", lambda job: job.batch),
    Column("labels", "labels", _read_labels),
    Column("state", "text", lambda job: job.state),
    _of("code", "text", lambda outcome: outcome.code.value),
    _of("category", "text", lambda outcome: outcome.code.category.value),
    _field("retryable", "truth"),
    Column("message", "text", _read_message),
    _field("exit_code", "integer"),
    _field("signal", "integer"),
    _field("timed_out", "text"),
    Column("run", "integer", _read_run),
    _field("duration", "number"),
    _of("started", "time", lambda outcome: outcome.attempts[-1].started if outcome.attempts else None),
    _of("ended", "time", lambda outcome: outcome.attempts[-1].ended if outcome.attempts else None),
    *(
        _field(f"{step}_seconds", "number", part="timing", field=step)
        for step in ("queued", "image", "create", "run", "collect", "cleanup")
    ),
    _field("cpu_seconds", "number", part="usage"),
    _field("memory_peak_bytes", "integer", part="usage"),
    _field("pids_peak", "integer", part="usage"),
    _field("host", "text"),
    _field("start", "text"),
    _field("image_ref", "text"),
    _field("image_digest", "text"),
    _field("spec_sha256", "text"),
    *_stream("stdout"),
    *_stream("stderr"),
    _of("attempts", "attempts", lambda outcome: _list_attempts(outcome.attempts)),
    _of("limits", "limits", lambda outcome: {name: asdict(limit) for name, limit in outcome.limits.items()}),
    _of("artifacts", "artifacts", lambda outcome: [asdict(artifact) for artifact in outcome.artifacts]),
    _field("artifacts_lost", "text"),
)
"""The columns of a table if none are chosen."""


def _read_submitted(job: BatchJob) -> datetime | None:
    record = job.record
    return datetime.fromtimestamp(record.submitted, UTC) if record is not None and record.submitted else None


OF_RECORDS: Final = (
    Column("line", "text", lambda job: job.record and job.record.line, needs_record=True),
    Column("queue", "text", lambda job: job.record and job.record.queue, needs_record=True),
    Column("submitted", "time", _read_submitted, needs_record=True),
)
"""Columns that are there only if they are chosen."""


def output_columns(paths: Callable[[BatchJob, str], str | None]) -> tuple[Column, ...]:
    """Return a table's columns with outputs in files: `paths` gives the file of a job's stream."""
    return (
        Column("stdout_file", "text", lambda job: paths(job, "stdout")),
        Column("stderr_file", "text", lambda job: paths(job, "stderr")),
    )


_IN_FILES: Final = frozenset(("stdout", "stdout_encoding", "stderr", "stderr_encoding"))


def choose_columns(names: Sequence[str] | None, in_files: Sequence[Column] = ()) -> tuple[Column, ...]:
    """Return the columns of these names, by default all of an outcome; ``labels.KEY`` is a label.

    `in_files` are those of outputs in files: by default they take the place of the outputs
    themselves.

    Raises:
        ColumnUnknown: there is no such column, or one is named twice; says what is near.
    """
    if names is None:
        shown = [column for column in COLUMNS if not (in_files and column.name in _IN_FILES)]
        return (*shown, *in_files)
    known = {column.name: column for column in (*COLUMNS, *OF_RECORDS, *in_files)}
    chosen: dict[str, Column] = {}
    for name in names:
        if name in chosen:
            raise ColumnUnknown(f"column {name} is named twice: name it once")
        chosen[name] = _new_label(name) if _is_label(name) else _find(name, known)
    if not chosen:
        raise ColumnUnknown(f"no column is named: name some of {', '.join(known)}")
    return tuple(chosen.values())


def _is_label(name: str) -> bool:
    return name.startswith(LABEL) and len(name) > len(LABEL)


def _new_label(name: str) -> Column:
    key = name.removeprefix(LABEL)
    return Column(name, "text", lambda job: (_read_labels(job) or {}).get(key))


def _find(name: str, known: dict[str, Column]) -> Column:
    if name in known:
        return known[name]
    if name.endswith("_file"):
        raise ColumnUnknown(f"column {name} needs a folder for outputs (--outputs DIR)")
    near = difflib.get_close_matches(name, known, SHOWN_NAMES)
    meant = f"did you mean {' or '.join(near)}?" if near else f"the columns are {', '.join(known)}, and labels.KEY"
    raise ColumnUnknown(f"there is no column {ascii(name)[1:-1]}: {meant}")


def new_row(columns: Sequence[Column], job: BatchJob) -> dict[str, Any]:
    """Return the values of a job: plain JSON values, and `datetime` for times."""
    return {column.name: column.read(job) for column in columns}


__all__ = [
    "COLUMNS",
    "ENDED",
    "OF_RECORDS",
    "Column",
    "ColumnUnknown",
    "choose_columns",
    "new_row",
    "output_columns",
]
