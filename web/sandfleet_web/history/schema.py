"""The tables of the history file, and how a file is opened, brought forward or put aside."""

from __future__ import annotations

import logging
import sqlite3
import time
from contextlib import closing
from typing import TYPE_CHECKING, Final

from sandfleet.history.open_file import SCHEMA_VERSION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_log = logging.getLogger(__name__)

TABLES: Final = """
CREATE TABLE meta (name TEXT PRIMARY KEY, value) WITHOUT ROWID;
-- One row for each run. Invariant: a row with a greater `seq` does not have an earlier `ended`.
-- Times and durations are ms. `run_ms` is the last attempt's, `program_ms` the program's.
CREATE TABLE run (
  seq INTEGER PRIMARY KEY, number INTEGER NOT NULL, ended INTEGER NOT NULL, is_newest INTEGER NOT NULL,
  run INTEGER NOT NULL, attempts INTEGER NOT NULL, run_ms INTEGER NOT NULL, exit_code INTEGER,
  category TEXT NOT NULL, code TEXT NOT NULL, queue TEXT, host TEXT, image TEXT, batch TEXT, fingerprint TEXT,
  cpu_ms INTEGER, memory INTEGER, program_ms INTEGER NOT NULL, started INTEGER, submitted INTEGER,
  job_id TEXT NOT NULL, line TEXT, message TEXT
);
CREATE UNIQUE INDEX run_job ON run (job_id, run);
CREATE INDEX run_batch ON run (batch) WHERE batch IS NOT NULL;
CREATE INDEX run_host ON run (host) WHERE host IS NOT NULL;
CREATE INDEX run_image ON run (image) WHERE image IS NOT NULL;
CREATE INDEX run_fingerprint ON run (fingerprint) WHERE fingerprint IS NOT NULL;
CREATE INDEX run_failed ON run (ended, fingerprint, code, image, host, batch, category, queue, exit_code)
  WHERE category <> 'ok';
-- What a run is not searched by, as JSON.
CREATE TABLE detail (seq INTEGER PRIMARY KEY, facts TEXT NOT NULL);
-- Labels, with what the use of a label is summed from.
CREATE TABLE label (
  k TEXT, v TEXT, seq INTEGER, code TEXT, cpu_ms INTEGER, byte_ms REAL, PRIMARY KEY (k, v, seq)
) WITHOUT ROWID;
-- Ended runs of a minute by `key` of a `kind`: category, code, queue, host or image; and their tries by
-- host, of the kinds tries and failed_tries.
CREATE TABLE minute (
  kind TEXT, at INTEGER, key TEXT, count INTEGER, attempts INTEGER, queued_ms INTEGER, run_ms INTEGER,
  PRIMARY KEY (kind, at, key)
) WITHOUT ROWID;
-- Failures of an hour: of a `kind` group (`key` is empty), host or batch. `newest` is a `seq`.
CREATE TABLE failure (
  kind TEXT, hour INTEGER, fingerprint TEXT, image TEXT, key TEXT, code TEXT, category TEXT, count INTEGER,
  first INTEGER, last INTEGER, newest INTEGER, PRIMARY KEY (kind, hour, fingerprint, image, key)
) WITHOUT ROWID;
-- Use of an hour by batch and code.
CREATE TABLE usage (
  hour INTEGER, batch TEXT, code TEXT, category TEXT, jobs INTEGER, cpu_ms INTEGER, byte_ms REAL,
  PRIMARY KEY (hour, batch, code)
) WITHOUT ROWID;
"""
STEPS: Final[Mapping[int, Sequence[str]]] = {}
"""Statements that bring a file of a version to the next one. Version 1 is the first."""
DAMAGED: Final = frozenset((sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB))
BUSY_SECONDS: Final = 10.0
JOURNAL_BYTES: Final = 64 << 20
PRIMARY_CODE: Final = 0xFF
"""The bits of an error code that say its kind; the others say more of it."""


class NewerFile(Exception):
    """The file was written by a newer release, which alone may go on with it."""


def is_damaged(error: sqlite3.Error) -> bool:
    """Whether the error says that the file is no database, or a damaged one."""
    return getattr(error, "sqlite_errorcode", 0) & PRIMARY_CODE in DAMAGED


def open_for_writing(path: Path) -> sqlite3.Connection:
    """Open the file, make it if it is not there, and bring it to this release's version.

    A damaged one is put aside, and another begun.

    Raises:
        NewerFile: a newer release wrote it.
        sqlite3.Error or OSError: it cannot be opened.
    """
    path.parent.mkdir(mode=0o750, parents=True, exist_ok=True)
    if not path.exists():
        _make(path, "")
    try:
        connection = _connect(path)
    except sqlite3.DatabaseError as error:
        if not is_damaged(error):
            raise
        begin_anew(path, error)
        connection = _connect(path)
    try:
        _bring_forward(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _make(path: Path, note: str) -> None:
    """Make the file with its tables under another name first, so that nobody reads one without."""
    new = path.with_name(f"{path.name}.new")
    for suffix in ("", "-wal", "-shm", "-journal"):
        new.with_name(f"{new.name}{suffix}").unlink(missing_ok=True)
    with closing(sqlite3.connect(new, isolation_level=None)) as connection:
        new.chmod(0o640)  # command lines and labels are not for every user of the host
        connection.executescript(
            f"PRAGMA journal_mode=WAL; BEGIN; {TABLES} PRAGMA user_version={SCHEMA_VERSION}; COMMIT;"
        )
        connection.executemany("INSERT INTO meta VALUES (?, ?)", [("begun", time.time()), ("note", note)])
    new.replace(path)


def begin_anew(path: Path, error: sqlite3.Error) -> None:
    """Rename a damaged file, and make another that says so. An earlier damaged one is replaced."""
    aside = path.with_name(f"{path.name}.damaged")
    for suffix in ("-wal", "-shm"):
        path.with_name(f"{path.name}{suffix}").unlink(missing_ok=True)
    path.replace(aside)
    day = time.strftime("%Y-%m-%d %H:%M", time.gmtime())
    note = f"{day} UTC: the file was damaged ({error}) and is now {aside}; the history was begun anew"
    _log.error("%s", note, extra={"action": "history_damaged"})
    _make(path, note)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA secure_delete=FAST")  # of forgotten batches nothing stays in free pages
        connection.execute(f"PRAGMA journal_size_limit={JOURNAL_BYTES}")
        connection.execute("SELECT count(*), (SELECT max(seq) FROM run) FROM meta").fetchone()
    except BaseException:
        connection.close()
        raise
    return connection


def _bring_forward(connection: sqlite3.Connection, path: Path) -> None:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise NewerFile(
            f"the history {path} has format {version}, this release writes {SCHEMA_VERSION}: bring this one to the newer release"
        )
    for step in range(version, SCHEMA_VERSION):
        connection.executescript(f"BEGIN; {';'.join(STEPS[step])}; PRAGMA user_version={step + 1}; COMMIT;")
