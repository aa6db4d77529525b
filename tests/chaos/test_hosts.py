"""Two hosts, each a network namespace: they share the work, and one is cut off and comes back."""

from __future__ import annotations

import json
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
from sandfleet_worker.delivery.claim_calls import AVOID_SECONDS
from sandfleet_worker.delivery.intake import EXIT_LOST
from sandfleet_worker.job_run import FIRST_BACKOFF_SECONDS
from sandfleet_worker.sandbox.image.store import ImageStore
from stage import Stock
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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


def read_duplicates(lan: Lan) -> dict[str, tuple[bytes, bytes]]:
    """Return kind and code of what did not count, by job; it all came from the first host."""
    told = [fields for _, fields in lan.redis.xrange(f"{KEY_PREFIX}duplicates")]
    assert all(fields[b"owner"].startswith(b"host-a:") for fields in told)
    found = {fields[b"job"].decode(): (fields[b"kind"], fields[b"code"]) for fields in told}
    assert len(found) == len(told), "one entry a job"
    return found


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


def test_a_host_that_comes_back_after_a_cut_is_fenced_off(lan: Lan, fleet: Fleet) -> None:
    cut, other = lan.hosts
    old = start_worker(cut, 2, SANDFLEET_QUEUES="")
    # Two workers: each of the batch may have killed its worker, so the two run apart.
    successors = [start_worker(other, 2, SANDFLEET_QUEUE="first") for _ in range(2)]
    for worker in (old, *successors):
        worker.wait_ready()

    def starts_elsewhere(jobs: Sequence[Job]) -> list[int]:
        return [sum(counts) for counts in zip(*(starts(successor, *jobs) for successor in successors), strict=True)]

    # While the other host is full, all of the batch goes to the one that will be cut off.
    fillers = [fleet.submit(spec, queue="first") for spec in sleeps(3, 3)]
    wait_until(lambda: starts_elsewhere(fillers) == [1] * 2, 20, "the other host is full")
    jobs = fleet.submit_many(sleeps(7, 20), batch="cut", idempotent=True)
    wait_until(lambda: starts(old, *jobs) == [1] * 2, 3, "the batch runs on the host to be cut off")
    started = time.monotonic()
    for filler in fillers:
        assert filler.outcome(20).attempts[0].host == other.name

    cut.cut_off()
    began = time.monotonic()
    wait_until(lambda: starts_elsewhere(jobs) == [1] * 2, LEASE_SECONDS + MARGIN_SECONDS, "the batch runs elsewhere")
    # Long enough for the end of the first program, too. The call that tells it may wait for its answer
    # for 15 s (TIMEOUT_SECONDS of delivery.intake), with nothing in the log.
    is_told = max(began + 2 * LEASE_SECONDS, started + 7) + MARGIN_SECONDS
    time.sleep(max(0.0, is_told - time.monotonic()))
    assert lan.redis.exists(f"{KEY_PREFIX}duplicates") == 0, "nothing reaches Redis from there"
    assert old.process.poll() is None, "an outage alone ends no worker"
    cut.join()

    assert old.process.wait(20) == EXIT_LOST
    assert cut.find_leftovers() == []
    assert old.log.count("action=fenced") == 2
    assert not any(f"action=job_ended job_id={job.id}" in old.log for job in jobs), "no late end counts"
    assert read_duplicates(lan) == {jobs[0].id: (b"outcome", b"OK"), jobs[1].id: (b"run", b"WORKER_LOST")}
    for outcome in [job.outcome(40) for job in jobs]:
        told = [(attempt.host, attempt.code) for attempt in outcome.attempts]
        assert told == [(cut.name, "WORKER_LOST"), (other.name, "OK")]
        assert outcome.host == other.name
    assert starts_elsewhere(jobs) == starts(old, *jobs) == [1] * 2
    ended = [fields[b"id"].decode() for _, fields in lan.redis.xrange(f"{KEY_PREFIX}ends:cut")]
    assert sorted(ended) == sorted(job.id for job in jobs), "each job has ended once"


