"""Preparations that do not work are left alone for a while; their jobs start warm or cold."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_config.prepared_settings import PreparedSettings

    from sandfleet_worker.sandbox.process.plan import Plan

log = logging.getLogger(__name__)

MIN_CRASHES: Final = 3
CRASH_PERCENT, ABORT_PERCENT = 1, 50
"""More of its jobs than that: a program may abort by itself, and many of a batch may."""
WINDOW: Final = 1000
"""After so many jobs older ones count half."""
MAX_KNOWN: Final = 1000
UNFIT_SECONDS: Final = 24 * 3600.0
"""How long it is remembered that an image has no Python that can be prepared."""


@dataclass
class _Record:
    failures: int = 0
    jobs: int = 0
    crashes: int = 0
    aborts: int = 0
    until: float = 0.0
    reason: str = ""
    is_unfit: bool = False

    def halve(self) -> None:
        """Let the jobs so far count half."""
        self.jobs, self.crashes, self.aborts = self.jobs // 2, self.crashes // 2, self.aborts // 2

    def has_crashed_too_often(self) -> bool:
        """Whether so many jobs have crashed that the preparation must be the reason."""
        ended = self.crashes + self.aborts
        too_many = self.crashes >= MIN_CRASHES and self.crashes * 100 > self.jobs * CRASH_PERCENT
        return too_many or (ended >= MIN_CRASHES and ended * 100 > self.jobs * ABORT_PERCENT)


class Quarantine:
    """Counts failed preparations and early crashes for each plan; safe for threads.

    A plan is in quarantine after `settings.failures` in a row, or if more than 1 % of its jobs, and
    3 at least, crash right after their start; with those that abort, more than half. After
    `quarantine_seconds` it is tried again: then one failure is enough.
    """

    def __init__(self, settings: PreparedSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._clock = settings, clock
        self._lock = threading.Lock()
        self._records: dict[Plan, _Record] = {}

    def holds(self, plan: Plan) -> bool:
        """Whether no spare of `plan` is to be made now."""
        with self._lock:
            record = self._records.get(plan)
            return record is not None and record.until > self._clock()

    def is_unfit(self, plan: Plan) -> bool:
        """Whether `plan` is held because its image has no Python that can be prepared."""
        with self._lock:
            record = self._records.get(plan)
            return record is not None and record.is_unfit and record.until > self._clock()

    def note_failure(self, plan: Plan, reason: str, *, is_unfit: bool = False) -> bool:
        """Count a preparation that failed, or an interpreter that was lost; True: now held.

        `is_unfit`: another try would end the same. If nobody has listed that preparation, it is no
        fault then that the image cannot be prepared. Of one that the operator has listed it is: the
        reason may be the image's own text.
        """
        is_bare = plan.interpreter is not None and not plan.interpreter.preparation.name
        with self._lock:
            record = self._find(plan)
            record.failures += 1
            if not is_unfit and record.failures < self._settings.failures:
                return False
            record.is_unfit = is_unfit and is_bare
            self._hold(plan, record, reason, UNFIT_SECONDS if record.is_unfit else self._settings.quarantine_seconds)
            return True

    def note_job(self, plan: Plan, *, has_crashed: bool = False, has_aborted: bool = False) -> bool:
        """Count a job of a prepared spare that has ended, perhaps right after its start.

        Return whether the plan is now held.
        """
        with self._lock:
            record = self._find(plan)
            record.failures = 0
            record.jobs += 1
            record.crashes += has_crashed
            record.aborts += has_aborted
            if record.jobs > WINDOW:
                record.halve()
            if not (has_crashed or has_aborted) or not record.has_crashed_too_often():
                return False
            reason = f"{record.crashes + record.aborts} of {record.jobs} jobs crashed right after their start"
            record.jobs = record.crashes = record.aborts = 0
            self._hold(plan, record, reason, self._settings.quarantine_seconds)
            return True

    def list_held(self, is_listed: Callable[[Plan], bool] = lambda _: True) -> dict[str, str]:
        """Return the preparations in quarantine, ``IMAGE:NAME``, with the reason: those that `is_listed`."""
        with self._lock:
            now = self._clock()
            found = [(plan, record) for plan, record in self._records.items() if record.until > now]
        return {
            plan.interpreter.name: record.reason
            for plan, record in found
            if plan.interpreter is not None and not record.is_unfit and is_listed(plan)
        }

    def _find(self, plan: Plan) -> _Record:
        if plan not in self._records and len(self._records) >= MAX_KNOWN:
            del self._records[next(iter(self._records))]
        return self._records.setdefault(plan, _Record())

    def _hold(self, plan: Plan, record: _Record, reason: str, seconds: float) -> None:
        record.until, record.reason = self._clock() + seconds, reason
        record.failures = self._settings.failures - 1
        name = plan.interpreter.name if plan.interpreter else ""
        text = "the preparation %s is not used for %g s: %s"
        if record.is_unfit:
            log.info(text, name, seconds, reason, extra={"action": "preparation_unfit"})
        else:
            log.warning(text, name, seconds, reason, extra={"action": "preparation_in_quarantine"})
