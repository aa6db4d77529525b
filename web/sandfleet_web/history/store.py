"""`HistoryStore`: what the writer does to the file; each change is one transaction with its counts."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from sandfleet.history.statements import find_seq
from sandfleet_config.ended_run import cut_name

from sandfleet_web.history.counts import add_counts, drop_counts, forget_counts
from sandfleet_web.history.rows import COLUMNS, MILLI, OK, count_use, to_facts, to_row

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Generator, Sequence

    from sandfleet_web.history.rows import NewRow

PORTION: Final = 1000
"""Rows that one transaction deletes: some ten ms, in which nothing is stored."""
COUNTS: Final = ("seq", "ended", "rows", "ok_rows", "labels", "pruned_seq")
"""The parts of a position that are counts of the file, not the place in the stream."""
MAX_LABELS_PER_ROW: Final = 4
"""Labels of all runs are at most so many for each row that may be there."""
_INSERT: Final = (
    f"INSERT INTO run ({', '.join(COLUMNS)}) VALUES ({', '.join('?' * len(COLUMNS))}) ON CONFLICT DO NOTHING"  # noqa: S608
)


@dataclass(frozen=True)
class Position:
    """How far the stream is stored, and what was counted on the way; kept in the file.

    `stream_id` is the last entry's, `number` its run's, -1 before the first; `seq` is the newest
    row's, `ended` when it ended (ms). `redis` and `redis_run` are the server, and its run since its
    start. `lost_ms` is when the newest of the lost runs were missed. `forgotten_ms` is the time of
    the last forgotten batch that is done, `pruned_seq` the row up to which those that ended OK are
    deleted.
    """

    stream_id: str = "0-0"
    number: int = -1
    lost: int = 0
    lost_ms: int = 0
    skipped: int = 0
    seq: int = 0
    ended: int = 0
    rows: int = 0
    ok_rows: int = 0
    labels: int = 0
    redis: str = ""
    redis_run: str = ""
    forgotten_ms: int = 0
    pruned_seq: int = 0


class HistoryStore:
    """The file's one writing connection. Each method may raise `sqlite3.Error`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def read_position(self) -> Position:
        """Return how far the stream is stored."""
        names = Position.__dataclass_fields__
        found = {
            name: value for name, value in self._connection.execute("SELECT name, value FROM meta") if name in names
        }
        return Position(**found)

    def add(self, position: Position, new: Sequence[NewRow]) -> Position:
        """Store rows, and where in the stream `position` is; return the whole as it is stored.

        A run that is there already is replaced, and not counted again.
        """
        with self._transaction() as stored:
            known = {name: getattr(stored, name) for name in COUNTS}
            position = replace(position, **known)
            counted: list[tuple[int, NewRow]] = []
            for row in new:
                # Invariant of the file: who ended later has a greater `seq`, whatever the clock did.
                ended = max(row.ended, position.ended)
                position = replace(position, seq=position.seq + 1, ended=ended)
                position, is_new = self._insert(position, row._replace(ended=ended))
                if is_new:
                    counted.append((position.seq, row._replace(ended=ended)))
            add_counts(self._connection, counted)
            self._save(position)
        return position

    def forget_batch(self, batch: str, until_ms: int) -> bool:
        """Delete a portion of the runs of a batch that ended by then; return whether more are left."""
        with self._transaction() as position:
            statement = "SELECT seq FROM run INDEXED BY run_batch WHERE batch = ? AND ended <= ? LIMIT ?"
            name = cut_name(batch)
            seqs = [seq for (seq,) in self._connection.execute(statement, (name, until_ms, PORTION))]
            forget_counts(self._connection, name, until_ms, seqs)
            self._save(self._delete(position, seqs))
        return len(seqs) == PORTION

    def prune(self, *, ok_before: float, before: float, max_rows: int) -> bool:
        """Delete a portion of what is too old or too many; return whether more is left.

        Runs that ended OK go before `ok_before`, others before `before` (unix times). Of too many,
        the oldest that ended OK go first, as long as these are more than half of all.
        """
        with self._transaction() as stored:
            last = find_seq(self._connection, ok_before * MILLI)
            seqs = self._find_ok(stored, last)
            done = seqs[-1] if len(seqs) == PORTION else max(stored.pruned_seq, last - 1)
            position = replace(stored, pruned_seq=done)
            if not seqs:
                seqs = self._find_oldest(find_seq(self._connection, before * MILLI), PORTION)
            if not seqs:
                position, seqs = self._find_excess(position, max_rows)
            drop_counts(self._connection, before * MILLI, ok_before * MILLI)
            self._save(self._delete(position, seqs))
        return len(seqs) == PORTION

    @contextmanager
    def _transaction(self) -> Generator[Position]:
        """Open a transaction and yield the position.

        It is read again: a process that prunes may have changed the counts.
        """
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self.read_position()
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _save(self, position: Position) -> None:
        self._connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", asdict(position).items())

    def _insert(self, position: Position, new: NewRow) -> tuple[Position, bool]:
        """Store one row; return whether the run was not there."""
        values, run = to_row(position.seq, new), new.run
        is_new = self._connection.execute(_INSERT, values).rowcount == 1
        if not is_new:
            seq, number, code = self._connection.execute(
                "SELECT seq, number, code FROM run WHERE job_id = ? AND run = ?", (run.job_id, run.run)
            ).fetchone()
            if (number, code) == (new.number, run.code):
                return position, False  # the same entry, read again
            position = self._delete(position, [seq])
            self._connection.execute(_INSERT, values)
        self._connection.execute("INSERT INTO detail VALUES (?, ?)", (position.seq, to_facts(run)))
        use = (run.code, *count_use(new))
        labels = [(key, value, position.seq, *use) for key, value in run.labels.items()]
        if labels:
            self._connection.executemany("INSERT INTO label VALUES (?, ?, ?, ?, ?, ?)", labels)
        if run.run > 1:
            self._connection.execute("UPDATE run SET is_newest = 0 WHERE job_id = ? AND run < ?", (run.job_id, run.run))
        ok_rows, all_labels = position.ok_rows + new.is_ok, position.labels + len(labels)
        return replace(position, rows=position.rows + 1, ok_rows=ok_rows, labels=all_labels), is_new

    def _delete(self, position: Position, seqs: Sequence[int]) -> Position:
        """Delete rows with their labels and facts; return the position with the counts after it."""
        labels, ok = 0, 0
        for seq in seqs:
            found = self._connection.execute(
                "SELECT facts, category FROM detail JOIN run USING (seq) WHERE seq = ?", (seq,)
            ).fetchone()
            if found is None:
                continue
            kept: dict[str, Any] = json.loads(found[0]).get("labels", {})
            self._connection.executemany(
                "DELETE FROM label WHERE k = ? AND v = ? AND seq = ?",
                [(key, value, seq) for key, value in kept.items()],
            )
            labels, ok = labels + len(kept), ok + (found[1] == OK)
        rows = [(seq,) for seq in seqs]
        self._connection.executemany("DELETE FROM detail WHERE seq = ?", rows)
        self._connection.executemany("DELETE FROM run WHERE seq = ?", rows)
        left = position.rows - len(seqs)
        return replace(position, rows=left, ok_rows=position.ok_rows - ok, labels=position.labels - labels)

    def _find_ok(self, position: Position, before_seq: int, count: int = PORTION) -> list[int]:
        statement = "SELECT seq FROM run WHERE seq > ? AND seq < ? AND category = ? ORDER BY seq LIMIT ?"
        return [seq for (seq,) in self._connection.execute(statement, (position.pruned_seq, before_seq, OK, count))]

    def _find_oldest(self, before_seq: int, count: int) -> list[int]:
        statement = "SELECT seq FROM run WHERE seq < ? ORDER BY seq LIMIT ?"
        return [seq for (seq,) in self._connection.execute(statement, (before_seq, count))]

    def _find_excess(self, position: Position, max_rows: int) -> tuple[Position, list[int]]:
        excess = position.rows - max_rows
        if excess <= 0:
            excess = (position.labels - MAX_LABELS_PER_ROW * max_rows) // MAX_LABELS_PER_ROW
        count = max(0, min(excess, PORTION))
        if not count:
            return position, []
        if position.ok_rows > max_rows // 2:
            seqs = self._find_ok(position, position.seq + 1, count)
            return (replace(position, pruned_seq=seqs[-1]) if seqs else position), seqs
        return position, self._find_oldest(position.seq + 1, count)
