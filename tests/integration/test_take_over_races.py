"""Many workers race to take dead ones over, and some die at it.

Each claim has one successor, and none is lost.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import redis
from fleet_keys import read_duplicates, read_owners, read_queue
from pydantic import SecretStr
from sandfleet import ErrorCode, Fleet, SandboxSpec, Settings
from sandfleet_config.outcome import Outcome
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, job_key
from sandfleet_config.run_summary import NO_FACTS, RunFacts
from sandfleet_worker.delivery.claim import Claim
from sandfleet_worker.delivery.claim_comparison import ClaimComparison
from sandfleet_worker.delivery.held_claims import HeldClaims
from sandfleet_worker.delivery.host_report import HostReport, Measured
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.lease import Lease
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.delivery.sweeper import Sweeper
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DEAD_WORKERS, JOBS_EACH = 6, 100
SUCCESSORS, MORTALS = 8, 3
LEASE_SECONDS = 1.0
MAX_SPEC_BYTES = 1 << 18
BATCH = "taken"


class Dead(BaseException):
    """The worker is killed here: nothing of it may go on."""


class CountingLedger(Ledger):
    """A ledger that notes its take-overs and decisions.

    It dies before the decision after `decisions_left`.
    """

    def __init__(self, client: redis.Redis, name: str, decisions_left: float) -> None:
        self.owner = f"successors:{name}:{name}"
        super().__init__(client, Identity("successors", f"successors.{name}", self.owner), 3600)
        self.taken_over: list[str] = []
        self.decided: list[tuple[str, bool]] = []
        self._decisions_left = decisions_left

    def reap(self, *, may_take: bool, passed_over: Iterable[str] = ()) -> tuple[str, list[tuple[Claim, str]]]:
        dead, taken = super().reap(may_take=may_take, passed_over=passed_over)
        self.taken_over += [dead] if dead else []
        return dead, taken

    def _die_in_time(self) -> None:
        if self._decisions_left <= 0:
            raise Dead
        self._decisions_left -= 1

    def retry(
        self, claim: Claim, code: ErrorCode, delay_seconds: float = 0.0, avoid_host: str = "", needs: str = ""
    ) -> bool:
        self._die_in_time()
        is_ours = super().retry(claim, code, delay_seconds, avoid_host, needs)
        self.decided.append((claim.job_id, is_ours))
        return is_ours

    def finish(
        self, claim: Claim, outcome: Outcome, faults: Any = (), reason: str = "", facts: RunFacts = NO_FACTS
    ) -> bool:
        self._die_in_time()
        is_ours = super().finish(claim, outcome, faults, reason, facts)
        self.decided.append((claim.job_id, is_ours))
        return is_ours


@dataclass
class Successor:
    """A worker of which only lease and sweeper run: a real lease, and sweeps as fast as they go."""

    client: redis.Redis
    name: str
    decisions_left: float
    start: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    errors: list[Exception] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ledger = CountingLedger(self.client, self.name, self.decisions_left)
        nothing: Any = lambda *_: ()  # noqa: E731
        report = HostReport(lambda: Measured({}), HeldClaims(1))
        comparison = ClaimComparison(self.ledger, HeldClaims(1), str)
        calls: Any = dict.fromkeys(("on_cancelled", "on_lost", "on_failure"), nothing)
        self.lease = Lease(self.ledger, LEASE_SECONDS, report=report, comparison=comparison, **calls)
        self.sweeper = Sweeper(self.ledger, self.lease, MAX_SPEC_BYTES, nothing)
        self.thread = threading.Thread(target=self._run)

    def open(self) -> None:
        self.lease.start()
        self.thread.start()

    def _run(self) -> None:
        self.start.wait()
        try:
            while not self.stop.is_set():
                self.sweeper.sweep()
        except Dead:
            self.lease._thread.tell_to_stop()  # no beat any more, and nobody gives the lease up
        except Exception as error:  # noqa: BLE001  the edge of the thread: told by the test
            self.errors.append(error)

    def close(self) -> None:
        self.start.set()
        self.stop.set()
        self.sweeper._thread.tell_to_stop()  # its own loop ends too, should there be no end of dead workers
        self.thread.join()
        self.lease.stop()
        self.client.close()


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    """A database of the test's own."""
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield client
        client.flushdb()


