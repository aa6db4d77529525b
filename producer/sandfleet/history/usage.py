"""Sums of use: by batch, or by the values of a label."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from sandfleet_config.codes import Category, read_code

from sandfleet.history.questions import HistoryFilter, UsageRow
from sandfleet.history.statements import HOUR_MS, MILLI, SCAN, Way, choose_way, find_seq, list_where

if TYPE_CHECKING:
    import sqlite3

GIB: Final = 1 << 30
HOUR: Final = 3600 * 1000
_SUMS: Final = "count(*), sum(r.cpu_ms), sum(ifnull(r.memory, 0) * 1.0 * r.program_ms)"
_Part = tuple[str, str, int, int | None, float | None]
"""Key, code, and the sums: jobs, ms of CPU, byte ms."""


def sum_usage(connection: sqlite3.Connection, wanted: HistoryFilter, label: str | None, count: int) -> list[UsageRow]:
    """Sum up use by batch or, if given, by the values of a label; the most CPU comes first.

    By batch and time alone, whole hours come from counts that outlive the rows.
    """
    is_of_time = replace(wanted, since=None, until=None) == HistoryFilter()
    if label is not None and is_of_time:
        return _sum_labels(connection, wanted, label, count)
    if label is not None:
        parts: Iterable[_Part] = _sum_labels_of(connection, wanted, label)
    else:
        parts = _sum_hours(connection, wanted) if is_of_time else _sum_batches(connection, wanted)
    rows: dict[str, UsageRow] = {}
    for key, code, jobs, cpu_ms, byte_ms in parts:
        known = rows.get(key) or UsageRow(key=key, jobs=0, ok=0, cpu_hours=0.0, gib_hours=0.0)
        rows[key] = _add_use(known, code, jobs, cpu_ms or 0, byte_ms or 0.0)
    return sorted(rows.values(), key=lambda row: (-row.cpu_hours, -row.jobs, row.key))[:count]


def _sum_hours(connection: sqlite3.Connection, wanted: HistoryFilter) -> Iterator[_Part]:
    """Sum up by batch: whole hours from their counts, the rest from the rows."""
    first = 0 if wanted.since is None else -int(-wanted.since * MILLI // HOUR_MS)
    last = (1 << 62) // HOUR_MS if wanted.until is None else int(wanted.until * MILLI // HOUR_MS)
    if first >= last:
        yield from _sum_batches(connection, wanted)
        return
    statement = (
        "SELECT batch, code, sum(jobs), sum(cpu_ms), sum(byte_ms) FROM usage WHERE hour >= ? AND hour < ? GROUP BY 1, 2"
    )
    yield from connection.execute(statement, (first, last))
    if wanted.since is not None:
        yield from _sum_batches(connection, replace(wanted, until=(first * HOUR_MS - 1) / MILLI))
    if wanted.until is not None:
        yield from _sum_batches(connection, replace(wanted, since=last * HOUR_MS / MILLI))


def _sum_batches(connection: sqlite3.Connection, wanted: HistoryFilter) -> Iterable[_Part]:
    way = choose_way(connection, wanted)
    terms, values = list_where(connection, wanted, way.seq)
    statement = way.select(f"ifnull(r.batch, ''), r.code, {_SUMS}", terms, is_ordered=False)
    return connection.execute(f"{statement} GROUP BY 1, 2", (*way.values, *values))


def _sum_labels(connection: sqlite3.Connection, wanted: HistoryFilter, label: str, count: int) -> list[UsageRow]:
    """Sum up from the labels alone: first all values, then the failures of those that are returned."""
    first = 0 if wanted.since is None else find_seq(connection, wanted.since * MILLI)
    last = 1 << 62 if wanted.until is None else find_seq(connection, wanted.until * MILLI + 1)
    where = "k = ? AND seq >= ? AND seq < ?"
    sums = "count(*), sum(code = 'OK'), sum(cpu_ms), sum(byte_ms)"
    rows = connection.execute(
        f"SELECT v, {sums} FROM label WHERE {where} GROUP BY v ORDER BY 4 DESC, 2 DESC, v LIMIT ?",  # noqa: S608
        (label, first, last, count),
    ).fetchall()
    failures: dict[str, dict[str, int]] = {value: {} for value, *_ in rows}
    for value, found in failures.items():
        found.update(
            connection.execute(
                f"SELECT code, count(*) FROM label WHERE {where} AND v = ? AND code <> 'OK' GROUP BY code",  # noqa: S608
                (label, first, last, value),
            )
        )
    return [
        UsageRow(
            key=value, jobs=jobs, ok=ok, cpu_hours=cpu / HOUR, gib_hours=byte_ms / GIB / HOUR, failures=failures[value]
        )
        for value, jobs, ok, cpu, byte_ms in rows
    ]


def _sum_labels_of(connection: sqlite3.Connection, wanted: HistoryFilter, label: str) -> Iterator[_Part]:
    way = choose_way(connection, wanted)
    if way is SCAN:  # many rows: from the labels to the rows
        way = Way("label u CROSS JOIN run r ON r.seq = u.seq", ("u.k = ?",), (label,), "u.seq")
        terms, values = list_where(connection, wanted, way.seq)
        statement = way.select(f"u.v, r.code, {_SUMS}", terms, is_ordered=False)
        yield from connection.execute(f"{statement} GROUP BY 1, 2", (*way.values, *values))
        return
    terms, values = list_where(connection, wanted, way.seq)
    found = way.select("r.seq, r.code, r.cpu_ms, ifnull(r.memory, 0) * 1.0 * r.program_ms", terms, is_ordered=False)
    for seq, code, cpu, memory in connection.execute(found, (*way.values, *values)).fetchall():
        facts: dict[str, Any] = json.loads(
            connection.execute("SELECT facts FROM detail WHERE seq = ?", (seq,)).fetchone()[0]
        )
        if (value := facts.get("labels", {}).get(label)) is not None:
            yield value, code, 1, cpu, memory


def _add_use(row: UsageRow, code: str, jobs: int, cpu_ms: int | None, byte_ms: float | None) -> UsageRow:
    is_ok = read_code(code).category is Category.OK
    failures = row.failures if is_ok else {**row.failures, code: row.failures.get(code, 0) + jobs}
    return UsageRow(
        key=row.key,
        jobs=row.jobs + jobs,
        ok=row.ok + (jobs if is_ok else 0),
        cpu_hours=row.cpu_hours + (cpu_ms or 0) / HOUR,
        gib_hours=row.gib_hours + (byte_ms or 0.0) / GIB / HOUR,
        failures=failures,
    )
