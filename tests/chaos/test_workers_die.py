"""Workers are killed, stopped and continued; their jobs are neither lost nor silently run twice."""

from __future__ import annotations

import itertools
import signal
import time
from datetime import datetime
from typing import TYPE_CHECKING

import pytest
from sandfleet_config.queues import KEY_PREFIX
from waiting import wait_until

if TYPE_CHECKING:
    from havoc import Havoc

LEASE_SECONDS = 2.0
"""Settings that `Havoc.start` gives its workers."""


def test_a_killed_workers_jobs_start_elsewhere_one_by_one_a_second_after_its_lease(havoc: Havoc) -> None:
    """Each of them may have killed it: they run apart."""
    victim = havoc.start(4)
    # Each runs until the worker is dead, and on the next one for a moment only.
    script = f"while [ $(date +%s) -lt {int(time.time()) + 12} ]; do sleep 0.2; done; sleep 0.5"
    jobs = [havoc.submit("sh", "-c", script) for _ in range(4)]
    havoc.wait_started(*jobs, timeout_seconds=40)
    havoc.start(4)
    time.sleep(LEASE_SECONDS + 0.5)  # the other worker must know the fleet for a lease before it takes over

    havoc.kill(victim)
    killed = time.monotonic()
    owners = f"{KEY_PREFIX}owners"
    wait_until(lambda: havoc.redis.zcard(owners) == 1, LEASE_SECONDS + 1, "the dead worker is taken over")
    again = [job for job in jobs if not havoc.stock.stored(job)]
    wait_until(
        lambda: any(len(havoc.attempts(job)) == 2 for job in again),
        LEASE_SECONDS + 1 - (time.monotonic() - killed) + 0.5,
        "the first of its jobs is claimed elsewhere",
    )

    runs: list[tuple[datetime, datetime]] = []
    for job in jobs:
        outcome = havoc.outcome(job, 60)
        told = [(attempt["code"], attempt["charged"]) for attempt in outcome["attempts"]]
        assert outcome["code"] == "OK"
        assert told == ([("WORKER_LOST", False), ("OK", True)] if job in again else [("OK", True)])
        assert havoc.starts(job) == len(told)
        havoc.assert_ended_once(job)
        if job in again:
            (first, first_end), (second, second_end) = (
                [datetime.fromisoformat(attempt[name]) for name in ("started", "ended")]
                for attempt in outcome["attempts"]
            )
            runs.append((second, min(second_end, second + (first_end - first))))
    runs.sort()
    assert len(runs) > 1
    assert all(apart_until <= next_start for (_, apart_until), (next_start, _) in itertools.pairwise(runs))


@pytest.mark.timeout(600)
def test_an_idle_worker_that_is_killed_loses_no_job(havoc: Havoc) -> None:
    """Twelve workers, four at a time; each has its own queue, so none runs another's jobs."""
    jobs: list[str] = []
    for first in range(0, 12, 4):
        queues = [f"queue-{number}" for number in range(first, first + 4)]
        settings = {"SANDFLEET_QUEUES": "", "SANDFLEET_LEASE_SECONDS": f"{LEASE_SECONDS:g}"}
        idle = [havoc.stage.start(1, SANDFLEET_QUEUE=queue, **settings) for queue in queues]
        for worker, queue in zip(idle, queues, strict=True):
            worker.wait_ready()
            worker.process.send_signal(signal.SIGSTOP)
            jobs.append(havoc.stock.submit("true", queue=queue))
            havoc.redis.sadd(f"{KEY_PREFIX}queues", queue)
            havoc.kill(worker)
    havoc.start(2)

    for job in jobs:
        assert havoc.outcome(job, 60)["code"] == "OK"
        assert havoc.starts(job) == 1
        havoc.assert_ended_once(job)


def test_a_worker_stopped_beyond_its_lease_kills_its_sandboxes_and_ends(havoc: Havoc) -> None:
    frozen = havoc.start(2)
    jobs = [havoc.stock.submit("sleep", "60", fields={"timeout": 60}) for _ in range(2)]
    havoc.wait_started(*jobs)
    # Two, since each may have killed its worker: they run apart.
    slots = str(havoc.stage.folder / "other-slots")
    others = [havoc.start(2, SANDFLEET_SLOTS_DIR=slots) for _ in range(2)]
    time.sleep(LEASE_SECONDS + 0.5)

    frozen.process.send_signal(signal.SIGSTOP)
    wait_until(lambda: all(len(havoc.attempts(job)) == 2 for job in jobs), 10, "the jobs run elsewhere")
    frozen.process.send_signal(signal.SIGCONT)

    assert frozen.process.wait(10) == 75
    assert frozen.log.count("action=fenced") == 2
    for job in jobs:
        havoc.stock.cancel_by_key(job)
        outcome = havoc.outcome(job, 40)
        assert [attempt["code"] for attempt in outcome["attempts"]] == ["WORKER_LOST", "CANCELLED"]
        assert havoc.starts(job) == 2
        havoc.assert_ended_once(job)
    successors = {havoc.outcome(job)["attempts"][1]["worker"].rpartition(".")[2] for job in jobs}
    assert successors == {str(other.process.pid) for other in others}
    assert "action=job_ended" not in frozen.log
    told = havoc.duplicates()
    assert sorted(fields[b"job"].decode() for fields in told) == sorted(jobs)
    assert [(fields[b"kind"], fields[b"code"]) for fields in told] == [(b"run", b"WORKER_LOST")] * 2
    assert all(f":{frozen.process.pid}:".encode() in fields[b"owner"] for fields in told)


