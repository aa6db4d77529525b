"""Thousands of short jobs over four workers while what they stand on breaks at random.

Workers, sandboxes, connections and Redis are killed; workers are drained by SIGTERM and SIGQUIT; descriptors, the disk and the
memory of all sandboxes run out; a wall clock jumps. Workers run different releases of runsc. What ends among the dead letters is
run again, now and then by two producers at the same moment. Run it by `make soak` (ARGS="--minutes 10 --seed 7"); with
`--earlier e5bcdee` every third worker is of that commit.

It ends with 0 only if every run of every accepted job has exactly one outcome, a retry started one run, every start is told in
the `attempts[]` of its run, no job that may start once did so twice in a run, every attempt that failed by the host was met by
a fault that was made, neither Redis nor the host keeps anything, and nothing grew meanwhile. A seed gives the same choices
again, not the same moments: what they hit depends on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import itertools
import math
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import redis
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from sandfleet import ErrorCode, Fleet, FleetError, SandboxSpec, Settings
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_worker.sandbox.image.store import ImageStore

sys.path.append(str(Path(__file__).parents[1] / "support"))
from audit import SHOWN, Audit, Finding, count_by
from cgrouptree import CGROUP_PARENT, remove_parents
from growth import Growth
from harms import Harm, ParentMemory, SmallDisk, SteppedClock, give_descriptors, take_descriptors
from havoc import MortalRedis
from old_release import old_release
from releases import GVISOR
from retries import Retrier
from stage import Stage, Worker
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet import Job

WORKERS = 4
CONCURRENCY = 8
MAX_ATTEMPTS = 3
LEASE_SECONDS = 3.0
PORTION = 20
BACKLOG = 40
MAX_REDIS_DEATHS = 4
REST_SECONDS = 180
RESTART_SECONDS = 0.5
TELL_SECONDS = 10.0
RELEASES = [path for name in ("bin", "debian") if (path := GVISOR / name / "runsc").exists()]
"""Workers run them in turn; none is there where the set-up could install none: then PATH's."""
EARLIER_RUNSC = GVISOR / "debian/runsc"
"""Workers before runsc of 2026 start on no other."""
EARLIER_TURN = 3
"""Every third worker is of the earlier release, if there is one; the spared one is not."""
ONCE_SHARE = 0.3
"""Of the jobs, those that may start once."""
DRAIN_SECONDS = 0.3
"""Less than some jobs run: a drain cuts them."""
SAMPLES = 200
"""As many looks at what could grow in a run, one a second at most."""
STATE_MEBIBYTES = 32
"""Of the file system with the state of sandboxes and the slots."""
BUDGET_BYTES = 8 << 30
"""For jobs and workers: one that starts while the parent cgroup is at its limit would take that for what the host has."""
SPARE_MEMORY_BYTES = 2 << 20
"""Memory left to all sandboxes together while their parent cgroup is at its limit, in bytes."""
MAX_STEP_SECONDS = 6 * 3600
"""Of a wall clock; a job may wait in the queue for longer."""
ENDS = {
    ErrorCode.OK: (["true"], ["sleep", "0.5"], ["seq", "2000"]),
    ErrorCode.EXIT_NONZERO: (["sh", "-c", "exit 3"],),
    ErrorCode.SIGNALED: (["sh", "-c", "kill -9 $$"],),
    ErrorCode.TIMEOUT: (["sleep", "20"],),
    ErrorCode.COMMAND_NOT_FOUND: (["no-such-program"],),
}
"""What programs end as, and such programs; of each ending as many as of any other, but for OK."""
console = Console(highlight=False)


class AlwaysRedis(MortalRedis):
    """It forgets nothing that it has acknowledged: with `everysec` a kill may cost what the append-only file still lacks."""

    def start(self) -> None:
        options = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(self.folder), "--save", ""]
        options += ["--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction"]
        with (self.folder / "redis.log").open("ab") as log:
            self.process = subprocess.Popen(["redis-server", *options], stdout=log, stderr=log)
        wait_until(self._answers, 10, "redis-server answers")


