"""Workers die, drain and wait at each step of a job: each start is recorded, its cause charged."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet_config.queues import KEY_PREFIX, job_key
from sandfleet_worker.sandbox.image.store import ImageStore
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from havoc import Havoc
    from stage import Worker

LEASE_SECONDS = 2.0
"""Settings that `Havoc.start` gives its workers."""
ONE_START = {"max_attempts": 1}


def read_state(havoc: Havoc, job_id: str) -> str:
    return (havoc.redis.hget(job_key(job_id), "state") or b"").decode()


def told(havoc: Havoc, job_id: str, timeout_seconds: float = 60) -> list[tuple[str, bool]]:
    return [(item["code"], item["charged"]) for item in havoc.outcome(job_id, timeout_seconds)["attempts"]]


class Assassin:
    """Kills the worker on which a job starts, each time, and starts a fresh one."""

    def __init__(self, havoc: Havoc, job_id: str, concurrency: int) -> None:
        self._havoc, self._concurrency = havoc, concurrency
        self._mark = f"action=job_started job_id={job_id}"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.killed = 0

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        done: set[int] = set()
        while not self._stopped.wait(0.02):
            for worker in list(self._havoc.stage.workers):
                if worker.process.pid not in done and self._mark in worker.log:
                    done.add(worker.process.pid)
                    self._havoc.kill(worker)
                    self.killed += 1
                    self._havoc.stage.start(self._concurrency, SANDFLEET_LEASE_SECONDS=str(LEASE_SECONDS))


@pytest.mark.timeout(180)
def test_one_of_twelve_jobs_that_kills_its_worker_is_charged_and_its_neighbours_are_not(havoc: Havoc) -> None:
    worker = havoc.start(12)
    # Each runs until the killer has struck, and on the next worker for a moment only.
    until = int(time.time()) + 12
    script = f"while [ $(date +%s) -lt {until} ]; do sleep 0.2; done"
    jobs = [havoc.submit("sh", "-c", script) for _ in range(11)]
    havoc.wait_started(*jobs, timeout_seconds=30)
    killer = havoc.submit("sleep", "600")
    with Assassin(havoc, killer, 12) as _:
        outcomes = [havoc.outcome(job, 120) for job in (*jobs, killer)]

    assert worker.process.poll() == -signal.SIGKILL
    for job, outcome in zip(jobs, outcomes, strict=False):
        assert outcome["code"] == "OK"
        assert [item["code"] for item in outcome["attempts"]][-1] == "OK"
        assert [item["charged"] for item in outcome["attempts"][:-1]] == [False] * (havoc.starts(job) - 1)
        assert len(outcome["attempts"]) == havoc.starts(job) > 1
    assert outcomes[-1]["code"] == "WORKER_LOST"
    charged = [item["charged"] for item in outcomes[-1]["attempts"]]
    assert charged == [False, True, True, True]
    assert havoc.starts(killer) == len(charged)
    assert havoc.dead()[killer][b"code"] == b"WORKER_LOST"
    assert list(havoc.dead()) == [killer]


@contextlib.contextmanager
def image_busy(root: Path) -> Iterator[None]:
    """Hold every image as a removal does: jobs wait for it."""
    with contextlib.ExitStack() as stack:
        for path in root.glob("blobs/*/image.erofs"):
            descriptor = os.open(path, os.O_RDONLY)
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield


@pytest.fixture
def images(havoc: Havoc, tmp_path: Path) -> Path:
    """An image in a store of the test's own."""
    root = tmp_path / "images"
    ImageStore(root).add("busybox")
    havoc.stage.images = root
    return root


def start_waiting(havoc: Havoc, images: Path, stack: contextlib.ExitStack, *settings: Any) -> tuple[Worker, str]:
    worker = havoc.start(1, SANDFLEET_WARM__SIZE="0")
    stack.enter_context(image_busy(images))
    job = havoc.stock.submit("true", fields=ONE_START)
    wait_until(lambda: read_state(havoc, job) == "waiting", 20, "the job waits")
    return worker, job


