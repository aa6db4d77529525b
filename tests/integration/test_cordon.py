"""Real workers obey the marks of operators: cordon, drain, pause."""

from __future__ import annotations

import signal
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sandfleet import Fleet, SandboxSpec, Settings
from sandfleet.actions import Actor
from sandfleet.channel.fleet_state import Cordon, Pause
from sandfleet_config.queues import CORDONS, KEY_PREFIX, PAUSED
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from havoc import Havoc
    from sandfleet.channel.fleet_state import HostImage, WorkerStatus
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
    job_id = stock.submit("sleep", "80", fields={"timeout": 90})
    wait_until(lambda: stage.has_started(job_id), 20, "the job runs")
    # A spare boots once a core idles, which takes a while on a busy machine.
    wait_until(lambda: find_worker(fleet).running == 1 and find_worker(fleet).warm, 60, "a beat says so")

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
    assert abs(worker.started - time.time()) < 120
    (job,) = fleet.state.running_jobs(HOST)
    assert (job.job_id, job.slot) == (job_id, 0)
    assert abs(job.started - time.time()) < 80

    def find_image() -> HostImage:
        (image,) = [image for image in fleet.state.host_images()[HOST] if image.name == "busybox"]
        return image

    assert find_image().size > 1000
    assert find_image().digest.startswith("sha256:")
    wait_until(lambda: abs(find_image().used - time.time()) < 120, 20, "its last use is told")
    stock.cancel_by_key(job_id)
    assert stock.outcome(job_id)["attempts"][0]["host"] == HOST


def test_a_cordon_holds_over_a_restart_of_the_worker(stage: Stage, stock: Stock, fleet: Fleet) -> None:
    worker = stage.start(concurrency=1, **SETTINGS)
    worker.wait_ready()
    running = stock.submit("sh", "-c", "sleep 3; echo done")
    wait_until(lambda: stage.has_started(running), 20, "the job runs")
    cordon(fleet)
    waiting = stock.submit("true")

    assert stock.outcome(running)["stdout"]["data"] == "done\n", "what runs goes on"
    wait_until(lambda: find_worker(fleet).running == 0, 10, "nothing runs")
    assert worker.stop(signal.SIGTERM) == 0
    stage.start(concurrency=1, **SETTINGS).wait_ready()
    wait_until(lambda: find_worker(fleet).state == "cordoned", 10, "the new worker says so")
    time.sleep(3)
    assert stock.stored(waiting) is None
    asked = time.monotonic()
    fleet.state.uncordon(HOST)
    assert stock.outcome(waiting)["code"] == "OK"
    assert time.monotonic() - asked < 5, "it works again soon"
    wait_until(lambda: find_worker(fleet).state == "up", 10, "it is up again")


def test_a_drain_gives_back_at_its_deadline_what_has_not_started_and_tells_what_was_cut(
    stage: Stage, stock: Stock, fleet: Fleet
) -> None:
    worker = stage.start(concurrency=3, **SETTINGS)
    worker.wait_ready()
    long = stock.submit("sh", "-c", "sleep 6; exit 9")
    once = stock.submit("sleep", "60", fields={"timeout": 60, "max_attempts": 1})
    short = stock.submit("sh", "-c", "sleep 1; exit 4")
    wait_until(lambda: all(stage.has_started(job) for job in (long, once, short)), 30, "three jobs run")
    waiting = stock.submit("true")
    cordon(fleet, within=3)
    wait_until(lambda: find_worker(fleet).state == "draining", 5, "it drains")

    assert stock.outcome(short)["exit_code"] == 4, "what ends in time ends as it does"
    wait_until(lambda: find_worker(fleet).state == "drained", 15, "it is drained")

    told = stock.outcome(once, 5)
    assert (told["code"], told["message"]) == (
        "WORKER_LOST",
        "drained: the host was drained and max_attempts=1 allows one start",
    )
    assert [attempt["charged"] for attempt in told["attempts"]] == [False]
    assert stock.stored(long) is None
    assert stage.redis.hget(f"{KEY_PREFIX}job:{long}", "state") == b"queued"
    assert stock.stored(waiting) is None
    assert worker.process.poll() is None, "the worker lives"
    assert fleet.state.running_jobs(HOST) == []
    stage_sentries = stage.find_running()
    assert stage_sentries == [], "no job's sandbox is left"

    fleet.state.uncordon(HOST)
    outcome = stock.outcome(long)
    assert outcome["exit_code"] == 9
    assert {attempt["slot"] for attempt in outcome["attempts"]} <= {0, 1, 2}
    attempts = [(attempt["code"], attempt["charged"]) for attempt in outcome["attempts"]]
    assert attempts == [("WORKER_LOST", False), ("EXIT_NONZERO", True)]
    ended = stock.outcome(waiting)
    assert ended["code"] == "OK"
    assert len(ended["attempts"]) == 1, "what never started was free"
    wait_until(lambda: find_worker(fleet).state == "up", 10, "it works on")


