"""Counts that the file keeps beside its rows, so that sums of a day take no time.

Of each minute by category, code, queue, host and image, and the tries by host; of each hour the
failures of each kind, and the use of each batch. They stay when rows are pruned, as long as failures
are kept; those of tries as long as runs that ended OK.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Final

from sandfleet_web.history.rows import (
    KINDS,
    MILLI,
    TRIES,
    count_times,
    count_use,
    list_counted,
    list_tries,
    to_fingerprint,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Sequence

    from sandfleet_web.history.rows import NewRow

MAX_KEYS: Final = 200
"""Keys of a kind that are counted in a minute; the rest count as `OTHER`."""
MAX_TRY_HOSTS: Final = 1000
"""Hosts whose tries are counted in a minute: all that the pages show."""
MAX_GROUPS: Final = 1000
"""Kinds of failures that are counted in an hour; of the rest only the rows are there."""
MAX_GROUP_KEYS: Final = 20_000
"""Hosts, or batches, of all kinds of failures of an hour."""
MAX_BATCHES: Final = 10_000
"""Batches whose use is counted in an hour; the rest count as `OTHER`."""
FAILURE_KINDS: Final = ("group", "host", "batch")
OTHER: Final = "(other)"
MINUTE: Final = 60 * MILLI
HOUR: Final = 60 * MINUTE
_COUNT: Final = """
INSERT INTO minute VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count,
attempts = attempts + excluded.attempts, queued_ms = queued_ms + excluded.queued_ms, run_ms = run_ms + excluded.run_ms
"""
_FAIL: Final = """
INSERT INTO failure VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET count = count + excluded.count,
first = min(first, excluded.first), last = max(last, excluded.last), newest = max(newest, excluded.newest)
"""
_USE: Final = """
INSERT INTO usage VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET jobs = jobs + excluded.jobs,
cpu_ms = cpu_ms + excluded.cpu_ms, byte_ms = byte_ms + excluded.byte_ms
"""
_UNFAIL: Final = f"""
UPDATE failure SET count = failure.count - 1 FROM (SELECT ended, fingerprint, image, host FROM run WHERE seq = ?) r
WHERE failure.hour = r.ended / {HOUR} AND failure.fingerprint = r.fingerprint AND failure.image = ifnull(r.image, '')
AND ((failure.kind = 'group' AND failure.key = '') OR (failure.kind = 'host' AND failure.key = ifnull(r.host, '')))
"""  # noqa: S608  no value is in it


def add_counts(connection: sqlite3.Connection, new: Sequence[tuple[int, NewRow]]) -> None:
    """Count runs, each with its `seq`."""
    _count_minutes(connection, [row for _, row in new])
    _count_failures(connection, [(seq, row) for seq, row in new if not row.is_ok])
    _count_use(connection, [row for _, row in new])


def drop_counts(connection: sqlite3.Connection, before_ms: float, tries_before_ms: float) -> None:
    """Delete the counts of minutes and hours before a time, those of tries before another."""
    minutes = [(kind, int(before_ms // MINUTE)) for kind in KINDS]
    minutes += [(kind, int(tries_before_ms // MINUTE)) for kind in TRIES]
    connection.executemany("DELETE FROM minute WHERE kind = ? AND at < ?", minutes)
    hour = int(before_ms // HOUR)
    connection.executemany("DELETE FROM failure WHERE kind = ? AND hour < ?", [(kind, hour) for kind in FAILURE_KINDS])
    connection.execute("DELETE FROM usage WHERE hour < ?", (hour,))


def forget_counts(connection: sqlite3.Connection, batch: str, until_ms: int, seqs: Iterable[int]) -> None:
    """Take runs of a forgotten batch out of the counts that name batches; call it before they go."""
    hour = until_ms // HOUR
    connection.execute("DELETE FROM usage WHERE batch = ? AND hour <= ?", (batch, hour))
    connection.execute("DELETE FROM failure WHERE kind = 'batch' AND hour <= ? AND key = ?", (hour, batch))
    connection.executemany(_UNFAIL, [(seq,) for seq in seqs])


def _count_minutes(connection: sqlite3.Connection, new: Iterable[NewRow]) -> None:
    sums: dict[tuple[str, int, str], Counter[int]] = {}
    for row in new:
        values = dict(enumerate((1, *count_times(row))))
        for kind, key in list_counted(row):
            sums.setdefault((kind, row.ended // MINUTE, key), Counter()).update(values)
        for kind, host in list_tries(row):
            sums.setdefault((kind, row.ended // MINUTE, host), Counter()).update({0: 1, 1: 1})
    known = {place: _read_keys(connection, *place) for place in {(kind, at) for kind, at, _ in sums}}
    rows: list[tuple[Any, ...]] = []
    for (kind, at, key), found in sums.items():
        name = _choose_key(known[kind, at], key, MAX_TRY_HOSTS if kind in TRIES else MAX_KEYS)
        rows.append((kind, at, name, *(found[place] for place in range(4))))
    connection.executemany(_COUNT, rows)


def _count_failures(connection: sqlite3.Connection, failed: Sequence[tuple[int, NewRow]]) -> None:
    hours = {row.ended // HOUR for _, row in failed}
    groups = {hour: _read_groups(connection, hour) for hour in hours}
    free = {hour: MAX_GROUP_KEYS - _count_group_keys(connection, hour) for hour in hours}
    rows: list[tuple[Any, ...]] = []
    for seq, row in failed:
        run, hour = row.run, row.ended // HOUR
        place = (to_fingerprint(row), run.image)
        if place not in groups[hour] and len(groups[hour]) >= MAX_GROUPS:
            continue
        groups[hour].add(place)
        free[hour] -= 1
        for kind, key in (("group", ""), ("host", run.host), ("batch", run.batch)):
            if kind == "group" or (key and free[hour] > 0):
                rows.append((kind, hour, *place, key, run.code, run.category, 1, row.ended, row.ended, seq))
    connection.executemany(_FAIL, rows)


def _count_use(connection: sqlite3.Connection, new: Iterable[NewRow]) -> None:
    sums: dict[tuple[int, str, str, str], list[float]] = {}
    for row in new:
        cpu, bytes_ms = count_use(row)
        found = sums.setdefault((row.ended // HOUR, row.run.batch, row.run.code, row.run.category), [0, 0, 0.0])
        found[0], found[1], found[2] = found[0] + 1, found[1] + cpu, found[2] + bytes_ms
    known = {hour: _read_batches(connection, hour) for hour in {hour for hour, *_ in sums}}
    rows: list[tuple[Any, ...]] = []
    for (hour, batch, code, category), found in sums.items():
        rows.append((hour, _choose_key(known[hour], batch, MAX_BATCHES), code, category, *found))
    connection.executemany(_USE, rows)


def _choose_key(known: set[str], key: str, most: int) -> str:
    """Return the key under which it is counted, and note it."""
    if key not in known and len(known) >= most:
        return OTHER
    known.add(key)
    return key


def _read_keys(connection: sqlite3.Connection, kind: str, at: int) -> set[str]:
    found = connection.execute("SELECT key FROM minute WHERE kind = ? AND at = ?", (kind, at))
    return {key for (key,) in found}


def _read_groups(connection: sqlite3.Connection, hour: int) -> set[tuple[str, str]]:
    statement = "SELECT fingerprint, image FROM failure WHERE kind = 'group' AND hour = ?"
    return set(connection.execute(statement, (hour,)).fetchall())


def _count_group_keys(connection: sqlite3.Connection, hour: int) -> int:
    statement = "SELECT count(*) FROM failure WHERE kind IN ('host', 'batch') AND hour = ?"
    found: int = connection.execute(statement, (hour,)).fetchone()[0]
    return found


def _read_batches(connection: sqlite3.Connection, hour: int) -> set[str]:
    return {batch for (batch,) in connection.execute("SELECT DISTINCT batch FROM usage WHERE hour = ?", (hour,))}
