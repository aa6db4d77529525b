"""Connections are cut and Redis is killed while jobs run and slots are free: jobs start once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
import redis
from harms import give_descriptors, take_descriptors
from sandfleet_worker.delivery.intake import EXIT_LOST
from silence import SilentProxy
from waiting import wait_until

if TYPE_CHECKING:
    from havoc import Havoc

LEASE_SECONDS = 2.0
"""Settings that `Havoc.start` gives its workers."""


def test_cutting_every_connection_starts_no_job_twice(havoc: Havoc) -> None:
    workers = [havoc.start(2), havoc.start(2)]
    jobs = [havoc.submit("sleep", "3") for _ in range(2)]
    havoc.wait_started(*jobs)
    cuts = 0
    for _ in range(10):
        cuts += havoc.cut_all_connections()
        jobs.append(havoc.submit("true"))
        time.sleep(0.2)

    assert cuts > 20
    havoc.assert_each_once(jobs, 60)
    assert all(worker.process.poll() is None for worker in workers)


def test_a_connection_that_is_cut_while_no_descriptor_is_left_ends_no_worker(havoc: Havoc) -> None:
    worker = havoc.start(2)
    limits = take_descriptors(worker.process.pid, limit=8)
    assert limits
    assert havoc.cut_all_connections() > 2
    wait_until(
        lambda: "action=connection_interrupted" in worker.log or worker.process.poll() is not None,
        10,
        "it cannot connect",
    )
    assert worker.process.poll() is None, worker.log
    give_descriptors(worker.process.pid, limits)

    havoc.assert_each_once([havoc.submit("true")])
    wait_until(lambda: "action=connection_resumed" in worker.log, 10, "its events and commands come and go again")
    assert worker.process.poll() is None


def test_an_outage_ends_no_worker_and_starts_no_job_twice(havoc: Havoc) -> None:
    workers = [havoc.start(2), havoc.start(2)]  # the host's slots: two, and both workers have room for more
    for seconds in (1, 4, 15):
        running = [havoc.submit("sleep", str(pause)) for pause in (1, seconds + 3)]
        havoc.wait_started(*running)
        time.sleep(3)  # beyond the lease: everything is in place for a mistaken take-over

        havoc.stop_redis_for(seconds)
        later = [havoc.submit("true") for _ in range(4)]

        havoc.assert_each_once([*running, *later], 60)
        assert all(worker.process.poll() is None for worker in workers)
        assert not any("action=worker_reaped" in worker.log for worker in workers)


def test_a_worker_learns_of_its_lost_lease_soon_after_redis_was_silent(havoc: Havoc) -> None:
    with SilentProxy(havoc.stage.folder / "proxy.sock", havoc.server.socket) as proxy:
        cut = havoc.start(2, SANDFLEET_REDIS_URL=f"unix://{proxy.path}?db=0")
        job = havoc.submit("sleep", "14")  # longer than the other worker takes to start, on any machine
        havoc.wait_started(job)
        other = havoc.start(2, SANDFLEET_SLOTS_DIR=str(havoc.stage.folder / "other-slots"))
        time.sleep(LEASE_SECONDS + 1.5)

        with proxy.silence():
            wait_until(lambda: havoc.starts(job) == 2, 10, "the job runs elsewhere")
            assert "action=lease_lost" not in cut.log

        wait_until(lambda: "action=lease_lost" in cut.log, LEASE_SECONDS + 1, "the lost lease is heard of")
        wait_until(lambda: len(havoc.stage.find_running()) == 1, 5, "its sandbox dies")
        assert cut.process.wait(40) == EXIT_LOST
    outcome = havoc.outcome(job, 40)
    told = [(attempt["worker"].rpartition(".")[2], attempt["code"]) for attempt in outcome["attempts"]]
    assert told == [(str(cut.process.pid), "WORKER_LOST"), (str(other.process.pid), "OK")]
    havoc.assert_ended_once(job)


def test_at_maxmemory_running_jobs_are_recorded_and_no_job_starts(havoc: Havoc) -> None:
    worker, victim = havoc.start(2), havoc.start(1, SANDFLEET_SLOTS_DIR=str(havoc.stage.folder / "other-slots"))
    running = [havoc.submit("sleep", "4") for _ in range(3)]
    havoc.wait_started(*running)
    queued = [havoc.submit("true") for _ in range(2)]
    time.sleep(LEASE_SECONDS + 1)

    with havoc.no_memory():
        havoc.kill(victim)
        wait_until(lambda: "action=worker_reaped" in worker.log, LEASE_SECONDS + 2, "a dead worker is taken over")
        wait_until(lambda: sum(havoc.stock.stored(job) is not None for job in running) == 2, 20, "outcomes are kept")
        time.sleep(2 * LEASE_SECONDS)
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            havoc.redis.set("more", "x")
        assert sum(havoc.starts(job) for job in running) == 3, "the dead worker's job waits"
        assert [havoc.starts(job) for job in queued] == [0, 0]
        assert "action=claims_stopped" in worker.log or "action=claims_interrupted" in worker.log
        assert "action=beats_interrupted" not in worker.log, "leases go on"
    assert worker.process.poll() is None

    for job in (*running, *queued):
        assert havoc.outcome(job)["code"] == "OK"
        havoc.assert_ended_once(job)
    assert sum(havoc.starts(job) for job in running) == 4
    assert [havoc.starts(job) for job in queued] == [1, 1]


def test_an_outcome_that_redis_refuses_is_sent_until_it_is_stored(havoc: Havoc) -> None:
    workers = [havoc.start(1), havoc.start(1, SANDFLEET_SLOTS_DIR=str(havoc.stage.folder / "other-slots"))]
    jobs = [havoc.submit("sleep", "2") for _ in range(2)]
    havoc.wait_started(*jobs)

    with havoc.read_only():
        wait_until(
            lambda: all("action=settle_interrupted" in worker.log for worker in workers), 20, "their workers wait"
        )
        assert not any(havoc.ends(job) for job in jobs), "an end is logged once it counts"
        time.sleep(2 * LEASE_SECONDS)
        assert [havoc.stock.stored(job) for job in jobs] == [None, None]

    havoc.assert_each_once([*jobs, havoc.submit("true")])
    assert all(worker.process.poll() is None for worker in workers)
    assert havoc.duplicates() == []


def test_malformed_messages_go_to_the_dead_letters_and_stop_no_job(havoc: Havoc) -> None:
    worker = havoc.start(1)
    garbage = [
        b"\xff\x00 no JSON",
        b"[]",
        b"7",
        b'"text"',
        b"{}",
        b'{"headers": []}',
        b'{"headers": {"id": "a b"}}',
        b"[" * 5000,
    ]
    havoc.redis.lpush("sandfleet:sandfleet", *garbage)
    job = havoc.submit("true")

    havoc.assert_each_once([job])
    letters = havoc.dead()
    assert sorted(letter[b"message"] for letter in letters.values()) == sorted(garbage)
    assert all(letter[b"reason"] for letter in letters.values())
    wait_until(lambda: "action=message_set_aside" in worker.log, 5, "the worker says so")
    assert worker.process.poll() is None
