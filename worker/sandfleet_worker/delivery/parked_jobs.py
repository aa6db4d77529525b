"""Let parked jobs go, and end those that may never start.

These are of a stopped batch, or after something that failed.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any, Final

from sandfleet_config.queues import job_key

from sandfleet_worker.delivery.queued_end import FIELDS, new_queued_end

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandfleet_worker.delivery.ledger import DueJobs, Ledger

log = logging.getLogger(__name__)

MAX_CALLS: Final = 20
"""Calls of one sweep; a large batch takes several, so that dead workers are not found late."""


class ParkedJobs:
    """Sweep the parked jobs; see parked.lua and after.lua of the contract."""

    def __init__(self, ledger: Ledger, read_fields: Callable[[Sequence[str], Sequence[str]], list[Any]]) -> None:
        """`read_fields` returns fields of the records of jobs, given the keys and the names."""
        self._ledger, self._read_fields = ledger, read_fields
        self._due: DueJobs | None = None

    @property
    def is_under_way(self) -> bool:
        """Whether the last sweep has left something to do."""
        return self._due is not None

    def sweep(self) -> None:
        """Handle what is due, in calls that each take at most some ms of Redis's time.

        The rest is for the next sweep.
        """
        for _ in range(MAX_CALLS):
            # After an error it begins anew: what was due is so again after some seconds.
            due, self._due = self._due, None
            due = self._ledger.sweep_parked(due if due and due.name else None)
            if due is None:
                return
            if due.job_ids and not self._end(due):
                return  # it would find the same ones again; they are due once more in some seconds
            self._due = due

    def _end(self, due: DueJobs) -> int:
        """End the jobs that are still queued; return their number."""
        records = self._read_fields([job_key(job_id) for job_id in due.job_ids], FIELDS)
        now = time.time()
        endings = [
            new_queued_end(due.code, job_id, due.why, values, now)
            for job_id, values in zip(due.job_ids, records, strict=True)
        ]
        ended = self._ledger.end_all_queued(endings)
        text = "%d queued jobs ended as %s: %s"
        log.info(text, sum(ended), due.code.value, due.why, extra={"action": "queued_jobs_ended"})
        return sum(ended)
