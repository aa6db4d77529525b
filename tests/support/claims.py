"""Submit and claim jobs without a worker, for tests of what Redis keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import SecretStr
from sandfleet import Fleet, SandboxSpec, Settings
from sandfleet_config.queues import DEFAULT_QUEUE

if TYPE_CHECKING:
    from sandfleet_worker.delivery.claim import Claim
    from sandfleet_worker.delivery.ledger import Ledger


def submit(url: str, count: int = 1, **options: Any) -> list[str]:
    """Submit so many jobs; return their ids."""
    with Fleet(Settings(redis_url=SecretStr(url))) as fleet:
        return [job.id for job in fleet.submit_many([SandboxSpec(image="x", command=["true"])] * count, **options)]


def claim_next(ledger: Ledger, claim_id: str, limit: int = 1000) -> tuple[Claim | None, int]:
    """Claim as the claimer does; return the claim and the number of calls that it took."""
    for calls in range(1, limit):
        claim, may_be_more = ledger.claim(claim_id, [DEFAULT_QUEUE])
        if claim is not None or not may_be_more:
            return claim, calls
    raise AssertionError("no end of the claims")