def submit(url: str) -> tuple[list[str], list[str]]:
    """Queue the jobs; return the ids of those that may be tried again, and of the others."""
    count = DEAD_WORKERS * JOBS_EACH
    specs = [SandboxSpec(image="x", command=["true"], max_attempts=1 if n % 10 == 0 else 3) for n in range(count)]
    with Fleet(Settings(redis_url=SecretStr(url))) as fleet:
        ids = [job.id for job in fleet.submit_many(specs, batch=BATCH)]
    return [id_ for n, id_ in enumerate(ids) if n % 10], ids[::10]


def claim_all(client: Any) -> list[tuple[Ledger, Claim]]:
    """Have each of the workers that will be dead claim its jobs."""
    found = []
    for number in range(DEAD_WORKERS):
        ledger = Ledger(client, Identity("old", f"old.{number}", f"old:{number}:{number}"), 3600)
        ledger.register(60)
        for at in range(JOBS_EACH):
            claim, _ = ledger.claim(f"claim-{number}-{at}", [DEFAULT_QUEUE])
            assert claim is not None
            found.append((ledger, claim))
    return found


def race(client: Any, successors: list[Successor], dead: set[str]) -> None:
    """Let the workers `dead` die; the mortals take them over first, and the others the rest."""
    mortals, survivors = successors[:MORTALS], successors[MORTALS:]
    wait_until(lambda: all(one.lease.may_take_over for one in successors), 10, "the successors know the fleet")
    client.zadd(f"{KEY_PREFIX}owners", dict.fromkeys(dead, 1))
    for one in mortals:
        one.start.set()
    wait_until(lambda: all(one.ledger.taken_over for one in mortals), 10, "each mortal has taken somebody over")
    for one in survivors:
        one.start.set()
    alive = {one.ledger.owner for one in survivors}
    wait_until(lambda: read_owners(client) == alive, 20, "the dead are taken over, and those who died at it")
    wait_until(lambda: not client.keys(f"{KEY_PREFIX}claims:*"), 20, "all is decided")
    for one in successors:
        one.stop.set()
        one.thread.join()
    assert [one.errors for one in successors] == [[]] * SUCCESSORS
    assert not any(one.lease.is_lost for one in survivors)
    taken_over = Counter(name for one in successors for name in one.ledger.taken_over)
    assert taken_over == Counter(dead) + Counter(one.ledger.owner for one in mortals), "each had one successor"


def test_many_successors_take_each_claim_once_though_some_die_at_it(url: str, client: Any) -> None:
    again, never_again = submit(url)
    held = claim_all(client)
    # The mortals die with claims that they have taken: one at once, the others in the middle of
    # their decisions.
    lives = [0, 7, 40] + [float("inf")] * (SUCCESSORS - MORTALS)
    successors = [Successor(redis.Redis.from_url(url), f"{number}", life) for number, life in enumerate(lives)]
    with ExitStack() as stack:
        for successor in successors:
            stack.callback(successor.close)
            successor.open()
        race(client, successors, {ledger._identity.owner for ledger, _ in held})

        decided = Counter(job_id for one in successors for job_id, is_ours in one.ledger.decided if is_ours)
        assert decided == Counter(again + never_again), "each job was decided about once"
        assert sorted(read_queue(client)) == sorted(again)
        ended = [fields[b"id"].decode() for _, fields in client.xrange(f"{KEY_PREFIX}ends:{BATCH}")]
        assert sorted(ended) == sorted(never_again)
        assert {client.hget(job_key(job_id), "code") for job_id in never_again} == {b"WORKER_LOST"}
        for ledger, claim in held:
            attempts = json.loads(client.hget(job_key(claim.job_id), "attempts"))
            assert [(item["worker"], item["code"]) for item in attempts] == [(ledger._identity.worker, "WORKER_LOST")]
        # The dead come back: each of their claims is fenced off, and changes nothing.
        assert not any(ledger.finish(claim, Outcome.of(ErrorCode.OK, claim.job_id)) for ledger, claim in held)
        assert not any(ledger.retry(claim, ErrorCode.INTERNAL) for ledger, claim in held)
        assert sorted(read_queue(client)) == sorted(again)
        lines = Counter((claim_id, kind) for claim_id, kind, _ in read_duplicates(client))
        assert lines == Counter((claim.claim_id, "outcome") for _, claim in held), "one line a run, none for decisions"