class Producer(threading.Thread):
    """Submits portions, each again and again until it is accepted, and keeps the queue from running dry."""

    def __init__(self, url: str, seed: int, jobs: int) -> None:
        super().__init__(name="producer")
        self._fleet = Fleet(Settings(redis_url=SecretStr(url)))
        self._redis: Any = redis.Redis.from_url(url)
        self._random = random.Random(f"{seed} jobs")  # noqa: S311  no secret
        self._jobs = jobs
        self.must_stop = threading.Event()
        self.batches: list[str] = []
        self.expected: dict[str, ErrorCode] = {}
        self.once: set[str] = set()
        """Jobs that may start once."""
        self.retries = 0
        self.error: Exception | None = None

    def count_ended(self) -> int:
        """Count the jobs that have ended, of batches too whose ends workers of an older release have recorded."""
        return sum(self._fleet.batch(name).counts.done for name in list(self.batches))

    def run(self) -> None:
        try:
            while not self.must_stop.is_set() and len(self.expected) < self._jobs:
                if self._wait_room():
                    self._submit(f"soak-{len(self.batches)}")
        except Exception as error:  # noqa: BLE001  the edge of the thread: told at the end
            self.error = error
        finally:
            self._fleet.close()
            self._redis.close()

    def _wait_room(self) -> bool:
        try:
            if self._redis.zcard(f"{KEY_PREFIX}expiring") < BACKLOG:
                return True
        except redis.RedisError:
            pass
        self.must_stop.wait(0.1)
        return False

    def _submit(self, batch: str) -> None:
        codes = [self._random.choice(list(ENDS)) for _ in range(PORTION)]
        specs = [self._spec(code) for code in codes]
        # Whatever happens, the same portion until all of it is accepted: a stop leaves none half submitted.
        jobs: list[Job] = []
        while not jobs:
            try:
                jobs = self._fleet.submit_many(specs, batch=batch, idempotent=True)
            except FleetError:
                self.retries += 1
                time.sleep(0.05)
        self.batches.append(batch)
        self.expected |= dict(zip((job.id for job in jobs), codes, strict=True))
        self.once |= {job.id for job, spec in zip(jobs, specs, strict=True) if spec.max_attempts == 1}

    def _spec(self, code: ErrorCode) -> SandboxSpec:
        limits = {"timeout": 0.3, "grace": 0.2} if code is ErrorCode.TIMEOUT else {"timeout": 60}
        command = self._random.choice(ENDS[code])
        max_attempts = 1 if self._random.random() < ONCE_SHARE else MAX_ATTEMPTS
        priority = self._random.randrange(10)
        return SandboxSpec(image="busybox", command=command, priority=priority, max_attempts=max_attempts, **limits)


class Soak:
    """The fleet, its supervisor, and what is done to it."""

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
        """Do what is due, and start a worker again that has ended."""
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
        """Start a worker: with each release of runsc in turn, every fourth with its own clock, every third an earlier one."""
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
        """The first worker: neither killed nor stopped, so that its memory is seen for the whole run."""
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

    def run(self, seconds: float) -> None:
        """Break things for so long, all kinds equally often in random order."""
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
        """Choose a worker to kill or to stop, or none where enough of them are stopped."""
        free = [worker for worker in self._live if worker not in self._frozen and worker is not self.spared]
        return self.random.choice(free) if len(free) > 1 else None

    def kill_worker(self) -> None:
        if worker := self._choose():
            # What it ran is tried again once its lease has ended; until then its own clock says when that was.
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
        """Harm nobody any more and wait for all outcomes, then for all workers; return how many jobs are left."""
        for thread in (self.producer, self.retrier):
            thread.must_stop.set()
        self._later = [item for item in self._later if item[2] != self.kill_redis]  # what is due undoes a harm
        heapq.heapify(self._later)
        end = time.monotonic() + REST_SECONDS
        while (self._is_asking() or self._later or self.count_left()) and time.monotonic() < end:
            self.supervise()
            time.sleep(0.1)
        for worker in self._live:
            worker.process.send_signal(signal.SIGTERM)
        self.exits.update(worker.process.wait(60) for worker in self._live)
        # The last sweep: a worker looks after what dead ones left on its host before it takes jobs.
        self.stage.python = sys.executable
        last = self.stage.start(1)
        last.wait_ready()
        with contextlib.suppress(AssertionError):  # told by the audit
            # One that was told to end while it started has left its lease behind.
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


