"""Many workers race to take dead ones over, and some of them die at it: each claim has one successor, and none is lost."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import redis
from pydantic import SecretStr
from sandfleet import ErrorCode, Fleet, SandboxSpec, Settings
from sandfleet_config.outcome import Outcome
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, job_key
from sandfleet_config.scripts import PRIORITY_STEPS
from sandfleet_worker.delivery.claim import Claim
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.lease import Lease
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.delivery.sweeper import DELAYS_SECONDS, Sweeper
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
    """A ledger that notes whom it takes over and what it decides, and dies before the decision after `decisions_left`."""

    def __init__(self, client: redis.Redis, name: str, decisions_left: float) -> None:
        self.owner = f"successors:{name}:{name}"
        super().__init__(client, Identity("successors", f"successors.{name}", self.owner), 3600)
        self.taken_over: list[str] = []
        self.decided: list[tuple[str, bool]] = []
        self._decisions_left = decisions_left

    def reap(self, *, may_take: bool, passed_over: Iterable[str] = ()) -> tuple[str, list[tuple[Claim, bool]]]:
        dead, taken = super().reap(may_take=may_take, passed_over=passed_over)
        self.taken_over += [dead] if dead else []
        return dead, taken

    def _die_in_time(self) -> None:
        if self._decisions_left <= 0:
            raise Dead
        self._decisions_left -= 1

    def retry(self, claim: Claim, code: ErrorCode, delay_seconds: float = 0.0, avoid_host: str = "") -> bool:
        self._die_in_time()
        is_ours = super().retry(claim, code, delay_seconds, avoid_host)
        self.decided.append((claim.job_id, is_ours))
        return is_ours

    def finish(self, claim: Claim, outcome: Outcome, faults: Any = (), reason: str = "") -> bool:
        self._die_in_time()
        is_ours = super().finish(claim, outcome, faults, reason)
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
        self.lease = Lease(
            self.ledger, LEASE_SECONDS, claims=nothing, on_cancelled=nothing, on_lost=nothing, on_failure=nothing
        )
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
    """Queue the jobs; return the ids of those that may be tried again, and of those that may not."""
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


def read_queue(client: Any) -> list[str]:
    keys = [f"{KEY_PREFIX}{DEFAULT_QUEUE}" + (f"\x06\x16{step}" if step else "") for step in PRIORITY_STEPS]
    waiting = [job_id.decode() for job_id in client.zrange(f"{KEY_PREFIX}delayed", 0, -1)]
    return waiting + [json.loads(message)["headers"]["id"] for key in keys for message in client.lrange(key, 0, -1)]


def read_owners(client: Any) -> set[str]:
    return {name.decode() for name in client.zrange(f"{KEY_PREFIX}owners", 0, -1)}


def test_many_successors_take_each_claim_once_though_some_die_at_it(url: str, client: Any) -> None:
    again, never_again = submit(url)
    held = claim_all(client)
    # The mortals die with claims that they have taken: one at once, the others in the middle of their decisions.
    lives = [0, 7, 40] + [float("inf")] * (SUCCESSORS - MORTALS)
    successors = [Successor(redis.Redis.from_url(url), f"{number}", life) for number, life in enumerate(lives)]
    mortals, survivors = successors[:MORTALS], successors[MORTALS:]
    with ExitStack() as stack:
        for successor in successors:
            stack.callback(successor.close)
            successor.open()
        wait_until(
            lambda: all(successor.lease.may_take_over for successor in successors), 10, "the successors know the fleet"
        )
        dead = {ledger._identity.owner for ledger, _ in held}
        client.zadd(f"{KEY_PREFIX}owners", dict.fromkeys(dead, 1))

        for successor in mortals:
            successor.start.set()
        wait_until(
            lambda: all(successor.ledger.taken_over for successor in mortals), 10, "each mortal has taken somebody over"
        )
        for successor in survivors:
            successor.start.set()

        alive = {successor.ledger.owner for successor in survivors}
        wait_until(lambda: read_owners(client) == alive, 20, "the dead are taken over, and those who died at it")
        wait_until(lambda: not client.keys(f"{KEY_PREFIX}claims:*"), 20, "all is decided")
        for successor in successors:
            successor.stop.set()
            successor.thread.join()

        assert [successor.errors for successor in successors] == [[]] * SUCCESSORS
        assert not any(successor.lease.is_lost for successor in survivors)
        taken_over = Counter(name for successor in successors for name in successor.ledger.taken_over)
        assert taken_over == Counter(dead) + Counter(successor.ledger.owner for successor in mortals), (
            "each had one successor"
        )
        decided = Counter(job_id for successor in successors for job_id, is_ours in successor.ledger.decided if is_ours)
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
        told = Counter((claim_id, kind) for claim_id, kind, _ in read_duplicates(client))
        assert told == Counter((claim.claim_id, "outcome") for _, claim in held), "one line a run, none for decisions"


@pytest.fixture
def workers(url: str, client: Any) -> list[Ledger]:
    """Two workers with leases, and a queue of jobs."""
    with Fleet(Settings(redis_url=SecretStr(url))) as fleet:
        fleet.submit_many([SandboxSpec(image="x", command=["true"])] * 4, batch=BATCH)
    ledgers = [Ledger(client, Identity("host", name, f"host:{name}:{name}"), 3600) for name in ("one", "two")]
    for ledger in ledgers:
        ledger.register(60)
    return ledgers


def claim_one(ledger: Ledger, claim_id: str) -> Claim:
    claim, _ = ledger.claim(claim_id, [DEFAULT_QUEUE])
    assert claim is not None
    return claim


def read_duplicates(client: Any) -> list[tuple[str, str, str]]:
    entries = [fields for _, fields in client.xrange(f"{KEY_PREFIX}duplicates")]
    return [(fields[b"claim"].decode(), fields[b"kind"].decode(), fields[b"code"].decode()) for fields in entries]


def test_each_fenced_run_leaves_one_line_however_it_ends_and_however_often_it_is_told(
    client: Any, workers: list[Ledger]
) -> None:
    one, two = workers
    late, killed, failed = (claim_one(one, name) for name in ("late", "killed", "failed"))
    one.leave()
    assert two.reap(may_take=True)[0] == "host:one:one"

    for _ in range(2):
        assert not one.finish(late, Outcome.of(ErrorCode.EXIT_NONZERO, late.job_id))
        assert not one.release(killed)
        assert not one.retry(failed, ErrorCode.SANDBOX_CREATION_FAILED)

    assert read_duplicates(client) == [
        ("late", "outcome", "EXIT_NONZERO"),
        ("killed", "run", "WORKER_LOST"),
        ("failed", "run", "SANDBOX_CREATION_FAILED"),
    ]
    assert client.ttl(f"{KEY_PREFIX}duplicates") > 0


def test_a_repeated_give_back_is_no_fenced_run_whoever_had_the_job_since(client: Any, workers: list[Ledger]) -> None:
    one, two = workers
    first = claim_one(one, "first")
    assert one.release(first)
    second = claim_one(two, "second")
    assert second.job_id == first.job_id
    assert two.retry(second, ErrorCode.INTERNAL)

    # Its answer got lost, and it asks again.
    assert one.release(first)
    assert two.retry(second, ErrorCode.INTERNAL)

    assert read_duplicates(client) == []
    assert len(read_queue(client)) == 4
    told = json.loads(client.hget(job_key(first.job_id), "attempts"))
    assert [(item["worker"], item.get("charged", True)) for item in told] == [("one", False), ("two", True)]


@pytest.fixture
def no_memory(client: Any) -> Iterator[None]:
    """Let Redis be at its maxmemory from the moment that a test sets it."""
    yield
    client.config_set("maxmemory", 0)


def test_at_maxmemory_all_that_ends_is_recorded_and_no_job_is_claimed(
    client: Any, workers: list[Ledger], no_memory: None
) -> None:
    one, two = workers
    done, failed, late = claim_one(one, "done"), claim_one(one, "failed"), claim_one(two, "late")
    client.config_set("maxmemory", 1)

    with pytest.raises(redis.exceptions.OutOfMemoryError):
        one.claim("more", [DEFAULT_QUEUE])
    assert len(read_queue(client)) == 1, "what cannot be claimed stays"

    one.register(60)
    assert one.beat(60, []) == ([], [])
    two.leave()
    assert one.reap(may_take=True)[0] == "host:two:two"
    ((taken, _),) = one.reap(may_take=False)[1]
    assert one.retry(taken, ErrorCode.WORKER_LOST)
    assert not two.finish(late, Outcome.of(ErrorCode.OK, late.job_id))
    assert one.finish(done, Outcome.of(ErrorCode.OK, done.job_id))
    assert one.retry(failed, ErrorCode.INTERNAL)

    assert client.exists(f"{KEY_PREFIX}celery-task-meta-{done.job_id}")
    assert read_duplicates(client) == [("late", "outcome", "OK")]
    assert len(read_queue(client)) == 3
    client.config_set("maxmemory", 0)
    time.sleep(DELAYS_SECONDS[0])  # the dead worker's job waits so long
    assert {claim_one(one, name).job_id for name in "abc"} >= {failed.job_id, late.job_id}


def test_a_dead_workers_job_does_not_come_back_at_once(client: Any, workers: list[Ledger]) -> None:
    """It may be what killed the worker: those beside it go first."""
    one, two = workers
    poison = claim_one(one, "poison")
    one.leave()
    lease: Any = SimpleNamespace(may_take_over=True)
    Sweeper(two, lease, MAX_SPEC_BYTES, lambda _: None).sweep()

    assert claim_one(two, "next").job_id != poison.job_id
    assert client.zscore(f"{KEY_PREFIX}delayed", poison.job_id)
    assert client.hget(job_key(poison.job_id), "avoid") == b"host"


def test_a_sweep_goes_on_behind_claims_that_cannot_be_decided(client: Any, workers: list[Ledger]) -> None:
    one, two = workers
    spoilt, good = claim_one(one, "spoilt"), claim_one(one, "good")
    client.hset(
        job_key(spoilt.job_id),
        mapping={"queue": "wrong", "step": "0", "attempts": "{", "max_attempts": "x", "flag": "y"},
    )
    client.zadd(f"{KEY_PREFIX}wrong", {"x": 1})
    strange = {
        b"strange": b"no JSON",
        b"list": b"[]",
        b"id": b'{"headers": {"id": 7}}',
        b"hex": b'{"headers": {"id": "hex"}, "x": 0x10}',
    }
    client.hset(f"{KEY_PREFIX}claims:host:one:one", mapping=strange)
    client.set(f"{KEY_PREFIX}claims:host:three:three", "no hash")
    client.zadd(f"{KEY_PREFIX}owners", {"host:three:three": 0})
    one.leave()
    lease: Any = SimpleNamespace(may_take_over=True)
    sweeper = Sweeper(two, lease, MAX_SPEC_BYTES, lambda _: None)

    sweeper.sweep()

    assert client.hget(job_key(good.job_id), "state") == b"queued"
    assert read_owners(client) == {"host:two:two"}
    left = list(client.hgetall(f"{KEY_PREFIX}claims:host:two:two").values())
    assert [json.loads(message)["headers"]["id"] for message in left] == [spoilt.job_id], (
        "nothing else is left, and it waits"
    )
    client.delete(f"{KEY_PREFIX}wrong")
    sweeper._passed_over.clear()
    sweeper.sweep()
    assert client.hget(job_key(spoilt.job_id), "state") == b"queued"


def test_a_job_whose_claim_is_deleted_has_its_outcome_and_is_taken_over(client: Any, workers: list[Ledger]) -> None:
    one, two = workers
    ended, retried, restored = (claim_one(one, name) for name in ("ended", "retried", "restored"))
    client.delete(f"{KEY_PREFIX}claims:host:one:one")

    assert one.finish(ended, Outcome.of(ErrorCode.OK, ended.job_id))
    assert client.hget(job_key(ended.job_id), "state") == b"ended"
    assert one.retry(retried, ErrorCode.INTERNAL)
    assert retried.job_id in read_queue(client)
    assert one.beat(60, [restored]) == ([], ["restored"])
    assert [one.restore(claim) for claim in (ended, retried, restored)] == [False, False, True]
    assert one.beat(60, [restored]) == ([], [])
    one.leave()
    two.reap(may_take=True)
    assert not one.restore(restored), "another worker has it"
    assert not one.finish(restored, Outcome.of(ErrorCode.OK, restored.job_id))
