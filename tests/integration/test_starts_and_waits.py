"""Starts, waits and give-backs as scripts count them, with workers that run only the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import redis
from pydantic import SecretStr
from sandfleet import ErrorCode, Fleet, Settings
from sandfleet_config.outcome import Outcome
from sandfleet_config.queues import KEY_PREFIX, cancel_key, job_key
from sandfleet_worker.delivery.claim import MAX_STARTS, Claim, Refused
from scene import Scene

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def scene(redis_server: Any) -> Iterator[Scene]:
    url = str(redis_server.url).replace("db=0", "db=4")
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield Scene(client, url)
        client.flushdb()


def test_max_attempts_1_is_one_start_charged_or_not_and_a_wait_is_none(scene: Scene) -> None:
    started, waiting = scene.submit(2, max_attempts=1)
    dead, successor = scene.worker("dead"), scene.worker("successor")
    claims = scene.take(dead, 2)
    assert dead.wait(claims[waiting])
    assert dead.wait(claims[waiting]), "its answer got lost"
    scene.kill(dead, successor)
    assert scene.field(started, "code") == "WORKER_LOST"
    assert b"max_attempts=1 allows one start" in scene.client.hget(f"{KEY_PREFIX}dead:{started}", "reason")
    claim = scene.claim(successor)
    assert claim is not None
    assert (claim.job_id, len(claim.attempts)) == (waiting, 1)


def test_a_job_whose_workers_die_before_it_starts_ends_after_twenty_of_them(scene: Scene) -> None:
    (job_id,) = scene.submit()
    successor = scene.worker("successor")
    for number in range(MAX_STARTS):
        assert scene.field(job_id, "state") == "queued"
        dead = scene.worker(f"dead-{number}")
        assert dead.wait(scene.take(dead, 1)[job_id])
        scene.kill(dead, successor)

    assert (scene.field(job_id, "state"), scene.field(job_id, "code")) == ("ended", "WORKER_LOST")
    assert scene.attempts(job_id) == []


def test_a_wait_takes_the_attempt_back_and_a_start_records_it(scene: Scene) -> None:
    (job_id,) = scene.submit()
    worker = scene.worker("worker")
    claim = scene.claim(worker)
    assert claim is not None
    assert worker.wait(claim)
    assert (scene.field(job_id, "state"), scene.attempts(job_id)) == ("waiting", [])
    assert worker.restore(claim), "a job that waits is held like one that runs"
    assert worker.limit_attempts(claim, 3, 60.0)
    assert worker.cancel("x") == "unknown"
    for _ in range(2):  # the first answer got lost
        started = worker.start(claim, 5)
        assert isinstance(started, Claim)
        assert [(attempt.worker, attempt.slot) for attempt in started.attempts] == [("worker", 5)]
        assert len(scene.attempts(job_id)) == 1
    assert scene.field(job_id, "state") == "running"


def test_a_wait_that_ends_keeps_the_attempts_before_it(scene: Scene) -> None:
    (job_id,) = scene.submit()
    worker = scene.worker("worker")
    claim = scene.claim(worker)
    assert claim is not None
    assert worker.retry(claim, ErrorCode.HOST_RESOURCES)
    for end in ("give back", "cancel"):
        claim = scene.claim(worker)
        assert claim is not None
        assert worker.wait(claim)
        if end == "give back":
            assert worker.give_back(claim)
        else:
            assert worker.cancel(job_id) == "running"
            assert worker.start(claim) is Refused.CANCELLED
            assert worker.finish(claim, Outcome.of(ErrorCode.CANCELLED, job_id))
        assert [item["code"] for item in scene.attempts(job_id)] == ["HOST_RESOURCES"]
    assert worker.start(claim) is Refused.FENCED
    assert not worker.wait(claim)


def test_an_expired_or_cancelled_job_ends_so_although_its_claimer_dies(scene: Scene) -> None:
    for end in (b"EXPIRED", b"CANCELLED"):
        (job_id,) = scene.submit()
        dead, successor = scene.worker("dead"), scene.worker("successor")
        if end == b"EXPIRED":
            scene.client.hset(job_key(job_id), "expires", 1)
        else:
            scene.client.set(cancel_key(job_id), "x", ex=60)
        claim = scene.claim(dead)
        assert claim is not None
        assert claim.flag.value == end.decode().lower()
        scene.client.delete(cancel_key(job_id))
        scene.kill(dead, successor)
        assert scene.client.hget(job_key(job_id), "code") == end
        assert scene.attempts(job_id) == []


def test_time_in_the_queue_is_counted_over_all_waits_and_no_run(scene: Scene) -> None:
    rows = (("give_back", 0), ("release", 30_000), ("retry", 30_000))
    for how, ran in rows:
        (job_id,) = scene.submit(queue_ttl=100)
        worker = scene.worker("worker")
        before = int(scene.field(job_id, "expires"))
        claim = scene.claim(worker)
        assert claim is not None
        scene.let_started(job_id, 30_000)
        assert worker.retry(claim, ErrorCode.INTERNAL) if how == "retry" else getattr(worker, how)(claim)
        after = int(scene.field(job_id, "expires"))
        assert after - before == pytest.approx(ran, abs=2000), how
        assert scene.client.zscore(f"{KEY_PREFIX}expiring", job_id) == after
        assert scene.charged(job_id) == {"give_back": [], "release": [False], "retry": [True]}[how]
        claim = scene.claim(worker)
        assert claim is not None
        assert worker.finish(claim, Outcome.of(ErrorCode.OK, job_id))


def test_at_maxmemory_what_has_started_is_told_and_what_has_not_goes_back(scene: Scene) -> None:
    """Each row: what a worker tells of a job that it has claimed; nothing new starts meanwhile."""
    one = scene.worker("one")
    scene.submit(6)
    held = list(scene.take(one, 5).values())
    waits = held[4]
    assert one.wait(waits)
    scene.client.config_set("maxmemory", 1)
    try:
        assert one.announce("{}", ["x"], 60)
        scene.client.hdel(f"{KEY_PREFIX}claims:host:one:one", held[0].claim_id)
        assert one.restore(held[0])
        assert one.wait(held[0])
        assert one.give_back(held[0])
        assert one.end_drained_attempt(held[1])
        assert one.finish(held[1], Outcome.of(ErrorCode.WORKER_LOST, held[1].job_id, "drained"))
        assert one.release(held[2])
        assert one.retry(held[3], ErrorCode.INTERNAL)
        for refused in (lambda: one.start(waits), lambda: scene.claim(one)):
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                refused()
    finally:
        scene.client.config_set("maxmemory", 0)
    assert [scene.field(claim.job_id, "state") for claim in held] == ["queued", "ended", "queued", "queued", "waiting"]
    assert scene.attempts(held[0].job_id) == []
    assert scene.charged(held[1].job_id) == [False]
    successor = scene.worker("successor")
    scene.client.zadd(f"{KEY_PREFIX}owners", {one._identity.owner: scene.now() - 1})
    scene.client.config_set("maxmemory", 1)
    try:
        scene.sweep(successor)
    finally:
        scene.client.config_set("maxmemory", 0)
    assert scene.field(waits.job_id, "state") == "queued"


def test_a_start_is_told_although_the_job_expires_before_the_next(scene: Scene) -> None:
    one = scene.worker("one")
    (job_id,) = scene.submit(queue_ttl=600)
    assert one.release(scene.take(one, 1)[job_id])
    scene.client.zadd(f"{KEY_PREFIX}expiring", {job_id: 1})
    scene.sweep(one)
    assert scene.field(job_id, "code") == "EXPIRED"
    with Fleet(Settings(redis_url=SecretStr(scene.url))) as fleet:
        (attempt,) = fleet.job(job_id).outcome(5).attempts
    assert (attempt.code, attempt.charged) == (ErrorCode.WORKER_LOST, False)
