"""The audit of the soak finds wrong runs, ends and counts."""

from __future__ import annotations

import contextlib
import socket
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import redis
from audit import Audit
from pydantic import SecretStr
from retries import Retries
from sandfleet import ErrorCode, Fleet, Outcome, SandboxSpec, Settings
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, job_key, run_key
from sandfleet_worker.delivery.claim import Claim
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandfleet import Job

ONE_OUTCOME = "exactly one outcome of each run was recorded; ends and counts of batches say the same"
READABLE = "every run of every accepted job has an outcome, and says which run it is"
ONE_RUN = "each retry started one run, also where two producers did it at once"
LETTERS = "the dead letters are the jobs whose newest run ended by the host"
TOLD = "all starts, those beyond the first too, are in attempts[]"
ONCE = "no job with max_attempts=1 was started twice in a run"
CLAIMS = {ONE_OUTCOME, READABLE, ONE_RUN, LETTERS, TOLD, ONCE}
WORKER = f"{socket.gethostname()}.1"


class Rest:
    """A fleet at rest after three jobs.

    One ended at once, one was retried and ended, one has a second run that is a dead letter.
    """

    def __init__(self, url: str, client: Any) -> None:
        self.client = client
        self.fleet = Fleet(Settings(redis_url=SecretStr(url)))
        self._ledger = Ledger(client, Identity("host", WORKER, "host:one:1"), 3600)
        self._ledger.register(3600)
        self.retries = Retries()
        self.log = ""
        self.earlier: set[int] = set()
        spec = SandboxSpec(image="x", command=["true"], max_attempts=1)
        self.jobs = [self.fleet.submit(spec, batch="b") for _ in range(3)]
        _, again, dead = self.jobs
        for job in self.jobs:
            self._end(job, ErrorCode.OK if job is self.jobs[0] else ErrorCode.WORKER_LOST)
        for job in (again, dead):
            self.retry(job, 1)
            self._end(job, ErrorCode.OK if job is again else ErrorCode.WORKER_LOST)

    def retry(self, job: Job, run: int) -> None:
        self.retries.asked[job.id].add(run)
        self.fleet.dead.requeue(job.id, run)
        self.retries.answered[job.id].add(run)

    def _end(self, job: Job, code: ErrorCode) -> None:
        claim, _ = self._ledger.claim(f"claim-{time.monotonic_ns()}", [DEFAULT_QUEUE])
        assert isinstance(claim, Claim)
        assert claim.job_id == job.id
        attempts = claim.end_attempts(code)
        outcome = Outcome.of(code, job.id, exit_code=0, batch="b", attempts=attempts)
        reason = "" if code is ErrorCode.OK else "no attempt is left"
        assert self._ledger.finish(claim, outcome, reason=reason)

    def find_faults(self) -> set[str]:
        """Return the claims that do not hold."""
        worker = SimpleNamespace(process=SimpleNamespace(pid=1), log=self.log)
        stage: Any = SimpleNamespace(workers=[worker], find_leftovers=list)
        expected = {job.id: ErrorCode.OK for job in self.jobs}
        audit = Audit(
            self.client,
            self.fleet,
            stage,
            ["b"],
            expected,
            self.retries,
            max_attempts=1,
            once=set(expected),
            earlier=self.earlier,
        )
        return {finding.claim for finding in audit.findings() if finding.faults}


def start_line(job: Job, run: int) -> str:
    number = f" (run {run})" if run > 1 else ""
    return f"12:00:00 INFO job {job.id} starts{number}: x true (0 arguments) action=job_started job_id={job.id}\n"


def add_end(rest: Rest) -> None:
    """Record an outcome of the last run once more; the end before is taken out, as a retry does."""
    key = f"{KEY_PREFIX}ends:b"
    entry = rest.client.hget(job_key(rest.jobs[0].id), "end_entry")
    fields = rest.client.xrange(key, entry, entry)[0][1]
    rest.client.xdel(key, entry)
    rest.client.xadd(key, fields)


def log_again(rest: Rest) -> None:
    """Start the first run twice, and the second one never."""
    rest.log = start_line(rest.jobs[1], 1) * 2


WRONG: tuple[tuple[str, Callable[[Rest], object]], ...] = (
    (ONE_OUTCOME, add_end),
    (ONE_OUTCOME, lambda rest: rest.client.hincrby(f"{KEY_PREFIX}counts:b", "OK", 1)),
    (
        ONE_OUTCOME,
        lambda rest: rest.client.xadd(f"{KEY_PREFIX}ends:b", {"id": rest.jobs[1].id, "run": 1, "code": "OK"}),
    ),
    (READABLE, lambda rest: rest.client.delete(run_key(rest.jobs[1].id, 1))),
    (READABLE, lambda rest: rest.client.rename(run_key(rest.jobs[1].id, 1), run_key(rest.jobs[2].id, 1))),
    (ONE_RUN, lambda rest: rest.retries.answered[rest.jobs[0].id].add(1)),
    (ONE_RUN, lambda rest: rest.client.hset(job_key(rest.jobs[1].id), "run", 3)),
    (LETTERS, lambda rest: rest.fleet.dead.purge([rest.jobs[2].id])),
    (LETTERS, lambda rest: rest.client.hset(f"{KEY_PREFIX}dead:{rest.jobs[2].id}", "run", 1)),
    (TOLD, log_again),
    (ONCE, log_again),
)


@pytest.fixture
def new_rest(redis_server: Any) -> Iterator[Callable[[], Rest]]:
    url = str(redis_server.url).replace("db=0", "db=9")
    with redis.Redis.from_url(url, protocol=2) as client, contextlib.ExitStack() as stack:

        def make() -> Rest:
            client.flushdb()
            rest = Rest(url, client)
            stack.callback(rest.fleet.close)
            return rest

        yield make
        client.flushdb(asynchronous=True)


def test_the_audit_finds_wrong_runs_and_batches(new_rest: Callable[[], Rest]) -> None:
    for number, (claim, spoil) in enumerate(WRONG):
        rest = new_rest()
        rest.log = "".join(start_line(rest.jobs[1], run) for run in (1, 2))
        assert not rest.find_faults() & CLAIMS
        spoil(rest)
        assert claim in rest.find_faults(), number


def test_the_audit_counts_starts_of_an_earlier_release_over_all_runs(new_rest: Callable[[], Rest]) -> None:
    rest = new_rest()
    rest.earlier = {1}
    job = rest.jobs[1]
    drained = f"12:00:00 INFO job {job.id} goes back to the queue: drained action=job_withdrawn job_id={job.id}\n"
    for starts, withdrawn, faults in ((2, 0, set()), (3, 1, set()), (3, 0, {TOLD, ONCE})):
        rest.log = start_line(job, 1) * starts + drained * withdrawn
        assert rest.find_faults() & CLAIMS == faults, (starts, withdrawn)
