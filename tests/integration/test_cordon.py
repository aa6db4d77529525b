"""Real workers obey the marks of operators: cordon, drain, pause."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from pydantic import SecretStr
from sandfleet import Fleet, Settings
from sandfleet.channel.fleet_state import Cordon
from sandfleet_config.queues import CORDONS, PAUSED
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet.channel.fleet_state import WorkerStatus
    from stage import Stage, Stock

HOST = "node-1"
SETTINGS = {"SANDFLEET_HOST": HOST, "SANDFLEET_LEASE_SECONDS": "3"}


@pytest.fixture
def fleet(stage: Stage) -> Iterator[Fleet]:
    with Fleet(Settings(redis_url=SecretStr(stage.redis_url))) as fleet:
        yield fleet
    stage.redis.delete(CORDONS, PAUSED)


def find_worker(fleet: Fleet) -> WorkerStatus:
    (found,) = [worker for worker in fleet.state.read_summary().workers if worker.state != "late"]
    return found


def cordon(fleet: Fleet, within: float | None = None) -> None:
    now = time.time()
    fleet.state.cordon(Cordon(HOST, "ann", now, "a sick disk", None if within is None else now + within))


def test_a_worker_says_how_its_host_is(stage: Stage, stock: Stock, fleet: Fleet) -> None:
    stage.start(
        concurrency=3, SANDFLEET_WARM__IMAGES="busybox", SANDFLEET_HOST_LABELS="zone=a", **SETTINGS
    ).wait_ready()
    job_id = stock.submit("sleep", "20")
    wait_until(lambda: stage.has_started(job_id), 20, "the job runs")
    wait_until(lambda: find_worker(fleet).running == 1 and find_worker(fleet).warm, 20, "a beat says so")

    worker = find_worker(fleet)

    assert (worker.host, worker.state, worker.slots, worker.busy) == (HOST, "up", 3, 1)
    assert set(worker.warm) == {"busybox"}
    assert worker.queues == ("sandfleet", "*")
    assert worker.labels["zone"] == "a"
    assert worker.memory_budget > worker.memory_free > 0
    assert worker.disk_free > 1 << 20
    assert worker.runsc
    assert worker.platform
    assert worker.version
    assert abs(worker.started - time.time()) < 60
    (job,) = fleet.state.running_jobs(HOST)
    assert (job.job_id, job.slot) == (job_id, 0)
    assert abs(job.started - time.time()) < 20
    (image,) = [image for image in fleet.state.host_images()[HOST] if image.name == "busybox"]
    assert image.size > 1000
    assert image.digest.startswith("sha256:")
    assert abs(image.used - time.time()) < 60
    stock.cancel_by_key(job_id)
    assert stock.outcome(job_id)["attempts"][0]["host"] == HOST
