"""Workers and Redis die while a batch may run two jobs at once, and another batch waits for it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pydantic import SecretStr
from sandfleet import BatchLimits, Fleet, Outcome, Settings
from sandfleet_config.queues import KEY_PREFIX, job_key
from waiting import wait_until

if TYPE_CHECKING:
    from havoc import Havoc

AT_MOST = 2


def count_at_once(outcomes: list[Outcome]) -> int:
    """Return how many attempts ran at one moment at most, by Redis's clock.

    A dead worker's attempts end when they are taken over.
    """
    changes: list[tuple[float, int]] = []
    for outcome in outcomes:
        for attempt in outcome.attempts:
            assert attempt.ended is not None
            changes += [(attempt.started.timestamp(), 1), (attempt.ended.timestamp(), -1)]
    most = running = 0
    for _, change in sorted(changes):  # an end comes before a start at the same ms
        running += change
        most = max(most, running)
    return most


def test_at_most_and_after_hold_while_a_worker_and_redis_die(havoc: Havoc) -> None:
    workers = [havoc.start(4), havoc.start(4)]
    time.sleep(2.5)  # the other worker must know the fleet for a lease before it takes over
    job = {"image": "busybox", "command": ["sleep", "1"]}
    with Fleet(Settings(redis_url=SecretStr(havoc.server.url))) as fleet:
        first = fleet.submit_many([job] * 10, batch="first", limits=BatchLimits(at_most=AT_MOST))
        then = fleet.submit_many([{**job, "after": {"batches": ["first"]}}] * 2, batch="then")
        wait_until(lambda: havoc.redis.hget(job_key(first[0].id), "state") == b"running", 30, "a job runs")
        owner = havoc.redis.hget(job_key(first[0].id), "owner").decode()
        havoc.kill(next(worker for worker in workers if f":{worker.process.pid}:" in owner))
        wait_until(lambda: fleet.batch("first").counts.done >= 3, 30, "some jobs have ended")
        havoc.stop_redis_for(1.0)
        outcomes = [job.outcome(timeout=90) for job in first]
        after = [job.outcome(timeout=30) for job in then]
    assert {outcome.code for outcome in (*outcomes, *after)} == {"OK"}
    assert "WORKER_LOST" in {attempt.code for outcome in outcomes for attempt in outcome.attempts}
    assert count_at_once(outcomes) <= AT_MOST
    last = max(attempt.ended.timestamp() for outcome in outcomes for attempt in outcome.attempts if attempt.ended)
    assert all(attempt.started.timestamp() >= last for outcome in after for attempt in outcome.attempts)
    assert havoc.redis.scard(f"{KEY_PREFIX}active:first") == 0
    assert havoc.redis.zcard(f"{KEY_PREFIX}parked:first") == 0
    assert havoc.duplicates() == []
