"""Who is charged when a worker dies: the scripts alone, with workers that run only the ledger."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import redis
from sandfleet import ErrorCode
from sandfleet_config.outcome import Outcome
from sandfleet_config.queues import KEY_PREFIX, job_key
from sandfleet_worker.delivery.claim import MAX_STARTS, Claim
from scene import LEASE_SECONDS, Scene

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def scene(redis_server: Any) -> Iterator[Scene]:
    url = str(redis_server.url).replace("db=0", "db=4")
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield Scene(client, url)
        client.flushdb()


def test_many_jobs_of_a_dead_worker_are_suspects_and_none_is_charged(scene: Scene) -> None:
    job_ids = scene.submit(5)
    dead, successor = scene.worker("dead"), scene.worker("successor", "other")
    claims = scene.take(dead, 4)
    waiting = job_ids[3]
    assert dead.wait(claims[waiting])
    scene.kill(dead, successor)

    for job_id in job_ids[:3]:
        assert [item["code"] for item in scene.attempts(job_id)] == ["WORKER_LOST"]
        assert scene.charged(job_id) == [False]
        assert scene.is_suspect(job_id)
        assert scene.field(job_id, "state") == "queued"
    for job_id in job_ids[3:]:
        assert scene.attempts(job_id) == []
        assert not scene.is_suspect(job_id)
        assert scene.field(job_id, "state") == "queued"


def test_the_only_job_of_a_dead_worker_is_charged_and_a_suspect(scene: Scene) -> None:
    (job_id, waiting) = scene.submit(2)
    dead, successor = scene.worker("dead"), scene.worker("successor")
    claims = scene.take(dead, 2)
    assert dead.wait(claims[waiting])
    scene.kill(dead, successor)

    assert scene.charged(job_id) == [True]
    assert scene.is_suspect(job_id)


def test_a_worker_holds_one_suspect_at_a_time_and_takes_the_jobs_behind_it(scene: Scene) -> None:
    suspects = scene.submit(24)
    dead, successor = scene.worker("dead"), scene.worker("successor")
    scene.take(dead, 24)
    scene.kill(dead, successor)
    first = scene.claim(successor)
    assert first is not None
    assert first.job_id in suspects
    assert first.suspect_seconds is not None
    (innocent,) = scene.submit()

    second = scene.claim(successor, holds_suspect=True)

    assert second is not None
    assert second.job_id == innocent
    assert second.suspect_seconds is None
    assert scene.claim(successor, holds_suspect=True) is None
    assert [scene.field(job_id, "state") for job_id in suspects].count("queued") == 23
    other = scene.worker("other")
    found = {first.job_id, *scene.take(other, 12), *scene.take(successor, 11)}
    assert found == set(suspects)


def test_a_worker_that_dies_with_one_suspect_charges_it_and_nobody_else(scene: Scene) -> None:
    guilty, *others = scene.submit(4)
    one, two = scene.worker("one"), scene.worker("two")
    scene.take(one, 1)
    scene.kill(one, two)
    assert scene.charged(guilty) == [True]
    for number in (2, 3):
        worker = scene.worker(f"worker-{number}")
        assert set(scene.take(worker, 4)) == {guilty, *others}
        scene.kill(worker, two)
        assert scene.charged(guilty) == [True] * number
        for job_id in others:
            assert scene.charged(job_id) == [False] * (number - 1)
            assert not scene.is_suspect(job_id)
    assert scene.field(guilty, "code") == "WORKER_LOST"
    assert scene.client.exists(f"{KEY_PREFIX}dead:{guilty}")


def test_a_suspect_that_outlived_its_earlier_run_is_not_blamed_for_the_next_death(scene: Scene) -> None:
    old, new = scene.submit(2)
    one, two = scene.worker("one"), scene.worker("two")
    assert set(scene.take(one, 1)) == {old}
    scene.kill(one, two)
    worker = scene.worker("worker")
    scene.take(worker, 2)
    scene.client.hset(job_key(old), "suspect_until", scene.now() - 1000 * round(LEASE_SECONDS + 1))
    scene.kill(worker, two)

    assert scene.charged(old) == [True, False]
    assert scene.charged(new) == [False]
    assert scene.is_suspect(old)
    assert scene.is_suspect(new)


def test_a_suspect_runs_apart_for_as_long_as_its_earlier_run_and_at_most_a_minute(scene: Scene) -> None:
    for milliseconds, seconds in ((20_000, 20), (300_000, 60)):
        (job_id,) = scene.submit()
        dead, successor = scene.worker("dead"), scene.worker("successor")
        scene.take(dead, 1)
        scene.let_started(job_id, milliseconds)
        scene.kill(dead, successor)
        claim = scene.claim(successor)
        assert claim is not None
        assert claim.suspect_seconds == pytest.approx(seconds, abs=2)
        assert successor.wait(claim)
        assert scene.field(job_id, "suspect_until") == ""
        started = successor.start(claim)
        assert isinstance(started, Claim)
        assert started.suspect_seconds == pytest.approx(seconds, abs=2)
        assert scene.field(job_id, "suspect_until")
        assert successor.finish(started, Outcome.of(ErrorCode.OK, job_id))


def test_after_a_power_cut_nobody_is_a_suspect(scene: Scene) -> None:
    job_ids = scene.submit(3)
    dead = scene.worker("dead")
    scene.take(dead, 3)
    successor = scene.worker("successor", boot="boot-2")  # the same host, up again
    scene.kill(dead, successor)

    for job_id in job_ids:
        assert scene.charged(job_id) == [False]
        assert not scene.is_suspect(job_id)


def test_a_host_that_comes_back_from_a_power_cut_clears_its_suspects(scene: Scene) -> None:
    """Another host takes over before it is back, and charges the only job."""
    (job_id,) = scene.submit()
    dead, successor = scene.worker("dead"), scene.worker("successor", host="other", boot="boot-9")
    scene.take(dead, 1)
    scene.kill(dead, successor)
    assert scene.charged(job_id) == [True]
    scene.worker("again", boot="boot-2")

    claim = scene.claim(successor, holds_suspect=True)

    assert claim is not None
    assert claim.suspect_seconds is None
    assert not scene.is_suspect(job_id)
    assert [attempt.charged for attempt in claim.attempts] == [False, True]
    assert scene.charged(job_id) == [False, True]
    assert scene.client.ttl(f"{KEY_PREFIX}boot:host") > 7 * 86400


def test_a_suspect_of_a_host_that_came_back_is_not_charged_for_the_next_death(scene: Scene) -> None:
    cleared, beside = scene.submit(2)
    dead, successor = scene.worker("dead"), scene.worker("successor", host="other", boot="boot-9")
    scene.take(dead, 1)
    scene.kill(dead, successor)
    worker = scene.worker("worker", host="third", boot="boot-5")
    scene.take(worker, 2)
    scene.worker("again", boot="boot-2")
    scene.kill(worker, successor)

    assert scene.charged(cleared)[1:] == [False]
    assert scene.charged(beside) == [False]


def test_a_job_is_started_twenty_times_at_most(scene: Scene) -> None:
    job_id, other = scene.submit(2)
    successor = scene.worker("successor")
    for number in range(MAX_STARTS):
        worker = scene.worker(f"worker-{number}")
        assert job_id in scene.take(worker, 2)
        for suspect in (job_id, other):  # each outlived its earlier run
            scene.client.hdel(job_key(suspect), "suspect", "suspect_until")
        scene.kill(worker, successor)
    assert scene.charged(job_id) == [False] * MAX_STARTS
    assert scene.field(job_id, "code") == "WORKER_LOST"
    reason = scene.client.hget(f"{KEY_PREFIX}dead:{job_id}", "reason")
    assert b"started 20 times, 20 starts are the most of any job" in reason
