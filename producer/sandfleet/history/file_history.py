"""`FileHistory`: the history of the file that `sandfleet-web` writes, read only."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from itertools import zip_longest
from typing import TYPE_CHECKING, Any, Final

from sandfleet.history.groups import group_failures
from sandfleet.history.heartbeat import read_heartbeat
from sandfleet.history.open_file import OpenFiles
from sandfleet.history.questions import (
    MAX_DEPTH,
    MAX_PAGE,
    FailureGroup,
    FailureKey,
    HistoryFilter,
    HistoryStatus,
    PastAttempt,
    PastPage,
    PastRun,
    RollupKey,
    RollupPoint,
    RunTimes,
    UsageKey,
    UsageRow,
)
from sandfleet.history.statements import MILLI, choose_way, list_where
from sandfleet.history.times import read_times
from sandfleet.history.usage import sum_usage

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

COLUMNS: Final = (
    *(
        "number",
        "job_id",
        "run",
        "code",
        "category",
        "batch",
        "queue",
        "host",
        "image",
        "ended",
        "started",
        "submitted",
    ),
    *("exit_code", "attempts", "fingerprint", "cpu_ms", "memory", "line", "message"),
)
SILENT_SECONDS: Final = 15.0
"""A writer that has said nothing for so long does not write."""
MAX_POINTS: Final = 50_000
_SELECTED: Final = ", ".join(f"r.{name}" for name in COLUMNS)


class FileHistory:
    """Answers from the file `path`, each within 2 s; safe for threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = OpenFiles(path)

    def close(self) -> None:
        """Close the file; the next question opens it again."""
        self._files.close()

    def status(self) -> HistoryStatus:
        """Return how old and how complete it is, as its writer says."""
        with self._files.reading() as connection:
            meta = dict(connection.execute("SELECT name, value FROM meta"))
            oldest = connection.execute("SELECT ended FROM run ORDER BY seq LIMIT 1").fetchone()
        found = read_heartbeat(self.path)
        number, now = max(0, int(meta.get("number", 0))), time.time()
        fault = found.fault
        if now - found.at > SILENT_SECONDS:
            fault = "no process writes the history: start sandfleet-web serve, or sandfleet-web history run"
        return HistoryStatus(
            at=found.at,
            number=number,
            head=max(number, found.head),
            lost=int(meta.get("lost", 0)),
            lost_at=int(meta.get("lost_ms", 0)) / MILLI,
            lag_seconds=found.lag_seconds,
            rows=int(meta.get("rows", 0)),
            size_bytes=self._files.count_bytes(),
            oldest=oldest[0] / MILLI if oldest else 0.0,
            begun=float(meta.get("begun", 0.0)),
            skipped=int(meta.get("skipped", 0)),
            note=str(meta.get("note", "")),
            fault=fault,
        )

    def find_runs(self, wanted: HistoryFilter, *, count: int = 50, cursor: str = "") -> PastPage:
        """Return the runs that match, newest end first; at most `MAX_DEPTH` in all.

        Raises:
            ValueError: `cursor` is none.
        """
        count = max(1, min(count, MAX_PAGE))
        before, depth = _parse_cursor(cursor)
        count = min(count, MAX_DEPTH - depth)
        with self._files.reading() as connection:
            way = choose_way(connection, wanted)
            terms, values = list_where(connection, wanted, way.seq, before)
            statement = way.select(f"r.seq, d.facts, {_SELECTED}", terms)
            joined = statement.replace(" WHERE ", " JOIN detail d ON d.seq = r.seq WHERE ", 1)
            found = connection.execute(f"{joined} LIMIT ?", (*way.values, *values, count + 1)).fetchall()
        rows = found[:count]
        depth += len(rows)
        is_end = len(found) <= count or depth >= MAX_DEPTH
        return PastPage(tuple(_new_run(row) for row in rows), "" if is_end else f"{rows[-1][0]}-{depth}")

    def count_runs(self, wanted: HistoryFilter) -> int:
        """Return how many match, at most `MAX_DEPTH` + 1."""
        with self._files.reading() as connection:
            way = choose_way(connection, wanted)
            terms, values = list_where(connection, wanted, way.seq)
            inner = f"{way.select('1', terms, is_ordered=False)} LIMIT {MAX_DEPTH + 1}"
            statement = f"SELECT count(*) FROM ({inner})"  # noqa: S608  no value is in it
            found: int = connection.execute(statement, (*way.values, *values)).fetchone()[0]
        return found

    def export_runs(self, wanted: HistoryFilter) -> Iterator[PastRun]:
        """Yield all runs that match, newest end first, however many; each page has the deadline."""
        cursor, is_end = "", False
        while not is_end:
            page = self.find_runs(wanted, count=MAX_PAGE, cursor=cursor)
            yield from page.rows
            # Without the depth: it bounds what people page through, not an export.
            cursor, is_end = f"{page.cursor.partition('-')[0]}-0", not page.cursor

    def runs_of(self, job_id: str) -> Sequence[PastRun]:
        """Return the ended runs of a job, the newest first."""
        return self.find_runs(HistoryFilter(job_id=job_id), count=MAX_PAGE).rows

    def find_failures(
        self, wanted: HistoryFilter, *, by: FailureKey = "fingerprint", count: int = 100
    ) -> Sequence[FailureGroup]:
        """Group the runs that match and did not end OK, the largest group first."""
        with self._files.reading() as connection:
            return group_failures(connection, wanted, by, count)

    def roll_up(self, by: RollupKey, *, since: float, until: float, step_seconds: int = 60) -> Sequence[RollupPoint]:
        """Count the ended runs of each step of time; steps are whole minutes.

        Raises:
            ValueError: there would be more than 50,000 points.
        """
        step = max(1, step_seconds // 60)
        sums = "sum(count), sum(attempts), sum(queued_ms), sum(run_ms)"
        with self._files.reading() as connection:
            found = connection.execute(
                f"SELECT at / ? * ?, key, {sums} FROM minute WHERE kind = ? AND at >= ? AND at < ? GROUP BY 1, 2 LIMIT ?",  # noqa: S608
                (step, step, by, int(since // 60), -(-until // 60), MAX_POINTS + 1),
            ).fetchall()
        if len(found) > MAX_POINTS:
            raise ValueError("a rollup of more than 50,000 points: take longer steps, or a shorter time")
        return [
            RollupPoint(
                at=at * 60.0,
                key=key,
                count=number,
                attempts=tries,
                queued_seconds=queued / MILLI,
                run_seconds=run / MILLI,
            )
            for at, key, number, tries, queued, run in found
        ]

    def find_usage(
        self, by: UsageKey, wanted: HistoryFilter, *, label: str = "", count: int = 100
    ) -> Sequence[UsageRow]:
        """Sum up use, the most CPU first; `label` is the label's key."""
        with self._files.reading() as connection:
            return sum_usage(connection, wanted, label if by == "label" else None, count)

    def find_times(self, wanted: HistoryFilter) -> Sequence[RunTimes]:
        """Return the times of all runs that match, then by code; of more than `MAX_TIMED`, of the newest."""
        with self._files.reading() as connection:
            return read_times(connection, wanted)


def _parse_cursor(cursor: str) -> tuple[int | None, int]:
    """Return the `seq` of the last row of the page before, and how many rows there were so far."""
    if not cursor:
        return None, 0
    seq, _, depth = cursor.partition("-")
    if not (seq.isdecimal() and depth.isdecimal() and len(cursor) < len("9" * 30)) or int(depth) >= MAX_DEPTH:
        raise ValueError("the cursor is none that a page has given")
    return min(int(seq), (1 << 63) - 1), int(depth)


def _new_run(row: Sequence[Any]) -> PastRun:
    facts: dict[str, Any] = json.loads(row[1])
    value = dict(zip(COLUMNS, row[2:], strict=True))
    return PastRun(
        number=value["number"],
        job_id=value["job_id"],
        run=value["run"],
        code=value["code"],
        category=value["category"],
        submitted=(value["submitted"] or 0) / MILLI,
        started=(value["started"] or 0) / MILLI,
        ended=value["ended"] / MILLI,
        batch=value["batch"] or "",
        queue=value["queue"] or "",
        host=value["host"] or "",
        image=value["image"] or "",
        image_digest=facts.get("digest", ""),
        labels=facts.get("labels", {}),
        line=value["line"] or "",
        message=value["message"] or "",
        fingerprint=value["fingerprint"] or "",
        exit_code=value["exit_code"],
        signal=facts.get("signal"),
        start=facts.get("start", ""),
        steps=facts.get("steps", {}),
        cpu_seconds=None if value["cpu_ms"] is None else value["cpu_ms"] / MILLI,
        memory_peak_bytes=facts.get("peak"),
        memory_bytes=value["memory"] or 0,
        attempts=tuple(
            replace(_new_attempt(item), slot=slot)
            for item, slot in zip_longest(facts.get("tries", ()), facts.get("slots", ()))
        ),
        attempt_count=value["attempts"],
        spec_sha256=facts.get("spec", ""),
    )


def _new_attempt(item: Sequence[Any]) -> PastAttempt:
    host, worker, code, started, ended, charged = item
    return PastAttempt(
        host=host, worker=worker, code=code, started=started / MILLI, ended=ended / MILLI, charged=bool(charged)
    )
