"""Ended runs without a worker: entries of the stream, and histories of them."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import redis
from pydantic import SecretStr
from sandfleet.history.file_history import FileHistory
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Outcome
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX
from sandfleet_config.web_settings import WebSettings
from sandfleet_web.history.writer import HistoryWriter
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from sandfleet import Fleet, SandboxSpec
    from sandfleet_worker.delivery.ledger import Ledger

STREAM = f"{KEY_PREFIX}ended_runs"
LAST = f"{KEY_PREFIX}ended_runs:last"


class Past:
    """A fleet on a database of its own, jobs that end there, and the history of them."""

    def __init__(self, url: str, fleet: Fleet, ledger: Ledger, folder: Path) -> None:
        self.url, self.fleet, self.ledger, self.folder = url, fleet, ledger, folder
        self.redis: Any = redis.Redis.from_url(url, protocol=2)
        self.file = folder / "history.db"
        self.history = FileHistory(self.file)
        self._claims = 0

    def settings(self, **fields: Any) -> WebSettings:
        """Return settings whose history is this one."""
        web = {"history": {"file": str(self.file), **fields}}
        return WebSettings.model_validate({"redis_url": SecretStr(self.url), "web": web})

    def end(self, specs: Sequence[SandboxSpec], code: ErrorCode = ErrorCode.OK, batch: str = "", **fields: Any) -> list[str]:
        """Submit jobs and end them, as a worker does; return their ids."""
        jobs = self.fleet.submit_many(specs, batch=batch or None)
        for _ in jobs:
            self._claims += 1
            claim, _ = self.ledger.claim(f"claim-{self._claims}", [DEFAULT_QUEUE])
            assert claim is not None
            assert self.ledger.finish(claim, Outcome.of(code, claim.job_id, batch=batch or None, **fields))
        return [job.id for job in jobs]

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
        wait_until(lambda: self.file.exists() and self.history.status().number >= self.head(), 30, "all is stored")
