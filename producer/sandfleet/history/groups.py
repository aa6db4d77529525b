"""Groups of failures. Hours are counted in the file; what is less than an hour is read from the rows."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from sandfleet.history.questions import FailureGroup, FailureKey, HistoryFilter
from sandfleet.history.statements import HOUR_MS, MILLI, SCAN, Way, choose_way, list_coded, list_terms

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

TREND_PARTS: Final = 24
MAX_GROUPS: Final = 500
LEAST_HOURS: Final = 6
"""A shorter time is read from the rows, which have it to the ms."""
_FAILED: Final = Way("run r INDEXED BY run_failed", ("r.category <> 'ok'",))
"""An index of the failures alone, by time, with all that a group needs."""
_ROW_KEYS: Final[dict[FailureKey, str]] = {
    "fingerprint": "r.fingerprint, ifnull(r.image, '')",
    "code": "r.code, ''",
    "image": "ifnull(r.image, ''), ''",
    "host": "ifnull(r.host, ''), ''",
    "batch": "ifnull(r.batch, ''), ''",
}
_HOUR_KEYS: Final[dict[FailureKey, str]] = {
    "fingerprint": "fingerprint, image",
    "code": "code, ''",
    "image": "image, ''",
}
_Key = tuple[str, str]


@dataclass
class _Group:
    count: int = 0
    first: int = 1 << 62
    last: int = 0
    newest: int = 0
    hosts: Counter[str] = field(default_factory=Counter[str])
    batches: Counter[str] = field(default_factory=Counter[str])
    trend: list[int] = field(default_factory=lambda: [0] * TREND_PARTS)

    def add(self, part: int, count: int, first: int, last: int, newest: int) -> None:
        """Add failures of a part of the time."""
        self.count += count
        self.first, self.last = min(self.first, first), max(self.last, last)
        self.newest = max(self.newest, newest)
        self.trend[min(max(part, 0), TREND_PARTS - 1)] += count


class _Groups(dict[_Key, _Group]):
    def __missing__(self, key: _Key) -> _Group:
        self[key] = _Group()
        return self[key]


def group_failures(
    connection: sqlite3.Connection, wanted: HistoryFilter, by: FailureKey, count: int
) -> list[FailureGroup]:
    """Group the runs that match and did not end OK, the largest group first.

    Without conditions that the counts of hours lack, whole hours come from them: their part of the
    trend is then right to half an hour.
    """
    first, last = _find_times(connection, wanted)
    groups = _Groups()
    hours = range(-(-first // HOUR_MS), last // HOUR_MS)
    if by in _HOUR_KEYS and len(hours) >= LEAST_HOURS and _is_counted(wanted):
        _add_hours(connection, groups, wanted, by, (hours, first, last))
        _add_rows(connection, groups, wanted, by, (first, hours.start * HOUR_MS - 1, first, last))
        _add_rows(connection, groups, wanted, by, (hours.stop * HOUR_MS, last, first, last))
    else:
        _add_rows(connection, groups, wanted, by, (first, last, first, last))
    largest = sorted(groups.items(), key=lambda item: (-item[1].count, -item[1].newest))
    found = (_describe(connection, by, key, group) for key, group in largest if group.count > 0)
    return [group for group, _ in zip((one for one in found if one), range(min(count, MAX_GROUPS)), strict=False)]


def _is_counted(wanted: HistoryFilter) -> bool:
    """Whether the counts of hours have all that the filter asks for."""
    plain = replace(wanted, since=None, until=None, codes=frozenset(), categories=frozenset(), fingerprint="", image="")
    return plain == HistoryFilter()


def _find_part(at: int, first: int, last: int) -> int:
    return (at - first) * TREND_PARTS // max(1, last - first + 1)


def _add_hours(
    connection: sqlite3.Connection, groups: _Groups, wanted: HistoryFilter, by: FailureKey, when: tuple[range, int, int]
) -> None:
    hours, first, last = when
    terms = [("hour >= ? AND hour < ?", (hours.start, hours.stop)), *list_coded(wanted, "")]
    terms += [(f"{name} = ?", (value,)) for name in ("fingerprint", "image") if (value := getattr(wanted, name))]
    where = " AND ".join(("kind = ?", *(term for term, _ in terms)))
    values = [value for _, found in terms for value in found]
    keys = _HOUR_KEYS[by]
    statement = f"SELECT {keys}, hour, sum(count), min(first), max(last), max(newest) FROM failure WHERE {where} GROUP BY 1, 2, 3"  # noqa: S608
    for one, other, hour, *sums in connection.execute(statement, ("group", *values)):
        groups[one, other].add(_find_part(hour * HOUR_MS + HOUR_MS // 2, first, last), *sums)
    statement = f"SELECT {keys}, key, sum(count) FROM failure WHERE {where} GROUP BY 1, 2, 3"  # noqa: S608
    for kind, name in (("host", "hosts"), ("batch", "batches")):
        for one, other, key, count in connection.execute(statement, (kind, *values)):
            if count > 0:
                getattr(groups[one, other], name)[key] += count


def _add_rows(
    connection: sqlite3.Connection,
    groups: _Groups,
    wanted: HistoryFilter,
    by: FailureKey,
    when: tuple[int, int, int, int],
) -> None:
    """Add the failures from the rows. `when` are the first and the last ms of these, and of all."""
    since, until, first, last = when
    if until < since:
        return
    way = choose_way(connection, wanted)
    way = _FAILED if way is SCAN else way
    found = [*list_terms(wanted, way.seq), ("r.ended >= ? AND r.ended <= ?", (since, until))]
    terms = [term for term, _ in found] + ([] if way is _FAILED else ["r.category <> 'ok'"])
    values = [value for _, more in found for value in more]
    part = f"(r.ended - ?) * {TREND_PARTS} / ?"
    columns = f"{_ROW_KEYS[by]}, ifnull(r.host, ''), ifnull(r.batch, ''), {part}"
    statement = way.select(f"{columns}, count(*), min(r.ended), max(r.ended), max(r.seq)", terms, is_ordered=False)
    arguments = (first, max(1, last - first + 1), *way.values, *values)
    for one, other, host, batch, place, *sums in connection.execute(f"{statement} GROUP BY 1, 2, 3, 4, 5", arguments):
        group = groups[one, other]
        group.add(place, *sums)
        group.hosts.update({host: sums[0]} if host else {})
        group.batches.update({batch: sums[0]} if batch else {})


def _find_times(connection: sqlite3.Connection, wanted: HistoryFilter) -> tuple[int, int]:
    """Return the first and the last ms that the failures are of."""
    oldest = connection.execute("SELECT ended FROM run ORDER BY seq LIMIT 1").fetchone()
    newest = connection.execute("SELECT ended FROM run ORDER BY seq DESC LIMIT 1").fetchone()
    now = max(round(time.time() * MILLI), newest[0] if newest else 0)
    first = (oldest[0] if oldest else now) if wanted.since is None else -int(-wanted.since * MILLI // 1)
    last = now if wanted.until is None else min(now, int(wanted.until * MILLI // 1))
    return first, max(first, last)


_FACTS: Final = "code, category, message, fingerprint, image, job_id"


def _describe(connection: sqlite3.Connection, by: FailureKey, key: _Key, group: _Group) -> FailureGroup | None:
    """Return a group with the facts of its newest failure; None if no row of it is left."""
    row: Sequence[Any] | None = connection.execute(
        f"SELECT {_FACTS} FROM run WHERE seq = ?",  # noqa: S608
        (group.newest,),
    ).fetchone() or next(_find_others(connection, by, key), None)
    if row is None:
        return None
    code, category, message, fingerprint, image, job_id = row
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


def _find_others(connection: sqlite3.Connection, by: FailureKey, key: _Key) -> Iterator[Sequence[Any]]:
    """Yield the newest failure of a group whose newest one was pruned."""
    if by == "fingerprint":
        statement = (
            f"SELECT {_FACTS} FROM run WHERE fingerprint = ? AND ifnull(image, '') = ? ORDER BY seq DESC LIMIT 1"  # noqa: S608
        )
        yield from connection.execute(statement, key)
