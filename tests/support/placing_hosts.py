"""Hosts that have what a test says, of which only the ledger runs."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from sandfleet import ErrorCode, Fleet, Outcome
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX
from sandfleet_worker.delivery.claim import Claim
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.delivery.parked_jobs import ParkedJobs

if TYPE_CHECKING:
    from sandfleet import Job
MIB = 1 << 20
FREE = 1 << 40


class HostOfTest:
    """A worker's ledger on a host that has what the test says."""

    def __init__(self, client: Any, name: str, *, images: tuple[str, ...] = ("x",), **facts: Any) -> None:
        self.name, self._images, self._calls = name, images, 0
        ceilings = {"memory_bytes": 512 * MIB, "timeout": 3600, "cpu_quota": 200_000}
        self._facts = {
            "queues": [DEFAULT_QUEUE],
            "contract": 3,
            "budget": 1024 * MIB,
            "ceilings": ceilings,
            "labels": {},
            "has_all_images": True,
        } | facts
        self.ledger = Ledger(client, Identity(name, f"{name}.1", f"{name}:1:1"), 3600)
        self.ledger.register(600_000)
        self.announce()

    def announce(self, **facts: Any) -> None:
        self._facts |= facts
        assert self.ledger.announce(json.dumps(self._facts), self._images, 600)

    def claim(self, free: int = FREE) -> Claim | None:
        self._calls += 1
        claim_id = f"{self.name}-{self._calls}"
        while True:
            claim, may_be_more = self.ledger.claim(claim_id, [DEFAULT_QUEUE], {"free": free})
            if claim is not None or not may_be_more:
                return claim

    def takes(self, job: Job, free: int = FREE) -> None:
        claim = self.claim(free)
        assert claim is not None
        assert claim.job_id == job.id


def take(host: HostOfTest) -> Claim:
    claim = host.claim()
    assert claim is not None
    return claim


def end(host: HostOfTest, claim: Claim, code: ErrorCode = ErrorCode.OK, reason: str = "") -> None:
    """End the job of `claim`; with `reason` it becomes a dead letter."""
    outcome = Outcome.of(code, claim.job_id, attempts=claim.end_attempts(code))
    assert host.ledger.finish(claim, outcome, reason=reason)


def sweep(host: HostOfTest) -> None:
    """Do all that is due about parked jobs."""
    parked = ParkedJobs(host.ledger, host.ledger.read_fields)
    parked.sweep()
    while parked.is_under_way:
        parked.sweep()


def sweep_all(host: HostOfTest, client: Any) -> None:
    """Sweep as if the next checks were due now."""
    for key in ("limited", "groups"):
        for name in client.zrange(f"{KEY_PREFIX}{key}", 0, -1):
            client.zadd(f"{KEY_PREFIX}{key}", {name: 1})
    sweep(host)


def submit(fleet: Fleet, **fields: Any) -> Job:
    return fleet.submit({"image": "x", "command": ["true"], **fields})


def read_why(fleet: Fleet, job: Job) -> str:
    record = fleet.record(job.id)
    assert record is not None
    return record.why


def needs_memory(mib: int) -> dict[str, Any]:
    return {"resources": {"memory_bytes": mib * MIB}}