def test_no_job_starts_one_beat_after_a_cordon_under_load(stage: Stage, stock: Stock, fleet: Fleet) -> None:
    for _ in range(2):
        stage.start(concurrency=4, SANDFLEET_HOST=HOST).wait_ready()  # a lease of 6 s: a beat each 2 s
    jobs = [stock.submit("true") for _ in range(400)]
    wait_until(lambda: stock.stored(jobs[20]), 30, "they run")
    cordon(fleet)
    marked = time.time()
    time.sleep(4)
    left = [job for job in jobs if stock.stored(job) is None]
    assert left, "the load was not over"
    assert find_worker_states(fleet) == {"cordoned"}
    starts = [
        start
        for job in jobs
        if (record := stock.stored(job)) is not None
        for start in [parse_start(record)]
        if start > marked
    ]
    assert all(start < marked + 2 for start in starts), "none starts after one beat"
    assert [job for job in left if stage.redis.hget(f"{KEY_PREFIX}job:{job}", "state") not in {b"queued", None}] == []
    fleet.state.uncordon(HOST)
    assert {stock.outcome(job, 120)["code"] for job in left} == {"OK"}


def find_worker_states(fleet: Fleet) -> set[str]:
    return {worker.state for worker in fleet.state.read_summary().workers}


def parse_start(record: dict[str, Any]) -> float:
    return datetime.fromisoformat(record["result"]["attempts"][-1]["started"]).timestamp()


def test_a_killed_worker_that_drains_loses_nothing(stage: Stage, stock: Stock, fleet: Fleet) -> None:
    worker = stage.start(concurrency=2, **SETTINGS)
    worker.wait_ready()
    jobs = [stock.submit("sh", "-c", "sleep 2; exit 5") for _ in range(4)]
    wait_until(lambda: sum(stage.has_started(job) for job in jobs) == 2, 30, "two jobs run")
    cordon(fleet, within=60)
    wait_until(lambda: find_worker(fleet).state == "draining", 5, "it drains")
    worker.process.kill()
    worker.process.wait()
    killed = time.monotonic()
    wait_until(lambda: not [w for w in fleet.state.read_summary().workers if w.state != "late"], 6, "it is not up")
    assert time.monotonic() - killed < 3 + 3, "within lease + 3 s"
    assert fleet.state.running_jobs(HOST) == []
    stage.start(concurrency=2, SANDFLEET_HOST="node-2", SANDFLEET_LEASE_SECONDS="3").wait_ready()
    assert {stock.outcome(job)["exit_code"] for job in jobs} == {5}


def test_a_paused_queue_holds_its_jobs_and_no_others(stage: Stage, stock: Stock, fleet: Fleet) -> None:
    stage.start(concurrency=2, **SETTINGS).wait_ready()
    ann = fleet.operator(Actor("ann", "operator", "cli"))
    ann.pause("sandfleet", "a bad release")
    held = stock.submit("true")
    with Fleet(Settings(redis_url=SecretStr(stage.redis_url), queue="other")) as others:
        job = others.submit(SandboxSpec(image="busybox", command=["true"], timeout=20))
        assert job.outcome(timeout=30).is_ok
    time.sleep(2)
    assert stock.stored(held) is None
    ann.resume("sandfleet")
    assert stock.outcome(held)["code"] == "OK"


def test_marks_outlive_a_restart_of_redis(havoc: Havoc) -> None:
    settings = Settings(redis_url=SecretStr(havoc.server.url))
    with Fleet(settings) as fleet:
        fleet.operator(Actor("ann", "operator", "cli")).drain(HOST, "a new kernel", 3600)
        fleet.operator(Actor("ann", "operator", "cli")).pause("slow", "later")
        before = fleet.state.read_summary()
        havoc.server.kill()
        havoc.server.start()
        after = fleet.state.read_summary()
    assert after.cordons == before.cordons
    assert [queue.pause for queue in after.queues] == [queue.pause for queue in before.queues]
    assert len(after.cordons) == 1
    # A worker that starts then obeys both; without them it works.
    havoc.start(SANDFLEET_HOST=HOST)
    held = havoc.submit("true")
    with Fleet(settings) as fleet:
        wait_until(lambda: find_worker(fleet).state == "drained", 10, "the host starts nothing")
        time.sleep(2)
        assert havoc.stock.stored(held) is None
        fleet.state.pause(Pause("sandfleet", "ann", time.time(), "later"))
        fleet.state.uncordon(HOST)
        havoc.server.kill()
        havoc.server.start()
        wait_until(lambda: find_worker(fleet).state == "up", 20, "the host may work")
        time.sleep(2)
        assert havoc.stock.stored(held) is None, "its queue is paused"
        fleet.state.resume("sandfleet")
    assert havoc.outcome(held)["code"] == "OK"
