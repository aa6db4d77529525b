"""The fleet of the soak: Redis, workers, producers, and the supervisor that restarts workers."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import math
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cgrouptree import CGROUP_PARENT, remove_parents
from growth import Growth
from harms import Harm, ParentMemory, SmallDisk, SteppedClock
from havoc import MortalRedis
from releases import GVISOR
from retries import Retrier
from sandfleet_config.queues import KEY_PREFIX
from soak_producer import Producer
from stage import Stage, Worker
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

WORKERS = 4
CONCURRENCY = 8
LEASE_SECONDS = 3.0
REST_SECONDS = 180
RESTART_SECONDS = 0.5
RELEASES = [path for name in ("bin", "debian") if (path := GVISOR / name / "runsc").exists()]
"""Releases of runsc for workers in turn; empty if the set-up has none: then PATH's runsc."""
EARLIER_RUNSC = GVISOR / "debian/runsc"
"""The only release on which workers of the earlier commit start."""
EARLIER_TURN = 3
"""Every third worker is of the earlier release, if there is one; the spared one is not."""
DRAIN_SECONDS = 0.3
"""Shorter than some jobs, which a drain then cuts."""
STATE_MEBIBYTES = 32
"""Size of the filesystem with slots and the state of sandboxes."""
BUDGET_BYTES = 8 << 30
"""Workers' memory for jobs: one that starts under a limit of the parent cgroup would take that."""


class AlwaysRedis(MortalRedis):
    """A Redis that keeps all acknowledged writes: `everysec` may lose the last second."""

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder), "--save", ""]
        options += ["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(["redis-server", *options], stdout=log, stderr=log)
        wait_until(self._answers, 10, "redis-server answers")


class SoakFleet:
    """Redis, workers and producers of the soak, and the supervisor that starts workers again."""

    def __init__(self, folder: Path, images: Path, seed: int, jobs: int, earlier: Path | None = None) -> None:
        """`earlier` is the Python of an earlier release: every third worker is of it then."""
        for name in ("redis", "host"):
            (folder / name).mkdir()
        self.server = AlwaysRedis(folder / "redis")
        self.redis: Any = self.server.client
        self.stage = Stage(folder / "host", images, self.server.url, self.redis)
        self.stage.state = folder / "host/state"
        self.disk = SmallDisk(self.stage.state, STATE_MEBIBYTES)
        self.memory = ParentMemory(CGROUP_PARENT)
        self.clock = SteppedClock(folder)
        self.growth = Growth(self.stage)
        self.harms: list[Harm] = []
        self.clockless: set[int] = set()
        self.earlier: set[int] = set()
        self._earlier_python = earlier
        self.producer = Producer(self.server.url, seed, jobs)
        self.retrier = Retrier(self.server.url, seed)
        self.random = random.Random(f"{seed} chaos")  # noqa: S311  no secret
        self.exits: Counter[int] = Counter()
        self._live: list[Worker] = []
        self._frozen: list[Worker] = []
        self._starved: list[Worker] = []
        self._ready: set[int] = set()
        self._is_redis_up = True
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._next_start = 0.0
        self.spared_end: int | None = None

    def supervise(self) -> None:
        """Do the actions that are due, and start a new worker for one that has ended."""
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            heapq.heappop(self._later)[2]()
        for worker in list(self._live):
            code = worker.process.poll()
            if code is not None:
                self._live.remove(worker)
                self.exits[code] += 1
                if worker is self.spared:
                    self.spared_end = code
        if len(self._live) < WORKERS and now >= self._next_start:
            self._next_start = now + RESTART_SECONDS
            self._live.append(self._start())

    def _start(self) -> Worker:
        """Start a worker, with each release of runsc in turn.

        Every fourth has its own clock, every third is an earlier one.
        """
        number = len(self.stage.workers)
        settings = {"SANDFLEET_LEASE_SECONDS": f"{LEASE_SECONDS:g}", "SANDFLEET_DRAIN_SECONDS": f"{DRAIN_SECONDS:g}"}
        if RELEASES:
            settings["SANDFLEET_RUNSC__PATH"] = str(RELEASES[number % len(RELEASES)])
        has_clock = number % WORKERS == WORKERS - 1
        is_earlier = self._earlier_python is not None and number % EARLIER_TURN == EARLIER_TURN - 1
        self.stage.python = str(self._earlier_python) if is_earlier else sys.executable
        if is_earlier:
            settings["SANDFLEET_RUNSC__PATH"] = str(EARLIER_RUNSC)
        else:
            settings["SANDFLEET_MEMORY_BUDGET_BYTES"] = str(BUDGET_BYTES)
        worker = self.stage.start(CONCURRENCY, **settings, **(self.clock.env if has_clock else {}))
        if has_clock:
            self.clockless.add(worker.process.pid)
        if is_earlier:
            self.earlier.add(worker.process.pid)
        return worker

    @property
    def spared(self) -> Worker:
        """The first worker, neither killed nor stopped: its memory is seen for the whole run."""
        return self.stage.workers[0]

    def _find_ready(self) -> list[Worker]:
        """Return the workers that run and have once been ready to take jobs."""
        self._ready.update(id(worker) for worker in self._live if id(worker) not in self._ready and worker.is_ready)
        return [worker for worker in self._live if id(worker) in self._ready and worker.process.poll() is None]

    def _harm(self, what: str, worker: Worker | None = None, jobs: float = math.inf) -> Harm:
        harm = Harm(what, worker.process.pid if worker else None, jobs=jobs)
        self.harms.append(harm)
        return harm

    def _after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), act))

    def rest(self) -> int:
        """Wait for all outcomes, then stop all workers; return how many jobs are left."""
        for thread in (self.producer, self.retrier):
            thread.must_stop.set()
        end = time.monotonic() + REST_SECONDS
        while (self._is_asking() or self._later or self.count_left()) and time.monotonic() < end:
            self.supervise()
            time.sleep(0.1)
        for worker in self._live:
            worker.process.send_signal(signal.SIGTERM)
        self.exits.update(worker.process.wait(60) for worker in self._live)
        # Before it takes jobs, a worker removes what dead workers left on its host.
        self.stage.python = sys.executable
        last = self.stage.start(1)
        last.wait_ready()
        with contextlib.suppress(AssertionError):  # the audit reports it
            # A worker that was stopped while it started leaves its lease behind.
            wait_until(lambda: self.redis.zcard(f"{KEY_PREFIX}owners") == 1, 3 * LEASE_SECONDS, "no lease is left")
        self.exits[last.stop()] += 1
        return self.count_left()

    def _is_asking(self) -> bool:
        return self.producer.is_alive() or self.retrier.is_alive()

    def count_left(self) -> int:
        if not self._is_redis_up:
            return len(self.producer.expected)
        return len(self.producer.expected) - self.producer.count_ended()

    def close(self) -> None:
        for thread in (self.producer, self.retrier):
            thread.must_stop.set()
        for worker in self._frozen:
            worker.process.send_signal(signal.SIGCONT)
        self.disk.free()
        self.memory.release()
        self.stage.close()
        self.disk.close()
        remove_parents(CGROUP_PARENT)
        self.server.close()
        for thread in (self.producer, self.retrier):
            if thread.ident:
                thread.join()
