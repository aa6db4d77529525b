"""Sums over many rows of the history file: groups of failures, and use."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sandfleet.history.questions import FailureGroup, FailureKey, HistoryFilter, UsageRow
from sandfleet.history.statements import MILLI, SCAN, Way, choose_way, list_terms, list_where

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

TREND_PARTS: Final = 24
GIB_HOURS: Final = 1 << 30, 3600 * 1000
MAX_GROUPS: Final = 500
_FAILED: Final = Way("run r INDEXED BY run_failed", ("r.category <> 'ok'",))
"""An index of the failures alone, by time, with all that a group needs."""
_KEYS: Final[dict[FailureKey, str]] = {
    "fingerprint": "r.fingerprint, r.image",
    "code": "r.code, NULL",
    "image": "r.image, NULL",
    "host": "r.host, NULL",
    "batch": "r.batch, NULL",
}


@dataclass
class _Group:
    count: int = 0
    first: int = 1 << 62
    last: int = 0
    newest: int = 0
    hosts: Counter[str] = field(default_factory=Counter[str])
    batches: Counter[str] = field(default_factory=Counter[str])
    trend: list[int] = field(default_factory=lambda: [0] * TREND_PARTS)

    def add(self, host: str | None, batch: str | None, part: int, sums: Sequence[int]) -> None:
        """Add the failures of a host and a batch in a part of the time."""
        count, first, last, newest = sums
        self.count += count
        self.first, self.last = min(self.first, first), max(self.last, last)
        self.newest = max(self.newest, newest)
        self.trend[min(max(part, 0), TREND_PARTS - 1)] += count
        if host is not None:
            self.hosts[host] += count
        if batch is not None:
            self.batches[batch] += count


def group_failures(
    connection: sqlite3.Connection, wanted: HistoryFilter, by: FailureKey, count: int
) -> list[FailureGroup]:
    """Group the runs that match and did not end OK, the largest group first."""
    first, last = _find_times(connection, wanted)
    way = choose_way(connection, wanted)
    way = _FAILED if way is SCAN else way
    terms, values = _list_failed(wanted, way)
    span = max(1, last - first + 1)
    columns = f"{_KEYS[by]}, r.host, r.batch, (r.ended - ?) * {TREND_PARTS} / ?"
    statement = way.select(f"{columns}, count(*), min(r.ended), max(r.ended), max(r.seq)", terms, is_ordered=False)
    groups: dict[tuple[Any, Any], _Group] = {}
    arguments = (first, span, *way.values, *values)
    for one, other, host, batch, part, *sums in connection.execute(f"{statement} GROUP BY 1, 2, 3, 4, 5", arguments):
        groups.setdefault((one, other), _Group()).add(host, batch, part, sums)
    largest = sorted(groups.values(), key=lambda group: (-group.count, -group.newest))
    return [_describe(connection, group) for group in largest[: min(count, MAX_GROUPS)]]


def sum_usage(connection: sqlite3.Connection, wanted: HistoryFilter, label: str | None, count: int) -> list[UsageRow]:
    """Sum up use by batch or, if given, by the values of a label; the most CPU comes first."""
    way = choose_way(connection, wanted)
    key, source, more = "r.batch", way.source, []
    if label is not None and way is SCAN:
        way = Way("label u CROSS JOIN run r ON r.seq = u.seq", ("u.k = ?",), (label,))
        key, source = "u.v", way.source
    elif label is not None:
        key, source, more = "u.v", f"{way.source} JOIN label u ON u.seq = r.seq AND u.k = ?", [label]
    terms, values = list_where(connection, wanted, way.seq)
    columns = f"{key}, r.code, r.category, count(*), sum(r.cpu_ms), sum(r.memory * 1.0 * r.program_ms)"
    statement = Way(source, way.terms).select(columns, terms, is_ordered=False)
    rows: dict[str | None, UsageRow] = {}
    for name, code, category, jobs, cpu, memory in connection.execute(
        f"{statement} GROUP BY 1, 2", (*more, *way.values, *values)
    ):
        rows[name] = _add_use(rows.get(name) or _no_use(name or ""), code, category, (jobs, cpu or 0, memory or 0.0))
    return sorted(rows.values(), key=lambda row: (-row.cpu_hours, -row.jobs))[:count]


def _add_use(row: UsageRow, code: str, category: str, sums: tuple[int, int, float]) -> UsageRow:
    jobs, cpu_ms, byte_ms = sums
    gib, hour = GIB_HOURS
    is_ok = category == "ok"
    return UsageRow(
        key=row.key,
        jobs=row.jobs + jobs,
        ok=row.ok + (jobs if is_ok else 0),
        cpu_hours=row.cpu_hours + cpu_ms / hour,
        gib_hours=row.gib_hours + byte_ms / gib / hour,
        failures=row.failures if is_ok else {**row.failures, code: jobs},
    )


def _no_use(key: str) -> UsageRow:
    return UsageRow(key=key, jobs=0, ok=0, cpu_hours=0.0, gib_hours=0.0)


def _list_failed(wanted: HistoryFilter, way: Way) -> tuple[list[str], list[Any]]:
    """Return the conditions of failures and their values; those of time by the end, as in the index."""
    found = [*list_terms(wanted, way.seq)]
    if wanted.since is not None:
        found.append(("r.ended >= ?", (wanted.since * MILLI,)))
    if wanted.until is not None:
        found.append(("r.ended <= ?", (wanted.until * MILLI,)))
    terms = [term for term, _ in found] + ([] if way is _FAILED else ["r.category <> 'ok'"])
    return terms, [value for _, values in found for value in values]


def _find_times(connection: sqlite3.Connection, wanted: HistoryFilter) -> tuple[int, int]:
    """Return the first and the last millisecond that the failures are of."""
    oldest = connection.execute("SELECT ended FROM run ORDER BY seq LIMIT 1").fetchone()
    now = round(time.time() * MILLI)
    first = (oldest[0] if oldest else now) if wanted.since is None else round(wanted.since * MILLI)
    return first, max(first, now if wanted.until is None else round(wanted.until * MILLI))


def _describe(connection: sqlite3.Connection, group: _Group) -> FailureGroup:
    """Return a group with the facts of its newest failure."""
    code, category, message, fingerprint, image, job_id = connection.execute(
        "SELECT code, category, message, fingerprint, image, job_id FROM run WHERE seq = ?", (group.newest,)
    ).fetchone()
    return FailureGroup(
        code=code,
        category=category,
        message=message or "",
        fingerprint=fingerprint or "",
        image=image or "",
        count=group.count,
        hosts=len(group.hosts),
        batches=len(group.batches),
        first=group.first / MILLI,
        last=group.last / MILLI,
        example=job_id,
        top_host=group.hosts.most_common(1)[0][0] if group.hosts else "",
        top_batch=group.batches.most_common(1)[0][0] if group.batches else "",
        trend=tuple(group.trend),
    )
