"""Puts the files that a job left into the store, and says in its outcome where they are."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Final

import redis
from sandfleet_config.outcome import Artifact, StoredObject
from sandfleet_config.store.protocol import UPLOAD_BYTES, StoreDown, StoreError, StoreFull
from sandfleet_config.units import format_count

from sandfleet_worker.files.upload_budget import UploadBudget
from sandfleet_worker.system.detached import call_detached

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet_config.outcome import Outcome, StreamOutput
    from sandfleet_config.store.protocol import ObjectStore
    from sandfleet_config.store.references import References

    from sandfleet_worker.files.spool import SpooledFile

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS: Final = 0.5
MAX_PAUSE_SECONDS: Final = 10.0
LONGEST_SECONDS: Final = 3000.0
"""How long the uploads of a job may take beyond the deadline, while the store is slow."""
SMALL_BYTES: Final = 1 << 20
LARGE_BUDGET_BYTES: Final = 2 * UPLOAD_BYTES
"""Memory for the uploads of a worker's larger files: two large ones at once.

Jobs whose sandboxes are gone upload beside those that run, so there may be many.
"""
SMALL_BUDGET_BYTES: Final = 16 * SMALL_BYTES
"""Memory for files of up to `SMALL_BYTES`, which do not wait for larger ones."""


class _GivenUp(Exception):
    """The rest of the uploads is given up; the message says why."""


@dataclass(frozen=True)
class UploadLimits:
    """When the uploads of one job are given up.

    At `deadline` (`time.monotonic`) while the store is down. At once where `is_withdrawn` says
    that the worker takes the job's thread back.
    """

    deadline: float
    is_withdrawn: Callable[[], bool]


class Uploader:
    """Uploads spooled files; retries while the store is down, up to `deadline_seconds` a job.

    The store keeps the objects for `keep_seconds` from their upload on, as long as the outcome is
    kept, and for the time that the other uploads may take. `pause` waits for so many seconds, and
    returns True where the worker may wait no longer.
    """

    def __init__(
        self,
        store: ObjectStore,
        references: References,
        *,
        keep_seconds: float,
        deadline_seconds: float,
        pause: Callable[[float], bool],
    ) -> None:
        self._store, self._references = store, references
        self._keep_seconds = keep_seconds + deadline_seconds + LONGEST_SECONDS
        self._deadline_seconds, self._pause = deadline_seconds, pause
        self._large, self._small = UploadBudget(LARGE_BUDGET_BYTES), UploadBudget(SMALL_BUDGET_BYTES)

    def new_limits(self, is_withdrawn: Callable[[], bool]) -> UploadLimits:
        """Return the limits of a job that ends now."""
        return UploadLimits(time.monotonic() + self._deadline_seconds, is_withdrawn)

    def store(self, outcome: Outcome, files: Sequence[SpooledFile], lost: str, limits: UploadLimits) -> Outcome:
        """Return `outcome` with the artifacts in the store; `lost` says what was lost before."""
        stored, why = self._upload_all(files, limits)
        artifacts = tuple(
            Artifact(file.path, file.size, file.sha256, f"{file.mode:04o}", self._store.name)
            for file in files
            if file.sha256 in stored
        )
        if len(artifacts) < len(files):
            text = f"{len(files) - len(artifacts)} of {format_count(len(files), 'file is', 'files are')} not in the store: {why}"
            lost = f"{lost}; {text}" if lost else text
        return outcome.model_copy(update={"artifacts": artifacts, "artifacts_lost": lost or None})

    def store_stream(self, stream: StreamOutput, file: SpooledFile, limits: UploadLimits) -> tuple[StreamOutput, str]:
        """Return `stream` with the place of its whole bytes, and why they are lost if they are."""
        stored, why = self._upload_all([file], limits)
        if not stored:
            return stream, why
        return replace(stream, stored=StoredObject(file.sha256, file.size, self._store.name)), ""

    def _upload_all(self, files: Sequence[SpooledFile], limits: UploadLimits) -> tuple[set[str], str]:
        """Return the objects that the store has, and why it does not have the others."""
        stored: set[str] = set()
        why = ""
        for file in files:
            if file.sha256 in stored:
                continue
            try:
                self._upload(file, limits)
                stored.add(file.sha256)
            except _GivenUp as error:
                return stored, str(error)
            except StoreError as error:  # this file only, and for ever: too large, or altered in the store
                why = error.message
        return stored, why

    def _upload(self, file: SpooledFile, limits: UploadLimits) -> None:
        """Have the store take a file; try again while it is down."""
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            try:
                call_detached(partial(self._put, file, limits), partial(self._check, limits))
            except (StoreDown, StoreFull, redis.RedisError, OSError) as error:
                why = getattr(error, "message", "") or f"{type(error).__name__}: {error}"
                log.warning("an upload failed: %s", why, extra={"action": "upload_failed"})
                if time.monotonic() + pause_seconds > limits.deadline:
                    raise _GivenUp(f"{why} (tried for {self._deadline_seconds:g} s)") from error
                self._check(limits, pause_seconds, f"{why} (not tried again: the worker stops)")
                pause_seconds = min(MAX_PAUSE_SECONDS, pause_seconds * 2)
            else:
                return

    def _put(self, file: SpooledFile, limits: UploadLimits) -> None:
        self._references.keep([file.sha256], self._keep_seconds)
        budget = self._small if file.size <= SMALL_BYTES else self._large
        # An object in one piece is in memory twice: as chunks, and joined.
        with budget.hold(min(2 * file.size, UPLOAD_BYTES), partial(self._check_wait, budget, limits)):
            try:
                self._store.put_file(file.sha256, file.place, partial(self._check, limits))
            except StoreDown as error:
                budget.note_failure(error.message)
                raise
            budget.note_success()

    def _check_wait(self, budget: UploadBudget, limits: UploadLimits) -> None:
        """Let no job wait for other uploads longer than for a store that is down.

        Raises:
            _GivenUp: its deadline is over, and the last upload has failed since the job's end; or
                the uploads may take no longer.
        """
        self._check(limits)
        since = limits.deadline - self._deadline_seconds
        if time.monotonic() > limits.deadline and budget.failed_at >= since:
            raise _GivenUp(f"{budget.failure} (waited {self._deadline_seconds:g} s for other uploads)")

    def _check(
        self, limits: UploadLimits, seconds: float = 0, why: str = "the worker stopped during the upload"
    ) -> None:
        """Wait for so many seconds.

        Raises:
            _GivenUp: the uploads may take no longer.
        """
        if limits.is_withdrawn() or self._pause(seconds) or limits.is_withdrawn():
            raise _GivenUp(why)
        if time.monotonic() > limits.deadline + LONGEST_SECONDS:
            most = self._deadline_seconds + LONGEST_SECONDS
            raise _GivenUp(f"the store did not take them within {most:g} s: its network is too slow for them")