def test_a_worker_that_dies_while_a_job_waits_costs_it_nothing(havoc: Havoc, images: Path) -> None:
    with contextlib.ExitStack() as stack:
        worker, job = start_waiting(havoc, images, stack)
        assert havoc.attempts(job) == []
        havoc.kill(worker)
    havoc.start(1)

    assert told(havoc, job) == [("OK", True)]
    assert havoc.starts(job) == 1


def test_an_attempt_that_fails_after_a_wait_is_recorded_although_nothing_started(havoc: Havoc, images: Path) -> None:
    with contextlib.ExitStack() as stack:
        _, job = start_waiting(havoc, images, stack)
        (images / "blobs").rename(images / "gone")
    outcome = havoc.outcome(job, 20)

    assert outcome["code"] == "IMAGE_NOT_FOUND"
    assert told(havoc, job) == [("IMAGE_NOT_FOUND", True)]
    assert havoc.starts(job) == 0


def test_a_drain_gives_a_waiting_job_back_at_once_and_a_cancel_ends_it(havoc: Havoc, images: Path) -> None:
    with contextlib.ExitStack() as stack:
        worker, job = start_waiting(havoc, images, stack)
        cancelled = havoc.stock.submit("true")
        asked = time.monotonic()
        assert worker.stop(signal.SIGTERM) == 0
        assert time.monotonic() - asked < 10, "not the 30 s that running jobs get"
        assert (read_state(havoc, job), havoc.attempts(job)) == ("queued", [])
        worker = havoc.start(2)
        wait_until(lambda: read_state(havoc, cancelled) == "waiting", 20, "the other job waits")
        havoc.stock.cancel_by_key(cancelled)
        assert havoc.outcome(cancelled, 10)["code"] == "CANCELLED"
        assert havoc.attempts(cancelled) == []
        assert havoc.starts(cancelled) == 0

    assert told(havoc, job) == [("OK", True)]


def test_a_job_that_waits_long_gives_its_slot_back_and_takes_one_later(havoc: Havoc, images: Path) -> None:
    """Two workers share one slot of the host, and only one of them waits for an image."""
    with contextlib.ExitStack() as stack:
        _, waiting = start_waiting(havoc, images, stack)
        own = images.with_name("own")
        shutil.copytree(images, own)
        havoc.start(1, SANDFLEET_IMAGES__ROOT=str(own))
        beside = havoc.submit("sleep", "2")
        havoc.wait_started(beside)
        assert read_state(havoc, waiting) == "waiting"
    time.sleep(0.5)
    assert read_state(havoc, waiting) == "waiting", "the image is free, and the slot is not"
    assert havoc.starts(waiting) == 0
    assert told(havoc, beside) == [("OK", True)]
    assert told(havoc, waiting) == [("OK", True)]


@pytest.mark.timeout(180)
def test_a_worker_killed_at_each_step_leaves_one_outcome(havoc: Havoc, images: Path, tmp_path: Path) -> None:
    """Steps: claimed, waiting, started, and ended with an outcome that Redis has not heard."""
    jobs: dict[str, str] = {}

    # Claimed: its sandbox does not come up.
    wrapper, hangs = tmp_path / "hanging" / "runsc", tmp_path / "hangs"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\n[ -e {hangs} ] && exec sleep 60\nexec {shutil.which("runsc")} "$@"\n')
    wrapper.chmod(0o755)
    worker = havoc.start(1, SANDFLEET_RUNSC__PATH=str(wrapper), SANDFLEET_WARM__SIZE="0")
    hangs.touch()
    jobs["claimed"] = havoc.submit("sleep", "1")
    wait_until(lambda: read_state(havoc, jobs["claimed"]) == "running", 20, "it is claimed")
    havoc.kill(worker)
    assert havoc.starts(jobs["claimed"]) == 0

    with contextlib.ExitStack() as stack:
        worker, jobs["waiting"] = start_waiting(havoc, images, stack)
        havoc.kill(worker)

    worker = havoc.start(1)
    jobs["started"] = havoc.submit("sleep", "2")
    havoc.wait_started(jobs["started"], timeout_seconds=40)
    havoc.kill(worker)

    worker = havoc.start(1)
    jobs["ended"] = havoc.submit("sleep", "1")
    havoc.wait_started(jobs["ended"], timeout_seconds=60)
    with havoc.read_only():
        wait_until(lambda: f"the end of job {jobs['ended']} waits for Redis" in worker.log, 20, "it has ended")
        havoc.kill(worker)

    havoc.start(2)
    for step, job in jobs.items():
        assert havoc.outcome(job, 60)["code"] == "OK", step
        assert len(havoc.attempts(job)) <= 2, step
    assert len(havoc.attempts(jobs["waiting"])) == 1
    # Without a wait the claim is the start (docs/decisions/0007-delivery-on-real-fleets.md).
    assert told(havoc, jobs["claimed"]) == [("WORKER_LOST", True), ("OK", True)]
    assert havoc.starts(jobs["claimed"]) == 1
    wait_until(lambda: not havoc.redis.keys(f"{KEY_PREFIX}claims:*"), 10, "no claim is left")