def test_a_worker_learns_of_its_lost_lease_soon_after_a_network_outage(lan: Lan, fleet: Fleet) -> None:
    cut, other = lan.hosts
    old = start_worker(cut, 2)
    old.wait_ready()
    jobs = fleet.submit_many(sleeps(20), batch="hole", idempotent=True)
    wait_until(lambda: starts(old, *jobs) == [1], 20, "the batch runs on the host to be cut off")
    new = start_worker(other, 2)
    new.wait_ready()
    time.sleep(LEASE_SECONDS)

    with cut.black_hole():
        began = time.monotonic()
        wait_until(lambda: starts(new, *jobs) == [1], LEASE_SECONDS + MARGIN_SECONDS + 1, "the batch runs elsewhere")
        # TCP (net/ipv4/tcp_timer.c) sends a lost packet again after 0.2 s, and after twice as long
        # each time: whoever waits for that hears nothing from 6 to 12 s after the loss, though
        # packets come through again.
        time.sleep(max(0.0, began + 7.5 - time.monotonic()))
        assert "action=lease_lost" not in old.log

    wait_until(lambda: "action=lease_lost" in old.log, LEASE_SECONDS + 1, "the lost lease is heard of")
    # Those of its jobs at once, its spares with Celery's loop, which looks at its flags once a
    # second.
    wait_until(lambda: not cut.find_sentries(), 10, "its sandboxes die")
    assert old.process.wait(20) == EXIT_LOST
    for job in jobs:
        assert [(attempt.host, attempt.code) for attempt in job.outcome(40).attempts] == [
            (cut.name, "WORKER_LOST"),
            (other.name, "OK"),
        ]


def test_jobs_that_failed_on_one_host_are_tried_again_on_another(lan: Lan, fleet: Fleet) -> None:
    first, second = lan.hosts
    failing = start_worker(first, 4)
    failing.wait_ready()
    jobs = [
        fleet.submit(spec) for spec in sleeps(*[12] * 4)
    ]  # longer than the other worker takes to start, on any machine
    wait_until(lambda: starts(failing, *jobs) == [1] * 4, 20, "the jobs run")
    start_worker(second, 4).wait_ready()

    # The host they failed on is idle from now on, and looks for work all the time.
    first.kill_sentries()

    for job in jobs:
        assert [(attempt.host, attempt.code) for attempt in job.outcome(60).attempts] == [
            (first.name, "SANDBOX_EXECUTION_FAILED"),
            (second.name, "OK"),
        ]
    assert starts(failing, *jobs) == [1] * 4


def test_a_failed_job_is_tried_again_on_the_same_host_if_no_other_lives(lan: Lan, fleet: Fleet) -> None:
    only, gone = lan.hosts
    lost = start_worker(gone, 1)
    lost.wait_ready()
    failing = start_worker(only, 1)
    failing.wait_ready()
    gone.cut_off()
    wait_until(lambda: lan.redis.zcard(f"{KEY_PREFIX}owners") == 1, 10, "the other host's lease has ended")
    job = fleet.submit(sleeps(2)[0])
    wait_until(lambda: starts(failing, job) == [1], 20, "the job runs")

    only.kill_sentries()

    began = time.monotonic()
    wait_until(lambda: starts(failing, job) == [2], FIRST_BACKOFF_SECONDS + MARGIN_SECONDS, "it runs again")
    assert time.monotonic() - began < FIRST_BACKOFF_SECONDS + AVOID_SECONDS, "nobody waits for a host that is not there"
    outcome = job.outcome(30)
    assert [(attempt.host, attempt.code) for attempt in outcome.attempts] == [
        (only.name, "SANDBOX_EXECUTION_FAILED"),
        (only.name, "OK"),
    ]
    gone.join()
    assert lost.process.wait(20) == EXIT_LOST


