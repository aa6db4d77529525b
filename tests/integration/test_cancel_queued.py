"""A job that waits in the queue is cancelled for good, whichever worker takes it later."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from waiting import wait_until

if TYPE_CHECKING:
    from stage import Stage, Stock


def test_a_revoked_queued_job_never_runs_and_ends_as_cancelled(stage: Stage, stock: Stock) -> None:
    stage.start(concurrency=1).wait_ready()
    first = stock.submit("sleep", "3")
    second = stock.submit("touch", "/tmp/x")
    wait_until(lambda: stage.has_started(first), 20, "the first job runs")
    stock.app.control.revoke(second)
    time.sleep(0.5)
    assert stock.stored(second) is None, "nothing is recorded before the job's own end"

    outcome = stock.outcome(second)

    assert outcome["code"] == "CANCELLED"
    assert not stage.has_started(second)
    assert stock.outcome(first)["code"] == "OK"


def test_a_revoke_outlives_the_worker_that_heard_it(stage: Stage, stock: Stock) -> None:
    worker = stage.start(concurrency=1)
    worker.wait_ready()
    first = stock.submit("sleep", "2")
    second = stock.submit("true")
    wait_until(lambda: stage.has_started(first), 20, "the first job runs")
    stock.app.control.revoke(second)
    stock.outcome(first)
    worker.stop()
    if stock.stored(second) is None:
        stage.start(concurrency=1).wait_ready()

    assert stock.outcome(second)["code"] == "CANCELLED"
