"""The mark that an operator put on this host: it starts no job, or is drained until a deadline."""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from sandfleet_worker.delivery.held_claims import HeldClaims

log = logging.getLogger(__name__)

CORDONED = "the host is cordoned"
DRAINED = "the host was drained"
RETRY_SECONDS = 0.5
"""Interval of withdrawing what still runs after a drain's deadline."""
MAX_TIME = 1e11
"""Unix time of a far future. A larger number, or NaN, is no time."""


@dataclass(frozen=True)
class Mark:
    """A mark as its operator wrote it; `deadline` is unix time by Redis's clock."""

    by: str = ""
    reason: str = ""
    deadline: float | None = None

    def describe(self) -> str:
        """Say who has put it there, and why."""
        return f"by {self.by or 'somebody'}: {self.reason or 'no reason given'}"


def parse_mark(raw: bytes) -> Mark | None:
    """Return the mark of a host, None if it has none.

    One that cannot be read is a mark without a deadline, as claim.lua sees it.
    """
    if not raw:
        return None
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError):
        return Mark()
    if not isinstance(found, dict):
        return Mark()
    by, reason = (ascii(str(found.get(name, "")))[1:-1][:200] for name in ("by", "reason"))
    return Mark(by, reason, _parse_time(found.get("deadline")))


def _parse_time(value: object) -> float | None:
    """Return a unix time; None if it is no number that can be one."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not -MAX_TIME < value < MAX_TIME:
        return None
    return float(value)


class HostMark:
    """Obeys the mark of this host. Used in the lease's thread; `state` is safe for others.

    A marked host claims nothing, and starts nothing that has waited: claim.lua and start.lua see to
    that. At the deadline of a drain `withdraw` gives back what is left, with why.
    """

    def __init__(self, held_claims: HeldClaims) -> None:
        self._held_claims = held_claims
        self.withdraw: Callable[[Sequence[str], str], None] = lambda _ids, _why: None
        self._mark: Mark | None = None
        self._due_at = math.inf
        self._is_told = False

    def note(self, raw: bytes, now: float, known: Collection[str]) -> None:
        """Note the mark as it is at `now`, unix time by Redis's clock, and do what it asks for.

        `known` are the jobs that were held before it was read: a later one was claimed after the
        mark was taken away.
        """
        mark = parse_mark(raw)
        if mark != self._mark:
            self._log(mark)
            self._mark, self._is_told = mark, False
        if mark is None:
            self._due_at = math.inf
            return
        left = math.inf if mark.deadline is None else mark.deadline - now
        self._due_at = time.monotonic() + left
        if left <= 0 and (job_ids := [found for found in self._held_claims.running_job_ids() if found in known]):
            if not self._is_told:
                self._is_told = True
                text = "the drain's deadline has passed: %d jobs go back to their queues"
                log.warning(text, len(job_ids), extra={"action": "host_drained"})
            self.withdraw(job_ids, DRAINED)

    def _log(self, mark: Mark | None) -> None:
        if mark is None:
            log.info("the host is no longer cordoned: jobs are claimed again", extra={"action": "host_uncordoned"})
            return
        is_drain = mark.deadline is not None
        text = "the host is drained %s" if is_drain else "the host is cordoned %s"
        action = "host_drains" if is_drain else "host_cordoned"
        log.warning(f"{text}; no job is claimed", mark.describe(), extra={"action": action})  # noqa: G004

    def limit_pause(self, seconds: float) -> float:
        """Return how long to wait for the next beat, which `seconds` would be without a mark."""
        left = self._due_at - time.monotonic()
        if left > 0:
            return min(seconds, left)
        return min(seconds, RETRY_SECONDS) if self._held_claims.running_job_ids() else seconds

    @property
    def state(self) -> str:
        """``up``, ``cordoned``, ``draining`` or, when no job is left here, ``drained``."""
        mark = self._mark
        if mark is None:
            return "up"
        if mark.deadline is None:
            return "cordoned"
        return "draining" if self._held_claims.job_ids() else "drained"
