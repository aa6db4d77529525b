"""The soak: its fleet, and the harms that are done to it at random moments."""

from __future__ import annotations

import contextlib
import heapq
import signal
import time
from typing import TYPE_CHECKING, Any

import psutil
from harms import Harm, give_descriptors, take_descriptors
from rich.console import Console
from soak_fleet import LEASE_SECONDS, SoakFleet

if TYPE_CHECKING:
    from stage import Worker

MAX_REDIS_DEATHS = 4
TELL_SECONDS = 10.0
SAMPLES = 200
"""Samples of growth in a run; at most one a second."""
SPARE_MEMORY_BYTES = 2 << 20
"""Memory left to all sandboxes together while their parent cgroup is at its limit, in bytes."""
MAX_STEP_SECONDS = 6 * 3600
"""Largest step of a wall clock, in s; a job may wait in the queue for longer."""
console = Console(highlight=False)


class Soak(SoakFleet):
    """The fleet, and each harm as a method."""

    def run(self, seconds: float) -> None:
        """Do harms for so many seconds: all kinds equally often, in random order."""
        self.supervise()
        self._live[0].wait_ready()
        self.producer.start()
        self.retrier.start()
        for _ in range(max(1, min(MAX_REDIS_DEATHS, round(seconds / 40)))):
            self._after(self.random.uniform(0.2, 0.8) * seconds, self.kill_redis)
        end, next_told, deck = time.monotonic() + seconds, time.monotonic() + TELL_SECONDS, list[Any]()
        next_harm = time.monotonic() + 2
        pause = max(1.0, seconds / SAMPLES)
        next_sample = time.monotonic() + pause
        while time.monotonic() < end and self.producer.is_alive():
            self.supervise()
            now = time.monotonic()
            if now >= next_harm:
                if not deck:
                    deck = [self.kill_worker, self.freeze_worker, *[self.kill_sandbox, self.cut_connections] * 2]
                    deck += [self.starve_worker, self.fill_disk, self.press_memory, self.step_clock]
                    deck += [lambda: self.drain_worker(signal.SIGTERM), lambda: self.drain_worker(signal.SIGQUIT)]
                    self.random.shuffle(deck)
                deck.pop()()
                next_harm = now + self.random.uniform(0.4, 1.6)
            if now >= next_sample:
                next_sample = now + pause
                self.growth.sample(self.spared, self._find_ready())
            if now >= next_told:
                next_told += TELL_SECONDS
                console.print(
                    f"  {len(self.producer.expected)} jobs accepted, {len(self.stage.workers)} workers so far"
                )
            time.sleep(0.02)

    def _choose(self) -> Worker | None:
        """Choose a worker to kill or to stop; None if only one is left that runs."""
        free = [worker for worker in self._live if worker not in self._frozen and worker is not self.spared]
        return self.random.choice(free) if len(free) > 1 else None

    def kill_worker(self) -> None:
        if worker := self._choose():
            # What it ran is tried again once its lease has ended; until then its own clock says
            # when that was.
            self._harm("SIGKILL of a worker", worker)
            worker.process.kill()

    def drain_worker(self, number: signal.Signals) -> None:
        if worker := self._choose():
            self._harm(f"{number.name} of a worker", worker)
            worker.process.send_signal(number)

    def freeze_worker(self) -> None:
        if worker := self._choose():
            harm = self._harm("SIGSTOP of a worker, then SIGCONT", worker)
            worker.process.send_signal(signal.SIGSTOP)
            self._frozen.append(worker)
            self._after(self.random.uniform(0.1, 2.5 * LEASE_SECONDS), lambda: self._thaw(worker, harm))

    def _thaw(self, worker: Worker, harm: Harm) -> None:
        self._frozen.remove(worker)
        worker.process.send_signal(signal.SIGCONT)
        harm.end()

    def kill_sandbox(self) -> None:
        if sentries := self.stage.find_sentries():
            harm = self._harm("SIGKILL of a sentry", jobs=1)
            with contextlib.suppress(psutil.NoSuchProcess):  # it may have ended by itself
                self.random.choice(sentries).kill()
            harm.end()

    def cut_connections(self) -> None:
        if self._is_redis_up:
            harm = self._harm("CLIENT KILL of all", jobs=0)
            for kind in ("normal", "pubsub"):
                self.redis.client_kill_filter(_type=kind, skipme=True)
            harm.end()

    def starve_worker(self) -> None:
        free = [worker for worker in self._find_ready() if worker not in self._starved]
        worker = self.random.choice(free) if free else None
        limits = take_descriptors(worker.process.pid) if worker else None
        if worker and limits:
            harm = self._harm("no descriptor left to a worker", worker)
            self._starved.append(worker)
            self._after(self.random.uniform(0.2, 2), lambda: self._feed(worker, limits, harm))

    def _feed(self, worker: Worker, limits: tuple[int, int], harm: Harm) -> None:
        self._starved.remove(worker)
        give_descriptors(worker.process.pid, limits)
        harm.end()

    def fill_disk(self) -> None:
        harm = self._harm("full disk of slots and state")
        self.disk.fill()
        self._after(self.random.uniform(0.2, 2), lambda: self._free_disk(harm))

    def _free_disk(self, harm: Harm) -> None:
        self.disk.free()
        harm.end()

    def press_memory(self) -> None:
        if self.memory.press(SPARE_MEMORY_BYTES):
            harm = self._harm("no memory left in the parent cgroup")
            self._after(self.random.uniform(0.2, 2), lambda: self._release_memory(harm))

    def _release_memory(self, harm: Harm) -> None:
        self.memory.release()
        harm.end()

    def step_clock(self) -> None:
        self.clock.step(self.random.randint(-MAX_STEP_SECONDS, MAX_STEP_SECONDS))
        self._harm("step of a worker's wall clock", jobs=0)

    def kill_redis(self) -> None:
        if self._is_redis_up:
            self._is_redis_up = False
            harm = self._harm("SIGKILL of Redis")
            self.server.kill()
            self._after(self.random.uniform(0, 4), lambda: self._start_redis(harm))

    def _start_redis(self, harm: Harm) -> None:
        self.server.start()
        self._is_redis_up = True
        harm.end()

    def rest(self) -> int:
        """Stop all harms, then wait as `SoakFleet.rest` does; return how many jobs are left."""
        # Of the actions that are due later, only the kill of Redis is a harm; the others end one.
        self._later = [item for item in self._later if item[2] != self.kill_redis]
        heapq.heapify(self._later)
        return super().rest()