def report(soak: Soak, findings: list[Finding], audit: Audit) -> bool:
    """Print what was done and what holds; return whether all of it does."""
    table = Table("must hold", "of", "holds")
    for claim, count, faults in findings:
        table.add_row(claim, str(count or ""), "yes" if not faults else f"NO: {len(faults)}")
    console.print("\ndone to them:", count_by(soak.harms, lambda harm: harm.what))
    console.print(f"workers: {len(soak.stage.workers)}, their exit codes (times): {dict(soak.exits)}")
    if soak.earlier:
        console.print(f"workers of the earlier release: {len(soak.earlier)}")
    console.print(
        f"submits tried again: {soak.producer.retries}; runs that did not count: {soak.redis.xlen(KEY_PREFIX + 'duplicates')}"
    )
    retries = soak.retrier.retries
    console.print(
        f"retries that two producers started at once: {retries.twice}, letters clicked again later: {retries.late},"
        f" retries without an answer: {retries.failed}"
    )
    outcomes = audit.outcomes.values()
    console.print("outcomes of runs:", count_by(outcomes, lambda outcome: outcome.code.value))
    console.print("runs of a job:", count_by(audit.runs.values(), lambda count: f"with {count}"))
    console.print("starts of a run:", count_by(outcomes, lambda outcome: f"with {len(outcome.attempts)}"))
    console.print(table)
    console.print(grown_table(soak.growth))
    for claim, _, faults in findings:
        for fault in faults[:SHOWN]:
            console.print(f"not so: {claim}: {fault}", markup=False)
    return not any(finding.faults for finding in findings)


def grown_table(growth: Growth) -> Table:
    """Show the medians of the first and of the last third of the run."""
    table = Table("what may not grow", "samples", "first third", "last third", "grew")
    for measure, first, last, has_grown in growth.compare():
        shown = (f"{value / measure.scale:.1f}".removesuffix(".0") for value in (first, last))
        table.add_row(measure.name, str(len(growth.samples[measure])), *shown, "YES" if has_grown else "no")
    return table


def find_growth(soak: Soak) -> list[str]:
    """Say what grew, and whether the worker that was spared lives no more."""
    grown = [
        f"{measure.name}: {first / measure.scale:.1f}, then {last / measure.scale:.1f}"
        for measure, first, last, has_grown in soak.growth.compare()
        if has_grown
    ]
    if soak.spared_end is not None:
        grown.append(f"the worker that was spared ended by itself with {soak.spared_end}: {soak.spared.log[-1000:]}")
    return grown


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="how long things are broken")
    parser.add_argument("--jobs", type=int, default=1_000_000, help="at most so many jobs")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 16), help="of the random choices")  # noqa: S311
    parser.add_argument("--earlier", metavar="COMMIT", help="let every third worker be of this commit, such as e5bcdee")
    parser.add_argument("--images", type=Path, help="a store that has busybox, to save its making")
    parser.add_argument("--keep", type=Path, help="an empty folder for the logs, if they shall stay")
    args = parser.parse_args()
    console.print(f"soak: {args.minutes:g} minutes, seed {args.seed}")
    with tempfile.TemporaryDirectory(prefix="sfs-") as folder, contextlib.ExitStack() as stack:
        root = args.keep or Path(folder)
        images = args.images or root / "images"
        ImageStore(images).add("busybox")
        earlier = stack.enter_context(old_release(args.earlier, Path(folder) / "earlier")) if args.earlier else None
        soak = Soak(root, images, args.seed, args.jobs, earlier)
        try:
            soak.run(args.minutes * 60)
            left = soak.rest()
            with Fleet(Settings(redis_url=SecretStr(soak.server.url))) as fleet:
                producer = soak.producer
                audit = Audit(
                    soak.redis,
                    fleet,
                    soak.stage,
                    producer.batches,
                    producer.expected,
                    soak.retrier.retries,
                    max_attempts=MAX_ATTEMPTS,
                    once=producer.once,
                    harms=soak.harms,
                    clockless=soak.clockless,
                    earlier=soak.earlier,
                )
                findings = audit.findings()
                findings.append(Finding("all came to rest", left, [f"{left} jobs are left"] if left else []))
                errors = [repr(error) for error in (producer.error, soak.retrier.error) if error]
                findings.append(Finding("the producers came through", 0, errors))
                findings.append(Finding("nothing grew, and the worker that was spared lived", 0, find_growth(soak)))
                return 0 if report(soak, findings, audit) else 1
        finally:
            soak.close()


if __name__ == "__main__":
    sys.exit(main())