def test_a_late_outcome_goes_to_the_duplicates_log(havoc: Havoc) -> None:
    frozen = havoc.start(1)
    other_slots = str(havoc.stage.folder / "other-slots")
    havoc.start(1, SANDFLEET_SLOTS_DIR=other_slots, SANDFLEET_QUEUE="elsewhere", SANDFLEET_QUEUES="")
    job = havoc.submit("sleep", "6")
    havoc.wait_started(job)
    started = time.monotonic()
    havoc.start(1, SANDFLEET_SLOTS_DIR=other_slots)
    frozen.process.send_signal(signal.SIGSTOP)  # its sandbox runs on and ends
    wait_until(lambda: len(havoc.attempts(job)) == 2, 10, "the job runs elsewhere")
    time.sleep(max(0.0, started + 7 - time.monotonic()))
    frozen.process.send_signal(signal.SIGCONT)
    assert frozen.process.wait(10) == 75

    assert havoc.outcome(job)["code"] == "OK"
    assert len(havoc.outcome(job)["attempts"]) == 2
    told = [(fields[b"job"].decode(), fields[b"kind"], fields[b"code"]) for fields in havoc.duplicates()]
    assert told == [(job, b"outcome", b"OK")]
    assert frozen.log.count("action=fenced") == 1
    assert f"action=job_ended job_id={job}" not in frozen.log, "a run that does not count is no end"


def test_a_job_that_outlives_many_leases_starts_once(havoc: Havoc) -> None:
    havoc.start(1, SANDFLEET_LEASE_SECONDS="1")
    havoc.start(1, SANDFLEET_LEASE_SECONDS="1", SANDFLEET_SLOTS_DIR=str(havoc.stage.folder / "other-slots"))
    havoc.assert_each_once([havoc.submit("sleep", "10")], 40)


def test_a_job_that_kills_its_workers_ends_in_the_dead_letters(havoc: Havoc) -> None:
    job = havoc.submit("sleep", "30")
    for start in range(1, 4):
        worker = havoc.start(1)
        wait_until(lambda count=start: havoc.starts(job) == count, 20, "the job runs")  # type: ignore[misc]
        havoc.kill(worker)
    havoc.start(1)

    outcome = havoc.outcome(job, 20)

    assert outcome["code"] == "WORKER_LOST"
    assert [attempt["code"] for attempt in outcome["attempts"]] == ["WORKER_LOST"] * 3
    assert len({attempt["worker"] for attempt in outcome["attempts"]}) == 3
    assert havoc.starts(job) == 3
    letter = havoc.dead()[job]
    assert letter[b"code"] == b"WORKER_LOST"
    assert job.encode() in letter[b"message"]
    assert letter[b"attempts"].count(b"WORKER_LOST") == 3


def test_a_cancelled_job_never_runs_whatever_restarts(havoc: Havoc) -> None:
    worker = havoc.start(1)
    running = havoc.submit("sleep", "3")
    havoc.wait_started(running)
    queued = havoc.submit("true")
    havoc.stock.cancel_by_key(queued)
    havoc.kill(worker)
    for _ in range(2):
        worker = havoc.start(1)
        worker.stop(signal.SIGQUIT)
    havoc.start(1)

    assert havoc.outcome(queued, 20)["code"] == "CANCELLED"
    assert havoc.starts(queued) == 0
    assert havoc.outcome(running, 30)["code"] == "OK"


def test_a_drain_records_the_attempts_that_it_cuts_and_does_not_charge_them(havoc: Havoc) -> None:
    worker = havoc.start(2, SANDFLEET_DRAIN_SECONDS="2")
    short, long = havoc.submit("sleep", "1"), havoc.submit("sleep", "6")
    havoc.wait_started(short, long)
    later = havoc.submit("true")

    asked = time.monotonic()
    assert worker.stop(signal.SIGTERM) == 0

    assert time.monotonic() - asked < 5
    assert havoc.outcome(short, 1)["code"] == "OK"
    assert havoc.starts(later) == 0
    havoc.start(2)
    cut, last = havoc.outcome(long)["attempts"]
    assert (cut["code"], cut["charged"]) == ("WORKER_LOST", False)
    assert cut["ended"] <= last["started"]
    assert (last["code"], last["charged"]) == ("OK", True)
    assert havoc.starts(long) == 2
    assert [attempt["code"] for attempt in havoc.outcome(later)["attempts"]] == ["OK"]
