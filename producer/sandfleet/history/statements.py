"""The conditions of a filter in SQL, and the way in which SQLite finds the rows that meet them.

Invariant of the file: a run that ended later has a greater `seq`. A time is thus a bound of `seq`,
and the newest end first is the order of the table itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sandfleet_config.ended_run import cut_name

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

    from sandfleet.history.questions import HistoryFilter

FEW_ROWS: Final = 20_000
"""An index that finds more rows is slower than reading the table: each row is one search."""
MILLI: Final = 1000
HOUR_MS: Final = 3600 * MILLI


@dataclass(frozen=True)
class Way:
    """Where a query finds its rows: a part of FROM, which has `terms` of its own."""

    source: str
    terms: Sequence[str] = ()
    values: Sequence[Any] = ()
    seq: str = "r.seq"

    def select(self, columns: str, terms: Sequence[str], *, is_ordered: bool = True) -> str:
        """Return a statement without its LIMIT; the newest end comes first if it `is_ordered`."""
        where = " AND ".join((*self.terms, *terms)) or "1"
        order = f" ORDER BY {self.seq} DESC" if is_ordered else ""
        return f"SELECT {columns} FROM {self.source} WHERE {where}{order}"  # noqa: S608  no value is in it


SCAN: Final = Way("run r NOT INDEXED")
_INDEXED: Final = {
    "job_id": "run_job",
    "batch": "run_batch",
    "fingerprint": "run_fingerprint",
    "host": "run_host",
    "image": "run_image",
}


def list_terms(wanted: HistoryFilter, seq: str = "r.seq") -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield each condition with its values, but those of time."""
    for name, value in list_equal(wanted):
        yield f"r.{name} = ?", (value,)
    if wanted.exit_code is not None:
        yield "r.exit_code = ?", (wanted.exit_code,)
    yield from list_coded(wanted)
    if wanted.min_attempts > 1:
        yield "r.attempts >= ?", (wanted.min_attempts,)
    elif wanted.min_attempts:
        yield "r.attempts >= 1", ()
    if wanted.min_seconds > 0:
        yield "r.run_ms >= ?", (wanted.min_seconds * MILLI,)
    if wanted.is_newest:
        yield "r.is_newest", ()
    for key, value in wanted.labels.items():
        yield f"EXISTS (SELECT 1 FROM label WHERE k = ? AND v = ? AND seq = {seq})", (key, value)  # noqa: S608  no value
    if wanted.text:
        pattern = f"%{escape_like(wanted.text)}%"
        yield r"(r.line LIKE ? ESCAPE '\' OR r.message LIKE ? ESCAPE '\')", (pattern, pattern)


def list_coded(wanted: HistoryFilter, table: str = "r.") -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield the condition of the codes and categories, if there is one."""
    codes, categories = sorted(wanted.codes), sorted(wanted.categories)
    either = [f"{table}code IN ({_places(codes)})"] if codes else []
    either += [f"{table}category IN ({_places(categories)})"] if categories else []
    if either:
        yield f"({' OR '.join(either)})", (*map(str, codes), *map(str, categories))


def list_where(
    connection: sqlite3.Connection, wanted: HistoryFilter, seq: str, before: int | None = None
) -> tuple[list[str], list[Any]]:
    """Return the conditions, those of time included, and their values."""
    terms: list[str] = []
    values: list[Any] = []
    for term, more in list_terms(wanted, seq):
        terms.append(term)
        values.extend(more)
    if wanted.since is not None:
        terms.append(f"{seq} >= ?")
        values.append(find_seq(connection, wanted.since * MILLI))
    if wanted.until is not None:
        terms.append(f"{seq} < ?")
        values.append(find_seq(connection, wanted.until * MILLI + 1))
    if before is not None:
        terms.append(f"{seq} < ?")
        values.append(before)
    return terms, values


def list_equal(wanted: HistoryFilter) -> list[tuple[str, str]]:
    """Return columns and the values that they must have, as the file has them."""
    found = {
        "job_id": wanted.job_id,
        "batch": cut_name(wanted.batch),
        "fingerprint": wanted.fingerprint,
        "host": cut_name(wanted.host),
        "image": cut_name(wanted.image),
        "queue": cut_name(wanted.queue),
    }
    return [(name, value) for name, value in found.items() if value]


def choose_way(connection: sqlite3.Connection, wanted: HistoryFilter) -> Way:
    """Return the index that finds the fewest rows, if they are few; else the table.

    Counting up to `FEW_ROWS` entries of an index takes a millisecond.
    """
    best, least = SCAN, FEW_ROWS
    for way, statement, values in _list_ways(wanted):
        count: int = connection.execute(f"{statement} LIMIT {least + 1})", values).fetchone()[0]
        if count <= least:
            best, least = way, count
    return best


def _list_ways(wanted: HistoryFilter) -> Iterator[tuple[Way, str, Sequence[Any]]]:
    count = "SELECT count(*) FROM (SELECT 1 FROM"
    for name, value in list_equal(wanted):
        if index := _INDEXED.get(name):
            way = Way(f"run r INDEXED BY {index}")
            yield way, f"{count} run INDEXED BY {index} WHERE {name} = ?", (value,)
    for key, value in wanted.labels.items():
        way = Way("label l CROSS JOIN run r ON r.seq = l.seq", ("l.k = ? AND l.v = ?",), (key, value), "l.seq")
        yield way, f"{count} label WHERE k = ? AND v = ?", (key, value)


def find_seq(connection: sqlite3.Connection, ended_ms: float) -> int:
    """Return the least `seq` of a run that ended at `ended_ms` or later, or the one after the last."""
    # Apart: SQLite reads the whole table for the two in one SELECT.
    low: int = connection.execute("SELECT ifnull(min(seq), 0) FROM run").fetchone()[0]
    high: int = connection.execute("SELECT ifnull(max(seq), 0) + 1 FROM run").fetchone()[0]
    while low < high:
        middle = (low + high) // 2
        seq, ended = connection.execute(
            "SELECT seq, ended FROM run WHERE seq >= ? ORDER BY seq LIMIT 1", (middle,)
        ).fetchone() or (high, ended_ms)
        if ended >= ended_ms:
            high = middle
        else:
            low = seq + 1
    return low


def escape_like(text: str) -> str:
    r"""Return `text` for a LIKE that has the escape ``\``."""
    return text.replace("\\", r"\\").replace("%", r"\%").replace("_", r"\_")


def _places(values: Sequence[object]) -> str:
    return ",".join("?" * len(values))
