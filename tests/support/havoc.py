"""A fleet that tests break: a redis-server to kill and restart, workers, counts of actions."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from cgrouptree import CGROUP_PARENT, remove_parents
from sandfleet_config.queues import KEY_PREFIX, job_key
from stage import Stage, Stock
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stage import Worker

START_SECONDS = 10.0


class MortalRedis:
    """A redis-server with an append-only file, for one test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket = folder, folder / "redis.sock"
        self.url = f"unix://{self.socket}?db=0"
        self.client = redis.Redis(unix_socket_path=str(self.socket))
        self.start()

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder)]
        options += ["--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction"]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(["redis-server", *options], stdout=log, stderr=log)
        wait_until(self._answers, START_SECONDS, "redis-server answers")

    def _answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.client.close()
        self.kill()


class Havoc:
    """One host with workers on a Redis that may die."""

    def __init__(self, folder: Path, images: Path) -> None:
        for name in ("redis", "host"):
            (folder / name).mkdir()
        self.server = MortalRedis(folder / "redis")
        self.redis: Any = self.server.client
        self.stage = Stage(folder / "host", images, self.server.url, self.redis)
        self.stock = Stock(self.server.url, self.redis)

    def start(self, concurrency: int = 2, **settings: str) -> Worker:
        """Start a worker with a lease of 2 s, and wait until it is ready."""
        worker = self.stage.start(concurrency, **({"SANDFLEET_LEASE_SECONDS": "2"} | settings))
        worker.wait_ready()
        return worker

    def submit(self, *command: str) -> str:
        return self.stock.submit(*command)

    def starts(self, job_id: str) -> int:
        """Count the starts of the job in the logs of all workers, dead ones too."""
        mark = f"action=job_started job_id={job_id}"
        return sum(worker.log.count(mark) for worker in self.stage.workers)

    def ends(self, job_id: str) -> int:
        """Count how often a worker says that the job has ended, which it does once the end counts."""
        mark, deadline = f"action=job_ended job_id={job_id}", time.monotonic() + 2
        while not (count := sum(worker.log.count(mark) for worker in self.stage.workers)):
            if time.monotonic() > deadline:
                break
            time.sleep(0.05)
        return count

    def wait_started(self, *job_ids: str, timeout_seconds: float = 20) -> None:
        wait_until(lambda: all(self.starts(job) for job in job_ids), timeout_seconds, "the jobs run")

    def outcome(self, job_id: str, timeout_seconds: float = 30) -> dict[str, Any]:
        return self.stock.outcome(job_id, timeout_seconds)

    def attempts(self, job_id: str) -> list[dict[str, Any]]:
        """Return the attempts of the job's record."""
        raw = self.redis.hget(job_key(job_id), "attempts")
        return list(json.loads(raw)) if raw else []

    def duplicates(self) -> list[dict[bytes, bytes]]:
        return [fields for _, fields in self.redis.xrange(f"{KEY_PREFIX}duplicates")]

    def dead(self) -> dict[str, dict[bytes, bytes]]:
        """Return the dead letters by id."""
        names = [name.decode() for name in self.redis.zrange(f"{KEY_PREFIX}dead", 0, -1)]
        return {name: self.redis.hgetall(f"{KEY_PREFIX}dead:{name}") for name in names}

    def cut_all_connections(self) -> int:
        """Have Redis close every connection but ours."""
        own = self.redis.client_id()
        others = [item["id"] for item in self.redis.client_list() if int(item["id"]) != own]
        for number in others:
            with contextlib.suppress(redis.ResponseError):
                self.redis.client_kill_filter(_id=number)
        return len(others)

    @contextlib.contextmanager
    def no_memory(self) -> Iterator[None]:
        """Let Redis be at its maxmemory; it evicts nothing (`noeviction`)."""
        self.redis.config_set("maxmemory", 1)
        try:
            yield
        finally:
            self.redis.config_set("maxmemory", 0)

    @contextlib.contextmanager
    def read_only(self) -> Iterator[None]:
        """Let Redis answer and refuse every write, as a replica does after a fail-over."""
        self.redis.replicaof("127.0.0.1", 1)
        try:
            yield
        finally:
            self.redis.replicaof("NO", "ONE")

    def stop_redis_for(self, seconds: float) -> None:
        self.server.kill()
        time.sleep(seconds)
        self.server.start()

    def kill(self, worker: Worker) -> None:
        worker.process.send_signal(signal.SIGKILL)
        worker.process.wait()

    def assert_ended_once(self, job_id: str) -> None:
        """The end of the job stands in a log once; its worker writes that line after Redis has the end."""
        wait_until(lambda: self.ends(job_id), 10, "a log tells of the end")
        assert self.ends(job_id) == 1

    def assert_each_once(self, job_ids: list[str], timeout_seconds: float = 30) -> None:
        """Every job was started once, ended once as OK, and says so."""
        for job_id in job_ids:
            outcome = self.outcome(job_id, timeout_seconds)
            assert outcome["code"] == "OK", outcome
            assert [attempt["code"] for attempt in outcome["attempts"]] == ["OK"]
        for job_id in job_ids:
            self.assert_ended_once(job_id)
        assert {job_id: self.starts(job_id) for job_id in job_ids} == dict.fromkeys(job_ids, 1)

    def close(self) -> None:
        for worker in self.stage.workers:
            with contextlib.suppress(ProcessLookupError):
                worker.process.send_signal(signal.SIGCONT)
        self.stage.close()
        self.stock.app.close()
        self.server.close()


@contextlib.contextmanager
def new_havoc(images_root: Path) -> Iterator[Havoc]:
    """Make a fleet to break, workers not started; at its end nothing of it is on the host."""
    # A short path: sockets live below it (unix(7): 107 characters).
    with tempfile.TemporaryDirectory(prefix="sfh-") as folder:
        havoc = Havoc(Path(folder), images_root)
        try:
            yield havoc
        finally:
            havoc.close()
            remove_parents(CGROUP_PARENT)
        if havoc.stage.find_leftovers():  # of workers that were killed
            havoc.stage.clean()
        assert havoc.stage.find_leftovers() == [], "something is left on the host"
