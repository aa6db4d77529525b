"""A busy fleet in memory: what the pages' tests and the pictures of the docs show."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from memory_fleet import MemoryFleetState, MemoryHistory
from sandfleet.channel.dead_letter import DeadLetter
from sandfleet.channel.fleet_state import (
    AuditEntry,
    Cordon,
    FleetSummary,
    HostImage,
    Pause,
    PreparedStarts,
    QueueState,
    RunningJob,
    WorkerStatus,
)
from sandfleet.channel.job_facts import JobFacts
from sandfleet.channel.overview import BatchEntry, EndedJob, Queued
from sandfleet.history.questions import FailureGroup, HistoryStatus, PastAttempt, PastRun
from sandfleet_config.codes import ErrorCode, read_code
from sandfleet_config.outcome import Attempt
from sandfleet_web.pages.acts import Done, Preview, Wish

if TYPE_CHECKING:
    from sandfleet_web.pages.user_files import Viewer

NOW: Final = 1_795_956_194.0
HOSTS: Final = 8
SLOTS: Final = 8
JOB: Final = "9f3c2a71-4bc8-454b-919c-4ec2c5a7054a"
WAITING_JOB: Final = "5b1d9e02-77aa-4c1e-8f0b-2d6c1f6c0c11"
MIX: Final = (
    ("OK", "ok", 860),
    ("EXIT_NONZERO", "program", 90),
    ("TIMEOUT", "limit", 30),
    ("OUT_OF_MEMORY", "limit", 8),
    ("CANCELLED", "control", 6),
    ("SANDBOX_EXECUTION_FAILED", "host", 2),
)
MESSAGES: Final = {
    "EXIT_NONZERO": "exit 2",
    "TIMEOUT": "the program ran longer than 30 s",
    "OUT_OF_MEMORY": "the job used more than its 512 MiB",
    "SANDBOX_EXECUTION_FAILED": "the sandbox died: cannot read from the sentry",
    "CANCELLED": "the job was cancelled",
}


@dataclass
class MemoryOverview:
    """The part of `Overview` that pages read."""

    entries: list[BatchEntry] = field(default_factory=list)
    jobs: dict[str, JobFacts] = field(default_factory=dict)

    def list_batches(self, first: int, count: int) -> list[BatchEntry]:
        return self.entries[first : first + count]

    def batch_entry(self, name: str) -> BatchEntry:
        return next((one for one in self.entries if one.name == name), BatchEntry(name, 0, 0, {}, is_sealed=False))

    def member_pages(self, name: str) -> Iterator[list[str]]:
        yield [job.job_id for job in self.jobs.values() if job.batch == name]

    def ended_pages(self, name: str) -> Iterator[list[EndedJob]]:
        yield self.newest_ended(name, 10_000)

    def newest_ended(self, name: str, count: int) -> list[EndedJob]:
        found = [job for job in self.jobs.values() if job.batch == name and job.state == "ended"]
        found.sort(key=lambda job: -job.ended)
        return [EndedJob(job.job_id, job.run, job.code.value if job.code else "", job.ended) for job in found[:count]]

    def facts(self, job_ids: Sequence[str]) -> list[JobFacts | None]:
        return [self.jobs.get(job_id) for job_id in job_ids]

    def find_queued(self, job: JobFacts) -> Queued:  # noqa: ARG002  as in `Overview`
        return Queued(3100, 3100, 40, is_served=True)


@dataclass
class MemoryChannel:
    """The part of `Channel` that pages read."""

    fleet_state: MemoryFleetState
    overview: MemoryOverview = field(default_factory=MemoryOverview)
    dead: list[DeadLetter] = field(default_factory=list)

    def records(self, job_ids: Sequence[str]) -> list[None]:
        return [None for _ in job_ids]

    def explain_no_claims(self) -> str:
        return ""

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        return self.dead[:limit]

    def close(self) -> None:
        """There is nothing to close."""


@dataclass
class MemoryActs:
    """Notes what it is asked to do."""

    state: MemoryFleetState
    done: list[tuple[str, Wish]] = field(default_factory=list)
    count: int = 42

    def preview(self, wish: Wish) -> Preview:
        notes = ("3 jobs run there now",) if wish.verb in {"cordon", "drain"} else ()
        return Preview(self.count, notes, ("9f3c2a71", "5b1d9e02") if wish.verb in {"retry", "cancel"} else ())

    def perform(self, wish: Wish, viewer: Viewer) -> Done:
        self.done.append((viewer.name, wish))
        if wish.verb == "cordon":
            self.state.cordon(Cordon(wish.target, viewer.name, NOW, wish.reason))
        entry = AuditEntry(
            entry_id=f"{len(self.done)}-0",
            at=NOW,
            by=viewer.name,
            role=viewer.role,
            via="web",
            action=wish.verb,
            target=wish.describe(),
            count=self.count,
            reason=wish.reason,
        )
        self.state.add_audit(entry)
        return Done(f"{wish.verb}: done", self.count)


@dataclass
class Scene:
    """All of it."""

    state: MemoryFleetState
    history: MemoryHistory
    channel: MemoryChannel
    acts: MemoryActs
    now: float


def new_scene(now: float = NOW) -> Scene:
    """Return a busy fleet: an odd host, a queue that is not served, batches, failures."""
    chance = random.Random(7)  # noqa: S311  no secret
    state = MemoryFleetState(_new_summary(now))
    channel = MemoryChannel(state)
    history = MemoryHistory(_new_runs(chance, now), groups=_new_groups(now))
    history.state = HistoryStatus(at=now, number=41_880, head=41_883, lag_seconds=1.0, rows=len(history.runs))
    _add_running(state, channel, now)
    _add_jobs(channel, now)
    channel.overview.entries = _new_batches(now)
    channel.dead = [
        DeadLetter(
            job_id=f"dead-{number}",
            code=ErrorCode.WORKER_LOST,
            reason="its worker died 3 times while it ran",
            at=now - 600 * number,
            queue="rl",
            batch="sweep-12",
            line="python python3 /work/eat.py",
        )
        for number in range(1, 4)
    ]
    state.audit = [
        AuditEntry(
            entry_id="3-0", at=now - 310, by="ann", role="operator", via="web", action="drain", target="host-06",
            count=5, reason="kernel update", result="5 jobs run there",
        ),
        AuditEntry(
            entry_id="2-0", at=now - 1320, by="ops", role="operator", via="cli", action="resume", target="nightly",
            reason="the data is there",
        ),
        AuditEntry(
            entry_id="1-0", at=now - 9000, by="ops", role="operator", via="cli", action="retry", target="batch sweep-11",
            count=812, reason="fixed image", result="812 queued, 3 left alone",
        ),
    ]  # fmt: skip
    return Scene(state, history, channel, MemoryActs(state), now)


def _new_summary(now: float) -> FleetSummary:
    workers = [_new_worker(number, now) for number in range(1, HOSTS + 1)]
    workers[5] = replace(workers[5], state="draining", busy=5, running=5)
    queues = (
        QueueState(name="rl", waiting={0: 210, 3: 17_220}, oldest=now - 252, workers=8),
        QueueState(name="rl-eval", waiting={0: 412}, oldest=now - 671, workers=0),
        QueueState(name="nightly", waiting={0: 362}, oldest=now - 9, workers=8),
        QueueState(
            name="imports", waiting={0: 48}, oldest=now - 3900, workers=8,
            pause=Pause("imports", "ops", now - 3600, "waits for the new data set"),
        ),
        QueueState(name="sandfleet", workers=8),
    )  # fmt: skip
    return FleetSummary(
        at=now,
        workers=tuple(workers),
        cordons=(Cordon("host-06", "ann", now - 310, "kernel update", now + 1490),),
        queues=queues,
        delayed=3,
        parked=1200,
        dead_letters=3,
        redis_used=440_000_000,
        redis_max=1 << 30,
        ended_runs=41_883,
    )


def _new_worker(number: int, now: float) -> WorkerStatus:
    return WorkerStatus(
        owner=f"host-{number:02}:412:a1b2",
        host=f"host-{number:02}",
        state="up",
        queues=("rl", "nightly", "imports", "sandfleet"),
        slots=SLOTS,
        busy=SLOTS if number != 4 else 6,
        running=SLOTS if number != 4 else 6,
        waiting=1,
        warm={"python": 2, "busybox": 1},
        prepared=PreparedStarts(41, {"no_spare": 3}) if number == 8 else PreparedStarts(),
        lease_seconds=4.9,
        load=7.4,
        memory_free=6 << 30,
        memory_budget=28 << 30,
        disk_free=210 << 30,
        version="0.1.0",
        runsc="20260905.0",
        platform="systrap",
        started=now - 86_400 * 3,
        seen=now - 1,
        labels={"arch": "x86_64"},
    )


def _new_runs(chance: random.Random, now: float) -> list[PastRun]:
    codes = [(code, category) for code, category, weight in MIX for _ in range(weight)]
    runs = []
    for number in range(3000):
        code, category = chance.choice(codes)
        host = f"host-{chance.randrange(1, HOSTS + 1):02}"
        if host == "host-07" and chance.random() < 0.09:
            code, category = "SANDBOX_EXECUTION_FAILED", "host"
        ended = now - 3599 * (number / 3000) ** 1.2
        runs.append(_new_run(f"job-{number}", (code, category), host, ended, chance.uniform(0.1, 9)))
    return runs


def _new_run(job_id: str, code: tuple[str, str], host: str, ended: float, seconds: float) -> PastRun:
    name, category = code
    return PastRun(
        number=41_880,
        job_id=job_id,
        run=1,
        code=name,
        category=category,
        submitted=ended - seconds - 38,
        started=ended - seconds,
        ended=ended,
        batch="nightly-311",
        queue="nightly",
        host=host,
        image="python",
        image_digest="sha256:8c1f0e5d9b7a",
        labels={"suite": "s7", "name": f"case {job_id[4:]}"},
        line=f"python python3 /work/run.py --case {job_id[4:]}",
        message=MESSAGES.get(name, ""),
        fingerprint=name.lower() if category != "ok" else "",
        exit_code=0 if name == "OK" else 2 if name == "EXIT_NONZERO" else None,
        start="warm",
        steps={"queued": 38.0, "image": 0.01, "create": 0.02, "run": seconds, "cleanup": 0.05},
        cpu_seconds=seconds * 0.9,
        memory_peak_bytes=120 << 20,
        memory_bytes=512 << 20,
        attempts=(
            PastAttempt(host=host, worker=f"{host}:412", slot=3, code=name, started=ended - seconds, ended=ended),
        ),
    )


def _new_groups(now: float) -> list[FailureGroup]:
    facts = (
        ("EXIT_NONZERO", "program", "exit 2", 1890, 8, 1, "host-03"),
        ("TIMEOUT", "limit", "the program ran longer than # s", 702, 8, 2, "host-01"),
        ("SANDBOX_EXECUTION_FAILED", "host", "the sandbox died: cannot read from the sentry", 61, 1, 2, "host-07"),
    )
    return [
        FailureGroup(
            code=code, category=category, message=message, fingerprint=code.lower(), image="python", count=count,
            hosts=hosts, batches=batches, first=now - 1980, last=now - 20, example=JOB, top_host=host,
            top_batch="sweep-12", trend=tuple(max(0, (place * 37 + count) % (7 + place)) for place in range(24)),
        )
        for code, category, message, count, hosts, batches, host in facts
    ]  # fmt: skip


def _add_running(state: MemoryFleetState, channel: MemoryChannel, now: float) -> None:
    for worker in state.summary.workers:
        jobs = []
        for slot in range(worker.running):
            job_id = f"{worker.host}-run-{slot}"
            started = now - 3 - 17 * slot if slot else 0.0
            jobs.append(RunningJob(job_id, worker.owner, slot, started))
            channel.overview.jobs[job_id] = JobFacts(
                job_id,
                state="running" if slot else "waiting",
                batch="sweep-12",
                queue="rl",
                line=f"python python3 /work/run.py --case {slot}",
                image="python",
                attempts=(_new_attempt(worker.host, started, None, None),) if slot else (),
                max_attempts=3,
                submitted=now - 300,
            )
        state.running[worker.host] = jobs
        state.images[worker.host] = [
            HostImage(
                "python",
                "sha256:8c1f0e5d9b7a" if worker.host != "host-07" else "sha256:11aa22bb33cc",
                61 << 20,
                now - 3,
            ),
            HostImage("busybox", "sha256:77ab00000000", 1 << 20, now - 4000),
        ]


def _new_attempt(host: str, started: float, ended: float | None, code: str | None) -> Attempt:
    return Attempt(
        host=host,
        worker=f"{host}:412:a1b2",
        code=read_code(code) if code else None,
        started=datetime.fromtimestamp(started, UTC),
        ended=datetime.fromtimestamp(ended, UTC) if ended else None,
        charged=code is None,
    )


def _add_jobs(channel: MemoryChannel, now: float) -> None:
    needs: dict[str, Any] = {"memory_bytes": 512 << 20, "timeout": 900.0}
    first = _new_attempt("host-07", now - 690, now - 571, "WORKER_LOST")
    channel.overview.jobs[JOB] = JobFacts(
        JOB, state="running", batch="sweep-12", queue="rl", step=6, labels={"suite": "s7", "case": "c77"},
        line="python python3 /work/run.py --case 77", image="python", needs=needs,
        attempts=(first, _new_attempt("host-03", now - 566, None, None)), max_attempts=3, submitted=now - 1949,
    )  # fmt: skip
    channel.overview.jobs[WAITING_JOB] = JobFacts(
        WAITING_JOB, state="queued", batch="sweep-12", queue="rl", step=3, line="python python3 /work/run.py --case 9041",
        image="python", needs=needs, max_attempts=3, submitted=now - 200, expires=now + 85_740,
        why="needs 1 GiB of memory, host-07 has 600 MiB free",
    )  # fmt: skip


def _new_batches(now: float) -> list[BatchEntry]:
    nightly = Counter({"OK": 58_453, "EXIT_NONZERO": 2601, "TIMEOUT": 1004, "WORKER_LOST": 60})
    sweep = Counter({"OK": 6771, "EXIT_NONZERO": 1903, "TIMEOUT": 702, "OUT_OF_MEMORY": 103, "WORKER_LOST": 61})
    return [
        BatchEntry("nightly-311", 100_000, nightly.total(), nightly, True, now - 7200, now - 1),
        BatchEntry("sweep-12", 10_000, sweep.total(), sweep, True, now - 1990, now - 2),
        BatchEntry("smoke", 40, 40, {"OK": 40}, True, now - 14_000, now - 13_800),
        BatchEntry("imports", 48, 0, {}, False, now - 3900, 0.0),
    ]
