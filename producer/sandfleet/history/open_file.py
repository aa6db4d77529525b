"""Connections that read the history file, while its writer writes it; each question has a deadline."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Final

from sandfleet.errors import HistoryUnavailable, QueryTooSlow
from sandfleet.history.questions import QUERY_SECONDS

if TYPE_CHECKING:
    from collections.abc import Generator
    from pathlib import Path

SCHEMA_VERSION: Final = 1
"""The version of the file's tables, its ``user_version``; the writer brings older ones forward."""
STEPS_BETWEEN_CHECKS: Final = 20_000
"""Instructions of SQLite between two looks at the clock: less than a millisecond."""
KEPT_CONNECTIONS: Final = 4
MAPPED_BYTES: Final = 4 << 30


class OpenFiles:
    """Connections to the file `path`. One question has a connection at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._free: list[tuple[tuple[int, int], sqlite3.Connection]] = []

    @contextmanager
    def reading(self, seconds: float = QUERY_SECONDS) -> Generator[sqlite3.Connection]:
        """Read one state of the file until the deadline.

        Raises:
            HistoryUnavailable: there is no file, or it cannot be read.
            QueryTooSlow: it took more than `seconds`.
        """
        key, connection = self._take()
        deadline = time.monotonic() + seconds
        connection.set_progress_handler(lambda: time.monotonic() > deadline, STEPS_BETWEEN_CHECKS)
        is_usable = False
        try:
            connection.execute("BEGIN")
            yield connection
            is_usable = True
        except sqlite3.Error as error:
            if error.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                is_usable = True
                raise QueryTooSlow(
                    f"the history has no answer within {seconds:g} s: narrow the time, or give a batch"
                ) from None
            raise HistoryUnavailable(f"the history {self._path} cannot be read: {error}") from error
        finally:
            connection.set_progress_handler(None, 0)
            self._give_back(key, connection, is_usable=is_usable)

    def count_bytes(self) -> int:
        """Return the bytes of the file and its journal."""
        paths = (self._path, self._path.with_name(f"{self._path.name}-wal"))
        return sum(path.stat().st_size for path in paths if path.exists())

    def close(self) -> None:
        """Close the connections that no question has."""
        with self._lock:
            free, self._free = self._free, []
        for _, connection in free:
            connection.close()

    def _take(self) -> tuple[tuple[int, int], sqlite3.Connection]:
        try:
            found = self._path.stat()
        except OSError as error:
            raise HistoryUnavailable(f"there is no history at {self._path}: {error.strerror}") from None
        key = (found.st_dev, found.st_ino)  # another file has its name now if a damaged one was put aside
        with self._lock:
            stale = [connection for known, connection in self._free if known != key]
            self._free = [item for item in self._free if item[0] == key]
            connection = self._free.pop()[1] if self._free else None
        for other in stale:
            other.close()
        return key, connection or _open(self._path)

    def _give_back(self, key: tuple[int, int], connection: sqlite3.Connection, *, is_usable: bool) -> None:
        try:
            connection.rollback()
        except sqlite3.Error:
            is_usable = False
        with self._lock:
            if is_usable and len(self._free) < KEPT_CONNECTIONS:
                self._free.append((key, connection))
                return
        connection.close()


def _open(path: Path) -> sqlite3.Connection:
    """Open the file read only.

    Raises:
        HistoryUnavailable: it cannot be opened, or has tables of another release.
    """
    # Without its writer a file in WAL mode has no -shm; who may not make it reads the file as it is.
    has_journal = path.with_name(f"{path.name}-wal").exists()
    is_frozen = not has_journal and not os.access(path.parent, os.W_OK)
    try:
        connection = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if is_frozen else ''}",
            uri=True,
            isolation_level=None,
            check_same_thread=False,
            timeout=QUERY_SECONDS,
        )
    except sqlite3.Error as error:
        raise HistoryUnavailable(f"the history {path} cannot be opened: {error}") from error
    try:
        connection.execute(f"PRAGMA mmap_size={MAPPED_BYTES}")
        connection.execute("PRAGMA query_only=1")
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    except sqlite3.Error as error:
        with closing(connection):
            raise HistoryUnavailable(f"the history {path} cannot be read: {error}") from error
    if version != SCHEMA_VERSION:
        connection.close()
        raise HistoryUnavailable(
            f"the history {path} has format {version}, this release reads {SCHEMA_VERSION}: bring both to one release"
        )
    return connection
