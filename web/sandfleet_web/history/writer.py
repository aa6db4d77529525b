"""`HistoryWriter`: copies the stream of ended runs into the history file, in a thread of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from sandfleet.errors import FleetUnavailable
from sandfleet.history.heartbeat import Heartbeat

from sandfleet_web.history.lock import WriterLock
from sandfleet_web.history.schema import NewerFile, begin_anew, is_damaged, open_for_writing
from sandfleet_web.history.store import HistoryStore
from sandfleet_web.history.stream import RunStream, find_start, is_anew, note_forgotten, take_entries

if TYPE_CHECKING:
    from sandfleet_config.web_settings import HistorySettings, WebSettings

    from sandfleet_web.history.store import Position
    from sandfleet_web.history.stream import Chunk

POLL_SECONDS: Final = 0.25
LOCK_SECONDS: Final = 1.0
"""Pause of a process that waits until no other one writes the file."""
RETRY_SECONDS: Final = (0.5, 1.0, 2.0, 5.0)
STOP_SECONDS: Final = 10.0
PRUNE_SECONDS: Final = 10.0
PORTIONS_AT_ONCE: Final = 5
DAY: Final = 86400.0
MILLI: Final = 1000
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WriterStatus:
    """The state of a writer: it ``writes``, ``waits`` for another process, or has ``stopped``.

    `fault` says what stops it for now; runs wait in Redis meanwhile.
    """

    state: str = "stopped"
    fault: str = ""


class HistoryWriter:
    """The one writer of the history file, or the next one: a second process waits for its lock.

    Neither Redis nor a full disk nor a damaged file ends it: it says what is wrong and tries again.
    """

    def __init__(self, settings: WebSettings) -> None:
        self._settings, self._path = settings.web.history, settings.history_file
        self._stream = RunStream(settings)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock: WriterLock | None = None
        self._store: HistoryStore | None = None
        self._damage: sqlite3.Error | None = None
        self._forgotten: dict[str, int] = {}
        self._forgotten_ms = self._head = 0
        self._lag = 0.0
        self._run_id = ""
        self._next_prune = 0.0
        self._status = WriterStatus()

    def start(self) -> None:
        """Begin to write, in a thread."""
        self._thread = threading.Thread(target=self.run, name="history", daemon=True)
        self._thread.start()

    def ask_to_stop(self) -> None:
        """Let `run` return after the transaction that is under way; for a signal handler."""
        self._stopping.set()

    def stop(self) -> None:
        """Stop, and wait for that."""
        self.ask_to_stop()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)  # a call to a Redis that does not answer takes longer

    def status(self) -> WriterStatus:
        """Return what it does."""
        return self._status

    def run(self) -> None:
        """Write until `stop` is called, in this thread."""
        failures = 0
        try:
            while not self._stopping.is_set():
                try:
                    pause = self._step()
                    failures = 0
                    self._note("" if self._lock is not None else self._status.fault)
                except (FleetUnavailable, NewerFile, sqlite3.Error, OSError) as error:
                    pause = RETRY_SECONDS[min(failures, len(RETRY_SECONDS) - 1)]
                    failures += 1
                    self._recover(error)
                except Exception as error:  # noqa: BLE001  the edge of the thread: history stops, not the process
                    pause = RETRY_SECONDS[-1]
                    _log.exception("a fault in the history itself", extra={"action": "history_failed"})
                    self._recover(error)
                self._stopping.wait(pause)
        finally:
            self._close()

    def _step(self) -> float:
        """Copy one chunk, and prune when it is time; return the pause before the next step."""
        if self._lock is None:
            self._lock = WriterLock.take(self._path)
            if self._lock is None:
                if self._status.state != "waits":
                    _log.info("another process writes the history: waiting", extra={"action": "history_waits"})
                self._status = WriterStatus("waits", "another process writes the history")
                return LOCK_SECONDS
            _log.info("writing the history %s", self._path, extra={"action": "history_writes"})
        if self._damage is not None:
            begin_anew(self._path, self._damage)
            self._damage = None
        if self._store is None:
            self._store = HistoryStore(open_for_writing(self._path))
            self._forgotten_ms, self._run_id = 0, ""
        chunk = self._copy(self._store)
        if time.monotonic() >= self._next_prune:
            self._prune(self._store)
        return 0.0 if chunk.is_full else POLL_SECONDS

    def _copy(self, store: HistoryStore) -> Chunk:
        position = store.read_position()
        if not self._run_id:  # at the start, and after an outage: the server may be another one now
            self._run_id = self._stream.read_run_id()
            found = self._stream.read(position, self._forgotten_ms)
            position = find_start(position, self._stream.address, self._run_id, found.newest_id)
        chunk = self._stream.read(position, self._forgotten_ms)
        if is_anew(position, chunk.newest_id):
            position = replace(position, stream_id="0-0")
            chunk = self._stream.read(position, self._forgotten_ms)
        if chunk.forgotten:
            position = self._forget(store, position, chunk)
        after, rows = take_entries(position, chunk, self._forgotten, self._run_id)
        if lost := after.lost - position.lost:
            text = "%d ended runs left the stream before they were read: the history lacks them"
            _log.warning(text, lost, extra={"action": "history_lost"})
        if after != store.read_position():
            after = store.add(after, rows)
        self._head, self._lag = chunk.head, max(0.0, chunk.now - after.ended) / MILLI if chunk.is_full else 0.0
        return chunk

    def _forget(self, store: HistoryStore, position: Position, chunk: Chunk) -> Position:
        """Delete the runs of batches that were forgotten, in portions."""
        note_forgotten(self._forgotten, chunk.forgotten)
        for batch, at in chunk.forgotten.items():
            has_more = at > position.forgotten_ms
            while has_more:
                has_more = store.forget_batch(batch, at)
        self._forgotten_ms = max(chunk.forgotten.values())
        return replace(position, forgotten_ms=max(position.forgotten_ms, self._forgotten_ms))

    def _prune(self, store: HistoryStore) -> None:
        has_more = True
        for _ in range(PORTIONS_AT_ONCE):
            has_more = has_more and prune_once(store, self._settings)
        if not has_more:
            self._next_prune = time.monotonic() + PRUNE_SECONDS

    def _recover(self, error: Exception) -> None:
        """Note what is wrong, and begin anew with what may be broken."""
        self._run_id = ""
        text = f"{type(error).__name__}: {error}" if not isinstance(error, FleetUnavailable) else str(error)
        if self._status.fault != text:
            _log.warning("the history waits: %s", text, extra={"action": "history_waits"})
        if isinstance(error, sqlite3.Error):
            self._close_store()
            self._damage = error if is_damaged(error) else None
        self._note(text)

    def _note(self, fault: str) -> None:
        if self._lock is None:
            self._status = WriterStatus(self._status.state if fault else "stopped", fault)
            return
        self._status = WriterStatus("writes", fault)
        lag = self._lag
        if fault and self._store is not None:
            lag = max(lag, POLL_SECONDS)
        with contextlib.suppress(OSError):  # it is silent then, which readers see, too
            self._lock.write(Heartbeat(time.time(), os.getpid(), self._head, lag, fault))

    def _close_store(self) -> None:
        store, self._store = self._store, None
        if store is not None:
            store.close()

    def _close(self) -> None:
        self._close_store()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        self._stream.close()
        self._status = WriterStatus()


def prune_once(store: HistoryStore, kept: HistorySettings) -> bool:
    """Delete a portion of what is too old or too many; return whether more is left."""
    now = time.time()
    ok_before, before = now - kept.ok_days * DAY, now - kept.failed_days * DAY
    return store.prune(ok_before=ok_before, before=before, max_rows=kept.max_rows)
