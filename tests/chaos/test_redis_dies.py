"""Connections are cut and Redis is killed while jobs run and slots are free: each job starts once."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from waiting import wait_until

if TYPE_CHECKING:
    from havoc import Havoc


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


@pytest.mark.parametrize("seconds", [1, 4, 15])
def test_an_outage_ends_no_worker_and_starts_no_job_twice(havoc: Havoc, seconds: int) -> None:
    workers = [havoc.start(2), havoc.start(2)]  # the host's slots: two, and both workers have room for more
    running = [havoc.submit("sleep", str(pause)) for pause in (1, seconds + 3)]
    havoc.wait_started(*running)
    time.sleep(3)  # beyond the lease: everything is in place for a mistaken take-over

    havoc.stop_redis_for(seconds)
    later = [havoc.submit("true") for _ in range(4)]

    havoc.assert_each_once([*running, *later], 60)
    assert all(worker.process.poll() is None for worker in workers)
    assert not any("action=worker_reaped" in worker.log for worker in workers)


def test_garbage_goes_to_the_dead_letters_and_stops_nobody(havoc: Havoc) -> None:
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
