"""A dead worker's jobs are taken over once, fenced off from it, and do not block each other."""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import redis
from fleet_keys import read_duplicates, read_owners, read_queue
from pydantic import SecretStr
from sandfleet import ErrorCode, Fleet, SandboxSpec, Settings
from sandfleet_config.outcome import Outcome, StreamOutput
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, job_key
from sandfleet_worker.delivery import end_calls
from sandfleet_worker.delivery.claim import Claim
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.delivery.sweeper import DELAYS_SECONDS, Sweeper

if TYPE_CHECKING:
    from collections.abc import Iterator

LEASE_SECONDS = 1.0
MAX_SPEC_BYTES = 1 << 18
BATCH = "taken"


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    """A database of the test's own."""
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield client
        client.flushdb()


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


def test_an_output_that_redis_has_room_for_a_moment_later_is_kept(
    client: Any, workers: list[Ledger], no_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis counts what its clients are sending, so many ends at once can exceed it for a moment."""
    pauses: list[float] = []

    def sleep(seconds: float) -> None:
        pauses.append(seconds)
        client.config_set("maxmemory", 0)

    monkeypatch.setattr(end_calls, "time", SimpleNamespace(sleep=sleep))
    claim, text = claim_one(workers[0], "done"), "x" * 600_000
    client.config_set("maxmemory", 1)
    assert workers[0].finish(claim, Outcome.of(ErrorCode.OK, claim.job_id, stdout=StreamOutput.of(text.encode())))
    assert len(pauses) == 1
    assert json.loads(client.get(f"{KEY_PREFIX}celery-task-meta-{claim.job_id}"))["result"]["stdout"]["data"] == text


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
    assert one.beat(60, [])[:2] == ({}, [])
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
    assert one.beat(60, [restored])[:2] == ({}, ["restored"])
    assert [one.restore(claim) for claim in (ended, retried, restored)] == [False, False, True]
    assert one.beat(60, [restored])[:2] == ({}, [])
    one.leave()
    two.reap(may_take=True)
    assert not one.restore(restored), "another worker has it"
    assert not one.finish(restored, Outcome.of(ErrorCode.OK, restored.job_id))
