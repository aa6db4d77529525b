"""Flower's view of workers that die or drain. Each test has the only workers of its Redis."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

from flower_pages import running_flower
from waiting import wait_until

if TYPE_CHECKING:
    from flower_pages import Flower
    from stage import Stage, Stock

LEASE_SECONDS = "2"


def assert_runs_nothing(flower: Flower, name: str) -> None:
    """Check that Flower shows the dead worker `name` without active tasks; no other is alive."""
    wait_until(lambda: flower.find_ids("state:STARTED") == set(), 20, "no job counts as running")
    wait_until(lambda: not flower.find_workers()[name]["active"], 20, "the dead worker runs nothing")
    worker = flower.find_workers()[name]
    assert (worker["status"], worker["active"]) == (False, 0)
    gauge = f'flower_worker_number_of_currently_executing_tasks{{worker="{name}"}} 0.0'
    assert gauge in flower.get("/metrics")


def read_audit(stage: Stage) -> list[dict[str, str]]:
    """Return the lines of the audit, newest first."""
    found: Any = stage.redis.xrevrange("sandfleet:audit")
    return [{name.decode(): value.decode() for name, value in fields.items()} for _, fields in found]


def test_a_killed_worker_leaves_no_active_task(stage: Stage, stock: Stock) -> None:
    doomed = stage.start(concurrency=4, SANDFLEET_LEASE_SECONDS=LEASE_SECONDS)
    doomed.wait_ready()
    with running_flower(stage) as flower:
        name = next(iter(flower.find_workers()))
        again = stock.submit("sh", "-c", "sleep 60", fields={"timeout": 60})
        once = stock.submit("sh", "-c", "sleep 60", fields={"timeout": 60, "max_attempts": 1})
        cancelled = stock.submit("sh", "-c", "sleep 60", fields={"timeout": 60})
        ids = {again, once, cancelled}
        wait_until(lambda: flower.find_ids("state:STARTED") == ids, 30, "Flower sees the jobs run")
        wait_until(lambda: flower.find_workers()[name]["active"] == 3, 20, "Flower counts them")
        assert again in flower.get(f"/worker/{name}")

        doomed.stop(signal.SIGKILL)

        assert_runs_nothing(flower, name)
        assert again not in flower.get(f"/worker/{name}")
        row = flower.find_row(again)
        assert (row["state"], row["result"][:11]) == ("RETRY", "WORKER_LOST")

        # The button works without a worker, too.
        told = json.loads(flower.post(f"/api/task/revoke/{cancelled}?terminate=true"))["message"]
        assert "will not start" in told
        (line, *_) = read_audit(stage)
        assert (line["action"], line["target"], line["result"]) == ("cancel", cancelled, told)

        stage.clean()
        stage.start(concurrency=4, SANDFLEET_LEASE_SECONDS=LEASE_SECONDS).wait_ready()
        assert stock.outcome(once)["code"] == "WORKER_LOST"
        assert stock.outcome(cancelled)["code"] == "CANCELLED"
        wait_until(lambda: flower.find_row(again)["state"] == "STARTED", 20, "the job runs elsewhere")
        row = flower.find_row(again)
        assert (row["attempt"], row["worker"] != name) == (2, True)
        for job_id, code in ((once, "WORKER_LOST"), (cancelled, "CANCELLED")):
            wait_until(lambda: flower.find_row(job_id)["state"] == "FAILURE", 20, f"{code} is told")  # noqa: B023  called here
            assert flower.find_row(job_id)["result"].startswith(code)
        flower.post(f"/api/task/revoke/{again}?terminate=true")
        assert stock.outcome(again, 15)["code"] == "CANCELLED"


def test_drain_lets_a_job_end_and_ends_the_worker(stage: Stage, stock: Stock) -> None:
    worker = stage.start(concurrency=2)
    worker.wait_ready()
    with running_flower(stage) as flower:
        name = next(iter(flower.find_workers()))
        job_id = stock.submit("sh", "-c", "sleep 3; echo done")
        wait_until(lambda: stage.has_started(job_id), 20, "the job runs")

        assert 'name="reason"' in flower.get(f"/worker/{name}")
        status, why = flower.ask(f"/api/worker/shutdown/{name}", b"", flower.password)
        assert (status, "the reason is missing" in why) == (400, True)
        told = json.loads(flower.post(f"/api/worker/shutdown/{name}?reason=a+new+kernel"))["message"]
        (line, *_) = read_audit(stage)
        assert (line["action"], line["target"], line["reason"]) == ("drain worker", name, "a new kernel")
        assert (line["via"], line["by"] in {"", "flower"}) == ("flower", False), "the login's name"
        late = stock.submit("true")

        assert "takes no more jobs" in told
        assert worker.process.wait(30) == 0
        assert stock.outcome(job_id)["stdout"]["data"] == "done\n"
        assert stock.stored(late) is None
        wait_until(lambda: not flower.find_workers()[name]["status"], 20, "Flower knows that it is gone")
        stage.start(concurrency=2).wait_ready()
        assert stock.outcome(late)["code"] == "OK"
