"""A stock ``control.revoke`` or the cancel key cancels a job, queued or running."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from waiting import wait_until

if TYPE_CHECKING:
    from stage import Stage, Stock


@pytest.mark.parametrize("options", [{}, {"terminate": True}, {"terminate": True, "signal": "KILL"}], ids=str)
def test_a_revoked_running_job_ends_as_cancelled(module_stage: Stage, stock: Stock, options: dict[str, Any]) -> None:
    job_id = stock.submit("sleep", "60", fields={"timeout": 60})
    wait_until(lambda: module_stage.has_started(job_id), 20, "the job runs")
    time.sleep(0.5)
    assert len(module_stage.find_running()) == 1
    asked = time.monotonic()
    stock.app.control.revoke(job_id, **options)

    record = stock.wait(job_id, 10)

    assert time.monotonic() - asked < 3
    assert record["status"] == "FAILURE"
    assert record["result"]["exc_type"] == "Cancelled"
    code, message = record["result"]["exc_message"][:2]
    # The revoke leaves a mark first, as any cancel does; the worker's beat may find that before the
    # revoke is heard out.
    assert (code, message) == ("CANCELLED", "the job was cancelled")
    wait_until(lambda: not module_stage.find_running(), 2, "its sandbox is gone")


def test_the_cancel_key_keeps_a_job_from_starting(module_stage: Stage, stock: Stock) -> None:
    job_id = "cancelled-by-key"
    stock.cancel_by_key(job_id)
    stock.submit("true", task_id=job_id)

    assert stock.outcome(job_id)["code"] == "CANCELLED"
    assert not module_stage.has_started(job_id)


def test_a_revoke_of_an_unknown_or_malformed_id_harms_no_job(module_stage: Stage, stock: Stock) -> None:
    stock.app.control.revoke(["never-heard-of", "with space", "x" * 5000], terminate=True)

    assert stock.outcome(stock.submit("true"))["code"] == "OK"
