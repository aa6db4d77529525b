"""Ended runs without a worker: entries of the stream, and histories of them."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

import redis
from pydantic import SecretStr
from sandfleet.errors import HistoryUnavailable
from sandfleet.history.file_history import FileHistory
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Outcome
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX
from sandfleet_config.web_settings import WebSettings
from sandfleet_config.wire import MAX_SPEC_BYTES
from sandfleet_web.history.writer import HistoryWriter
from sandfleet_worker.delivery.envelope import open_message
from sandfleet_worker.delivery.read_message import find_facts, read_message
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sandfleet import Fleet, SandboxSpec
    from sandfleet_worker.delivery.ledger import Ledger

STREAM = f"{KEY_PREFIX}ended_runs"
LAST = f"{KEY_PREFIX}ended_runs:last"


_ADD = """
for at = 3, #ARGV do
  redis.call('XADD', ARGV[1], '*', 'n', redis.call('INCR', ARGV[2]), 'run', ARGV[at])
end
redis.call('EXPIRE', ARGV[1], 3600)
redis.call('EXPIRE', ARGV[2], 3600)
"""


def new_summary(job_id: str, code: str = "OK", *, run: int = 1, labels: dict[str, str] | None = None) -> str:
    """Return the summary of a run with one label."""
    fields = {"id": job_id, "run": run, "code": code, "labels": {"suite": "s7"} if labels is None else labels}
    return json.dumps(fields)


class Past:
    """A fleet on a database of its own, jobs that end there, and the history of them."""

    def __init__(self, url: str, fleet: Fleet, ledger: Ledger | None, folder: Path) -> None:
        self.url, self.fleet, self._ledger, self.folder = url, fleet, ledger, folder
        self.redis: Any = redis.Redis.from_url(url, protocol=2)
        self.file = folder / "history.db"
        self.history = FileHistory(self.file)
        self._claims = self._runs = 0

    @property
    def ledger(self) -> Ledger:
        """The worker that ends jobs."""
        assert self._ledger is not None
        return self._ledger

    def settings(self, **fields: Any) -> WebSettings:
        """Return settings whose history is this one."""
        web = {"history": {"file": str(self.file), **fields}}
        return WebSettings.model_validate({"redis_url": SecretStr(self.url), "web": web})

    def end(
        self, specs: Sequence[SandboxSpec], code: ErrorCode = ErrorCode.OK, batch: str = "", **fields: Any
    ) -> list[str]:
        """Submit jobs and end them, as a worker does; return their ids."""
        jobs = self.fleet.submit_many(specs, batch=batch or None)
        for spec, _ in zip(specs, jobs, strict=True):
            self._claims += 1
            claim, _ = self.ledger.claim(f"claim-{self._claims}", [DEFAULT_QUEUE])
            assert claim is not None
            outcome = Outcome.of(code, claim.job_id, batch=batch or None, labels=spec.labels, **fields)
            assert self.ledger.finish(
                claim, outcome, facts=find_facts(read_message(open_message(claim), MAX_SPEC_BYTES))
            )
        return [job.id for job in jobs]

    def add(self, *summaries: str) -> None:
        """Append runs to the stream, as `finish.lua` does."""
        self.redis.eval(_ADD, 0, STREAM, LAST, *summaries)

    def add_runs(self, count: int, code: str = "OK") -> None:
        """Append so many runs."""
        self._runs += count
        self.add(*(new_summary(f"job-{number}", code) for number in range(self._runs - count, self._runs)))

    def environment(self) -> dict[str, str]:
        """Return the environment of a process that writes this history."""
        return {**os.environ, "SANDFLEET_REDIS_URL": self.url, "SANDFLEET_WEB__HISTORY__FILE": str(self.file)}

    def move_to(self, folder: Path) -> None:
        """Have the history in another folder."""
        self.history.close()
        self.file = folder / "history.db"
        self.history = FileHistory(self.file)

    def fold_journal(self) -> None:
        """Bring all of the journal into the file."""
        self.history.close()
        with closing(sqlite3.connect(self.file)) as connection:
            assert connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0

    def count_labels(self) -> int:
        """Return the rows of labels; it is what the file says of their number."""
        with closing(sqlite3.connect(self.file)) as connection:
            found: int = connection.execute("SELECT count(*) FROM label").fetchone()[0]
            assert connection.execute("SELECT value FROM meta WHERE name = 'labels'").fetchone()[0] == found
            assert connection.execute("SELECT count(*) FROM detail").fetchone()[0] == self.history.status().rows
        return found

    def pretend_restart(self) -> None:
        """Have the history believe that Redis was started anew."""
        with closing(sqlite3.connect(self.file)) as connection:
            connection.execute("UPDATE meta SET value = 'earlier' WHERE name = 'redis_run'")
            connection.commit()

    @contextmanager
    def writing(self, **fields: Any) -> Iterator[HistoryWriter]:
        """Write the history meanwhile, in a thread."""
        writer = HistoryWriter(self.settings(**fields))
        writer.start()
        try:
            yield writer
        finally:
            writer.stop()
            assert not any(thread.name == "history" for thread in threading.enumerate())

    def head(self) -> int:
        """Return the number of the newest ended run."""
        return int(self.redis.get(LAST) or 0)

    def write_all(self, **fields: Any) -> None:
        """Write what the stream has."""
        with self.writing(**fields):
            self.wait_stored()

    def wait_stored(self) -> None:
        """Wait until the history has read all of the stream."""
        wait_until(lambda: self.read_number() >= self.head(), 30, "all is stored")

    def wait_rows(self, count: int) -> None:
        """Wait until the history has so many rows."""
        wait_until(lambda: self.read_number() >= 0 and self.history.status().rows == count, 30, f"{count} rows")

    def read_number(self) -> int:
        """Return the number of the newest stored run, -1 if there is no history to read."""
        try:
            return self.history.status().number
        except HistoryUnavailable:
            return -1

    def close(self) -> None:
        """Close what is open."""
        self.history.close()
        self.redis.close()