def test_a_failed_job_does_not_wait_for_ever_for_a_full_host(lan: Lan, fleet: Fleet) -> None:
    first, full = lan.hosts
    busy = start_worker(full, 1, SANDFLEET_QUEUE="long")
    busy.wait_ready()
    filler = fleet.submit(sleeps(25)[0], queue="long")
    wait_until(lambda: starts(busy, filler) == [1], 20, "the other host is full")
    failing = start_worker(first, 1)
    failing.wait_ready()
    job = fleet.submit(sleeps(2)[0])
    wait_until(lambda: starts(failing, job) == [1], 20, "the job runs")

    first.kill_sentries()

    wait_until(lambda: "action=job_retried" in failing.log, 10, "it failed by the host")
    failed = time.monotonic()
    patience = FIRST_BACKOFF_SECONDS + AVOID_SECONDS
    wait_until(lambda: starts(failing, job) == [2], patience + MARGIN_SECONDS, "it runs again where it can")
    assert time.monotonic() - failed > patience - 0.5, "the other host had its time"
    outcome = job.outcome(30)
    assert [(attempt.host, attempt.code) for attempt in outcome.attempts] == [
        (first.name, "SANDBOX_EXECUTION_FAILED"),
        (first.name, "OK"),
    ]
    assert not filler.is_done
    filler.cancel()
    assert filler.outcome(20).code == "CANCELLED"


def test_jobs_run_where_their_image_and_their_labels_are(lan: Lan, fleet: Fleet) -> None:
    """A host without the image fails fast, and so it ended most jobs of the others."""
    without, having = lan.hosts
    without.images = lan.folder / "own-images"
    workers = [start_worker(without, 4), start_worker(having, 2, SANDFLEET_HOST_LABELS="gpu=yes")]
    for worker in workers:
        worker.wait_ready()
    jobs = fleet.submit_many(sleeps(*[0.1] * 12), batch="image")
    text = json.dumps({"contract": 1, "spec": {"image": "busybox", "command": ["true"]}})
    stock = Stock(lan.url, lan.redis)
    untold = [stock.push([[text], {}, {}]) for _ in range(6)]
    nowhere = fleet.submit(SandboxSpec(image="nowhere", command=["true"]))
    never = fleet.submit(SandboxSpec(image="busybox", command=["true"], requires={"zone": "b"}))

    outcomes = [*(job.outcome(60) for job in jobs), *(fleet.job(job_id).outcome(60) for job_id in untold)]
    assert {(outcome.code, outcome.host, len(outcome.attempts)) for outcome in outcomes} == {("OK", having.name, 1)}
    assert nowhere.outcome(10).code == "IMAGE_NOT_FOUND"
    wait_until(lambda: _read_why(fleet, never) == "no live host has zone=b", 5, "the record says why it waits")

    ImageStore(without.images).add("busybox")
    wait_until(lambda: _count_hosts_with(lan, "busybox") == 2, 3, "an image that was added is told")
    assert starts(workers[0], *jobs) == [0] * 12
    labelled = [
        fleet.submit(SandboxSpec(image="busybox", command=["sleep", "0.1"], requires={"gpu": "yes"})) for _ in range(6)
    ]
    assert {(job.outcome(30).code, job.outcome().host) for job in labelled} == {("OK", having.name)}
    start_worker(without, 1, SANDFLEET_HOST_LABELS="zone=b").wait_ready()
    outcome = never.outcome(10)
    assert (outcome.code, outcome.host) == ("OK", without.name)


def _read_why(fleet: Fleet, job: Job) -> str:
    record = fleet.record(job.id)
    return record.why if record else ""


def _count_hosts_with(lan: Lan, image: str) -> int:
    return sum(lan.redis.sismember(key, image) for key in lan.redis.scan_iter(f"{KEY_PREFIX}images:*"))