def test_a_drained_job_that_may_start_once_ends_and_says_so(havoc: Havoc) -> None:
    worker = havoc.start(3, SANDFLEET_DRAIN_SECONDS="1")
    once = havoc.stock.submit("sleep", "20", fields=ONE_START)
    never = havoc.stock.submit("sleep", "20", fields={"max_attempts": 3, "retry_on": ["INTERNAL"]})
    havoc.wait_started(once, never)
    queued = havoc.stock.submit("true", fields=ONE_START)
    worker.stop(signal.SIGTERM)

    for job, why in ((once, "max_attempts=1 allows one start"), (never, "its retry_on does not name WORKER_LOST")):
        outcome = havoc.outcome(job, 1)
        assert (outcome["code"], outcome["message"]) == ("WORKER_LOST", f"drained: the worker stopped and {why}")
        assert told(havoc, job) == [("WORKER_LOST", False)]
        assert [item["charged"] for item in havoc.attempts(job)] == [False]
        assert b"drained" in havoc.dead()[job][b"reason"] if job == once else True
    havoc.start(2)
    assert told(havoc, queued) == [("OK", True)]
    assert [havoc.starts(job) for job in (once, never, queued)] == [1, 1, 1]


@pytest.mark.timeout(180)
def test_a_rolling_restart_starts_no_job_twice_that_may_start_once(havoc: Havoc) -> None:
    workers = [havoc.start(2, SANDFLEET_DRAIN_SECONDS="0.5", SANDFLEET_SLOTS_DIR=_slots(havoc, at)) for at in range(3)]
    jobs = [havoc.stock.submit("sleep", ("0.3", "0.3", "3")[n % 3], fields=ONE_START) for n in range(36)]
    havoc.wait_started(*jobs[:6])
    for at, worker in enumerate(workers):
        number = (signal.SIGTERM, signal.SIGQUIT, signal.SIGTERM)[at]
        worker.stop(number)
        havoc.start(2, SANDFLEET_DRAIN_SECONDS="0.5", SANDFLEET_SLOTS_DIR=_slots(havoc, at))

    outcomes = [havoc.outcome(job, 60) for job in jobs]

    assert [havoc.starts(job) for job in jobs] == [1] * len(jobs)
    assert all(len(outcome["attempts"]) == 1 for outcome in outcomes)
    cut = [outcome for outcome in outcomes if outcome["code"] != "OK"]
    assert 1 <= len(cut) <= 6
    for outcome in cut:
        assert outcome["message"] == "drained: the worker stopped and max_attempts=1 allows one start"
        assert (outcome["code"], outcome["attempts"][0]["charged"]) == ("WORKER_LOST", False)
    assert havoc.duplicates() == []


def _slots(havoc: Havoc, at: int) -> str:
    return str(havoc.stage.folder / f"slots-{at}")
