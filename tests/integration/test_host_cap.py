"""Two workers on one host share its slots."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sampling import Sampling
from waiting import wait_until

if TYPE_CHECKING:
    from stage import Stage, Stock

JOBS = 12


class Sampler(Sampling):
    """Count the host's sandboxes that have a job, repeatedly, into a record that only grows."""

    def __init__(self, stage: Stage) -> None:
        super().__init__()
        self._stage = stage
        self.record: list[int] = []

    def sample(self) -> None:
        self.record.append(len(self._stage.find_running()))


def test_two_workers_never_run_more_sandboxes_than_the_hosts_cap(stage: Stage, stock: Stock) -> None:
    for worker in (stage.start(concurrency=2), stage.start(concurrency=2)):
        worker.wait_ready()

    with Sampler(stage) as sampler:
        jobs = [stock.submit("sleep", "0.4") for _ in range(JOBS)]
        ends = [stock.outcome(job_id) for job_id in jobs]

    assert {end["code"] for end in ends} == {"OK"}
    assert max(sampler.record) == 2, "the cap is used and never exceeded"
    workers = {end["attempts"][0]["worker"] for end in ends}
    assert len(workers) == 2, "both workers have their share"


def test_the_greatest_concurrency_of_the_live_workers_counts(stage: Stage, stock: Stock) -> None:
    small, great = stage.start(concurrency=1), stage.start(concurrency=3)
    small.wait_ready()
    great.wait_ready()

    with Sampler(stage) as sampler:
        jobs = [stock.submit("sleep", "1") for _ in range(6)]
        for job_id in jobs:
            stock.outcome(job_id)
    assert max(sampler.record) == 3

    great.stop()
    with Sampler(stage) as sampler:
        jobs = [stock.submit("sleep", "0.3") for _ in range(3)]
        for job_id in jobs:
            stock.outcome(job_id)
    assert max(sampler.record) == 1


def test_a_killed_worker_frees_its_slots(stage: Stage, stock: Stock) -> None:
    first, second = stage.start(concurrency=1), stage.start(concurrency=1)
    first.wait_ready()
    second.wait_ready()
    long, short = stock.submit("sleep", "60", fields={"timeout": 60}), stock.submit("true")
    wait_until(lambda: stage.has_started(long), 20, "the long job runs")
    time.sleep(0.5)
    assert stock.stored(short) is None, "the host's one slot is taken"
    runs_long = next(worker for worker in stage.workers if f"job {long} starts" in worker.log)
    runs_long.process.kill()

    assert stock.outcome(short, 20)["code"] == "OK"
    stage.start(concurrency=1).wait_ready()  # its janitor clears what the killed one left
