"""How jobs are claimed, tried again and given up, with real workers on a real Redis."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet_config.queues import CANCEL_TTL_SECONDS, KEY_PREFIX, cancel_key, job_key
from waiting import wait_until

if TYPE_CHECKING:
    from stage import Stage, Stock


def starts(stage: Stage, job_id: str) -> int:
    return sum(worker.log.count(f"action=job_started job_id={job_id}") for worker in stage.workers)


def test_trouble_of_ours_is_tried_again_and_told(stage: Stage, stock: Stock) -> None:
    stage.start(1).wait_ready()
    job_id = stock.submit("sleep", "2")
    wait_until(lambda: starts(stage, job_id) == 1, 20, "the job runs")
    stage.kill_sentries()

    outcome = stock.outcome(job_id, 30)

    assert outcome["code"] == "OK"
    assert [attempt["code"] for attempt in outcome["attempts"]] == ["SANDBOX_EXECUTION_FAILED", "OK"]
    first, second = outcome["attempts"]
    assert first["ended"] < second["started"]
    assert starts(stage, job_id) == 2


@pytest.mark.timeout(120)
def test_after_the_last_try_the_code_stands_and_the_job_is_a_dead_letter(stage: Stage, stock: Stock) -> None:
    stage.start(1).wait_ready()
    job_id = stock.submit("sleep", "20")
    for count in (1, 2, 3):
        wait_until(lambda count=count: starts(stage, job_id) == count, 20, "the job runs")  # type: ignore[misc]
        stage.kill_sentries()

    outcome = stock.outcome(job_id, 30)

    assert outcome["code"] == "SANDBOX_EXECUTION_FAILED"
    assert [attempt["code"] for attempt in outcome["attempts"]] == ["SANDBOX_EXECUTION_FAILED"] * 3
    letter: Any = stock.redis.hgetall(f"{KEY_PREFIX}dead:{job_id}")
    assert letter[b"code"] == b"SANDBOX_EXECUTION_FAILED"
    assert json.loads(letter[b"message"])["headers"]["id"] == job_id
    assert starts(stage, job_id) == 3


def test_the_programs_own_failure_is_not_tried_again(stage: Stage, stock: Stock) -> None:
    stage.start(1).wait_ready()
    job_id = stock.submit("sh", "-c", "exit 3")

    assert [attempt["code"] for attempt in stock.outcome(job_id)["attempts"]] == ["EXIT_NONZERO"]
    assert not stock.redis.exists(f"{KEY_PREFIX}dead:{job_id}")


def test_priorities_come_in_order_and_queues_take_turns(stage: Stage, stock: Stock) -> None:
    low = [stock.submit("true", priority=9) for _ in range(2)]
    high = [stock.submit("true", priority=0) for _ in range(2)]
    other = [stock.submit("true", queue="other") for _ in range(2)]
    stock.redis.sadd(f"{KEY_PREFIX}queues", "other")
    worker = stage.start(1)
    worker.wait_ready()
    for job_id in (*low, *high, *other):
        stock.outcome(job_id)

    order = [line.rpartition("job_id=")[2] for line in worker.log.splitlines() if "action=job_started" in line]

    own = [job_id for job_id in order if job_id not in other]
    assert own == [*high, *low]
    assert [order.index(job_id) for job_id in other] in ([1, 3], [0, 2])


def test_a_second_message_of_a_job_never_runs(stage: Stage, stock: Stock) -> None:
    stage.start(2).wait_ready()
    job_id = stock.submit("sleep", "1", task_id="twice")
    stock.submit("sleep", "1", task_id="twice")
    assert stock.outcome(job_id)["code"] == "OK"
    stock.submit("sleep", "1", task_id="twice")
    wait_until(lambda: not stock.redis.llen(f"{KEY_PREFIX}sandfleet"), 10, "the queue is empty")

    assert starts(stage, job_id) == 1
    told: Any = stock.redis.xrange(f"{KEY_PREFIX}duplicates")
    assert [(fields[b"kind"], fields[b"code"]) for _, fields in told if fields[b"job"] == b"twice"] == [
        (b"message", b"runs already"),
        (b"message", b"ended already"),
    ]


def test_a_job_whose_time_in_the_queue_is_over_expires_unstarted(stage: Stage, stock: Stock) -> None:
    job_id = stock.submit("true")
    stock.redis.hset(job_key(job_id), mapping={"state": "queued", "queue": "sandfleet", "step": "0", "expires": "1"})
    stage.start(1).wait_ready()

    outcome = stock.outcome(job_id)

    assert outcome["code"] == "EXPIRED"
    assert outcome["attempts"] == []
    assert starts(stage, job_id) == 0


def test_a_running_job_is_cancelled_by_its_mark_alone(stage: Stage, stock: Stock) -> None:
    stage.start(1, SANDFLEET_LEASE_SECONDS="2").wait_ready()
    job_id = stock.submit("sleep", "20")
    wait_until(lambda: starts(stage, job_id), 20, "the job runs")
    stock.redis.set(cancel_key(job_id), "x", ex=CANCEL_TTL_SECONDS)

    assert stock.outcome(job_id, 5)["code"] == "CANCELLED"
