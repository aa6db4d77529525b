"""Two hosts, each a network namespace with a worker of its own: they share the work, and one may be cut off and come back."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from lan import Lan
from pydantic import SecretStr
from sandfleet import Fleet, SandboxSpec, Settings
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_worker.delivery.intake import EXIT_LOST
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lan import LanHost
    from sandfleet import Job
    from stage import Worker

LEASE_SECONDS = 2.0
MARGIN_SECONDS = 2.0
"""For the sweep that notices, the claims, and the start of the sandboxes."""
NAMES = ("host-a", "host-b")


@pytest.fixture
def lan(images_root: Path) -> Iterator[Lan]:
    """Two hosts, workers not started."""
    for name in ("ip", "nsenter", "unshare"):
        if shutil.which(name) is None:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(
                f"{name} is not installed: scripts/setup.sh installs it"
            )
    # A short path: sockets live below it (unix(7): 107 characters).
    with tempfile.TemporaryDirectory(prefix="sfl-") as folder, Lan(Path(folder), images_root) as lan:
        for name in NAMES:
            lan.add_host(name)
        yield lan
        for host in lan.hosts:
            host.close()
            assert host.find_leftovers() == [], f"something is left on {host.name}"


@pytest.fixture
def fleet(lan: Lan) -> Iterator[Fleet]:
    with Fleet(Settings(redis_url=SecretStr(lan.url))) as fleet:
        yield fleet


def start_worker(host: LanHost, concurrency: int, **settings: str) -> Worker:
    return host.start(concurrency, SANDFLEET_LEASE_SECONDS=f"{LEASE_SECONDS:g}", **settings)


def sleeps(*seconds: float) -> list[SandboxSpec]:
    return [SandboxSpec(image="busybox", command=["sleep", str(pause)], timeout=60) for pause in seconds]


def starts(worker: Worker, *jobs: Job) -> list[int]:
    log = worker.log
    return [log.count(f"action=job_started job_id={job.id}") for job in jobs]


def test_two_hosts_share_the_work_of_a_batch(lan: Lan, fleet: Fleet) -> None:
    workers = [start_worker(host, 2) for host in lan.hosts]
    for worker in workers:
        worker.wait_ready()

    jobs = fleet.submit_many(sleeps(*[0.3] * 20), batch="shared", idempotent=True)
    outcomes = [job.outcome(60) for job in jobs]

    assert {outcome.code for outcome in outcomes} == {"OK"}
    assert {len(outcome.attempts) for outcome in outcomes} == {1}
    shares = Counter(outcome.attempts[0].host for outcome in outcomes)
    assert set(shares) == set(NAMES)
    assert min(shares.values()) >= 4, shares
    assert [sum(counts) for counts in zip(*(starts(worker, *jobs) for worker in workers), strict=True)] == [1] * 20


def test_a_host_that_was_cut_off_is_fenced_off_when_it_comes_back(lan: Lan, fleet: Fleet) -> None:
    cut, other = lan.hosts
    old = start_worker(cut, 4, SANDFLEET_QUEUES="")
    new = start_worker(other, 4, SANDFLEET_QUEUE="first")
    old.wait_ready()
    new.wait_ready()
    # While the other host is full, all of the batch goes to the one that will be cut off.
    fillers = [fleet.submit(spec, queue="first") for spec in sleeps(*[3] * 4)]
    wait_until(lambda: starts(new, *fillers) == [1] * 4, 20, "the other host is full")
    jobs = fleet.submit_many(sleeps(7, 7, 20, 20), batch="cut", idempotent=True)
    wait_until(lambda: starts(old, *jobs) == [1] * 4, 3, "the batch runs on the host to be cut off")
    for filler in fillers:
        assert filler.outcome(20).attempts[0].host == other.name

    cut.cut_off()
    began = time.monotonic()
    wait_until(lambda: starts(new, *jobs) == [1] * 4, LEASE_SECONDS + MARGIN_SECONDS, "the batch runs elsewhere")
    short = [job.id for job in jobs[:2]]
    wait_until(
        lambda: all(f"action=job_ended job_id={job_id}" in old.log for job_id in short), 10, "the late outcomes wait"
    )
    time.sleep(max(0.0, began + 2 * LEASE_SECONDS + MARGIN_SECONDS - time.monotonic()))
    assert lan.redis.exists(f"{KEY_PREFIX}duplicates") == 0, "nothing reaches Redis from there"
    assert old.process.poll() is None, "an outage alone ends no worker"
    cut.join()

    assert old.process.wait(20) == EXIT_LOST
    assert cut.find_leftovers() == []
    assert old.log.count("action=fenced") == 4
    assert not any(f"action=job_ended job_id={job.id}" in old.log for job in jobs[2:])
    told = [fields for _, fields in lan.redis.xrange(f"{KEY_PREFIX}duplicates")]
    assert sorted(fields[b"job"].decode() for fields in told) == sorted(short)
    assert all(fields[b"owner"].startswith(b"host-a:") and fields[b"code"] == b"OK" for fields in told)
    for job in jobs:
        outcome = job.outcome(40)
        assert [(attempt.host, attempt.code) for attempt in outcome.attempts] == [
            (cut.name, "WORKER_LOST"),
            (other.name, "OK"),
        ]
        assert outcome.host == other.name
    assert starts(new, *jobs) == starts(old, *jobs) == [1] * 4
    ended = [name.decode() for name in lan.redis.lrange(f"{KEY_PREFIX}done:cut", 0, -1)]
    assert sorted(ended) == sorted(job.id for job in jobs), "each job has ended once"
