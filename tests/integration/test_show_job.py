"""`sandfleet show` and lists of jobs: where a job is, in which slot, with which image and limits."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet import ErrorCode, Fleet, Job, Outcome, SandboxSpec
from sandfleet.cli import main
from sandfleet_config.files import DatasetSpec
from sandfleet_config.queues import DEFAULT_QUEUE
from sandfleet_worker.delivery.claim import Claim
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.ledger import Ledger

if TYPE_CHECKING:
    Capture = pytest.CaptureFixture[str]

MEMORY: dict[str, Any] = {"resources": {"memory_bytes": "64MiB"}, "timeout": 20}
LIMITS = "limits        memory_bytes 64 MiB, timeout 20 s\n"


@pytest.fixture
def job(fleet: Fleet) -> Job:
    (found,) = fleet.submit_many([SandboxSpec(image="x", command=["solve"], **MEMORY)], batch="b")
    return found


@pytest.fixture
def other(client: Any) -> Ledger:
    """A worker of another host."""
    found = Ledger(client, Identity("elsewhere", "two", "elsewhere:two:two"), 3600)
    found.register(7200)
    return found


def take(ledger: Ledger, slot: int) -> Claim:
    claim, _ = ledger.claim(f"claim-{slot}", [DEFAULT_QUEUE], {"slot": slot})
    assert claim is not None
    return claim


def show(job: Job, capfd: Capture) -> tuple[str, dict[str, Any]]:
    """Return what `show` says for people and as JSON."""
    assert main(["show", job.id]) == 0
    text = capfd.readouterr().out
    assert main(["show", job.id, "--json"]) == 0
    return text, json.loads(capfd.readouterr().out)


def list_ids(capfd: Capture, *words: str) -> list[str]:
    assert main(["jobs", "--batch", "b", "-o", "ids", *words]) == 0
    return capfd.readouterr().out.split()


def test_a_running_job_shows_its_host_and_slot(job: Job, ledger: Ledger, capfd: Capture) -> None:
    take(ledger, 3)
    text, fields = show(job, capfd)
    assert "host          host, slot 3 (one)\n" in text
    assert "attempt 1     running on host, slot 3 (one), started " in text
    assert "image         x\n" in text
    assert LIMITS in text
    assert (fields["host"], fields["attempts"][0]["slot"]) == ("host", 3)


def test_a_waiting_job_is_on_the_host_that_has_it(job: Job, ledger: Ledger, other: Ledger, capfd: Capture) -> None:
    """Not on that of its earlier attempt."""
    assert ledger.retry(take(ledger, 3), ErrorCode.HOST_RESOURCES)
    assert other.wait(take(other, 4))
    text, fields = show(job, capfd)
    assert "state         waiting\nhost          elsewhere\n" in text
    assert "attempt 1     HOST_RESOURCES on host, slot 3 (one), started " in text
    assert fields["host"] == "elsewhere"
    assert list_ids(capfd, "--host", "elsewhere") == [job.id]
    assert list_ids(capfd, "--host", "host") == []
    assert main(["jobs", "--batch", "b"]) == 0
    assert "elsewhere" in capfd.readouterr().out


def test_an_ended_job_shows_its_image_and_its_limits(job: Job, ledger: Ledger, capfd: Capture) -> None:
    claim = take(ledger, 3)
    limits = {"memory_bytes": {"value": 64 << 20, "enforced": True}, "pids_limit": {"value": 256, "enforced": False}}
    attempts = claim.end_attempts(ErrorCode.TIMEOUT)
    outcome = Outcome.of(ErrorCode.TIMEOUT, job.id, attempts=attempts, image_digest="sha256:12", limits=limits)
    assert ledger.finish(claim, outcome)
    text, _ = show(job, capfd)
    assert "image         x\n" in text
    assert "digest        sha256:12\n" in text
    assert "limits        memory_bytes 64 MiB, pids_limit 256 processes and threads\n" in text
    assert "not enforced  pids_limit\n" in text
    assert "attempt 1     TIMEOUT on host, slot 3 (one), started " in text


def test_a_job_that_ended_in_the_queue_shows_its_image_and_what_it_asked_for(job: Job, capfd: Capture) -> None:
    job.cancel()
    text, _ = show(job, capfd)
    assert "outcome       CANCELLED" in text
    assert "image         x\n" in text
    assert LIMITS in text


def test_a_job_with_a_dataset_shows_it(fleet: Fleet, capfd: Capture) -> None:
    job = fleet.submit(SandboxSpec(image="x", datasets=[DatasetSpec(name="tables")]))
    text, fields = show(job, capfd)
    assert "datasets      tables\n" in text
    assert fields["limits"] == {}
