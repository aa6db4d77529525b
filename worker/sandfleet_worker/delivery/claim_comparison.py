"""Finds where Redis and a worker differ about claims, and settles it.

A fail-over or a power cut may take the last second from Redis. It then lacks claims that the worker
holds, or has claims whose end the worker has reported.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandfleet_worker.delivery.claim import Claim
    from sandfleet_worker.delivery.held_claims import HeldClaims
    from sandfleet_worker.delivery.ledger import Ledger

log = logging.getLogger(__name__)

UNSAFE_SECONDS = 120.0
"""How long an end that no replica has confirmed is compared with what Redis knows."""
MAX_UNSAFE_ENDS = 1000

RECOVERED_AT_ONCE = 100
"""Claims of one call, during which Redis serves no other client; later beats find the others."""


class ClaimComparison:
    """Compares after each beat.

    A difference seen twice in a row is not a call in progress, unless it is the end of a run. An end
    may wait long for its answer, or for a replica: its claim is settled, and held until then.

    `read_claim_under_way` returns the id under which the worker claims now. `withdraw` is called
    with the id of a claim whose run is to end, and why, once there is somebody to call.
    """

    def __init__(self, ledger: Ledger, held_claims: HeldClaims, read_claim_under_way: Callable[[], str]) -> None:
        self._ledger, self.held_claims, self._read_claim_under_way = ledger, held_claims, read_claim_under_way
        self.withdraw: Callable[[str, str], None] | None = None
        self._unknown_here: set[str] = set()
        self._unknown_there: set[str] = set()
        self._unsafe_ends: deque[tuple[float, Claim]] = deque(maxlen=MAX_UNSAFE_ENDS)

    def note_unsafe_end(self, claim: Claim) -> None:
        """Remember the end of a run that no replica may have: a fail-over may undo it."""
        self._unsafe_ends.append((time.monotonic(), claim))

    def compare(self, missing: Sequence[Claim]) -> None:
        """Settle what differs; `missing` are held claims that the beat did not find in Redis.

        Raises:
            redis.RedisError: Redis does not answer; the next beat does the rest.
        """
        fenced = self._restore(missing)
        for claim in fenced:
            if claim.claim_id in self._unknown_there and not self._ledger.is_settled(claim):
                log.warning(
                    "Redis has lost the claim of job %s: its run here is ended, and does not count",
                    claim.job_id,
                    extra={"action": "claim_lost", "job_id": claim.job_id},
                )
                if self.withdraw:
                    self.withdraw(claim.claim_id, "Redis has lost the claim: the job runs elsewhere, or will")
        self._unknown_there = {claim.claim_id for claim in fenced} - self._unknown_there
        self._recover()
        self._tell_lost_runs()

    def _restore(self, missing: Sequence[Claim]) -> list[Claim]:
        """Put back claims that were deleted in Redis; return those that are not this worker's.

        Such a claim may also have ended just now.
        """
        fenced = []
        for claim in missing:
            if self._ledger.restore(claim):
                text = "the claim of job %s was deleted in Redis, and is put back"
                log.warning(text, claim.job_id, extra={"action": "claim_restored", "job_id": claim.job_id})
            else:
                fenced.append(claim)
        return fenced

    def _recover(self) -> None:
        """Have claims decided anew that Redis has and this worker does not hold."""
        # In this order: Redis has a claim before it is held, and a claim is held before its id is
        # given up.
        there = self._ledger.read_claim_ids()
        under_way = self._read_claim_under_way()
        unknown = there - {under_way, *(claim.claim_id for claim in self.held_claims.claims())}
        lost = unknown & self._unknown_here
        self._unknown_here = unknown - lost
        if lost:
            for job_id in self._ledger.recover(sorted(lost)[:RECOVERED_AT_ONCE]):
                log.warning(
                    "Redis has lost how a run of job %s ended: it is decided as that of a dead worker",
                    job_id,
                    extra={"action": "end_lost", "job_id": job_id},
                )

    def _tell_lost_runs(self) -> None:
        """Tell of runs whose claim and end were undone: nobody else knows of them."""
        oldest = time.monotonic() - UNSAFE_SECONDS
        while self._unsafe_ends and self._unsafe_ends[0][0] < oldest:
            self._unsafe_ends.popleft()
        ended = [claim for _, claim in list(self._unsafe_ends)]  # a copy: other threads add to it
        lost = set(self._ledger.tell_lost_runs(ended)) if ended else set()
        for job_id in lost:
            text = "Redis has lost a run of job %s, with its end: the job runs again"
            log.warning(text, job_id, extra={"action": "run_lost", "job_id": job_id})
        for at, claim in list(self._unsafe_ends) if lost else ():
            if claim.job_id in lost and claim in ended:
                self._unsafe_ends.remove((at, claim))
