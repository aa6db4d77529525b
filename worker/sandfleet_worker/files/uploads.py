"""Puts the files that a job left into the store, and says in its outcome where they are."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import redis
from sandfleet_config.outcome import Artifact, StoredObject
from sandfleet_config.store.protocol import StoreDown, StoreError, StoreFull

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandfleet_config.outcome import Outcome, StreamOutput
    from sandfleet_config.store.protocol import ObjectStore
    from sandfleet_config.store.references import References

    from sandfleet_worker.files.spool import SpooledFile

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS: Final = 0.5
MAX_PAUSE_SECONDS: Final = 10.0


class Uploader:
    """Uploads spooled files; while the store is down it tries again, up to `deadline_seconds` for all of a job.

    The store keeps the objects for `keep_seconds`, as long as the outcome is kept. `pause` waits for so
    many seconds, and returns True where the worker may wait no longer.
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
        self._keep_seconds, self._deadline_seconds, self._pause = keep_seconds, deadline_seconds, pause

    def new_deadline(self) -> float:
        """Return when (`time.monotonic`) the uploads of a job that ends now are given up."""
        return time.monotonic() + self._deadline_seconds

    def store(self, outcome: Outcome, files: Sequence[SpooledFile], lost: str, deadline: float) -> Outcome:
        """Return `outcome` with the artifacts that the store has now; `lost` says what was lost before."""
        stored, why = self._upload_all(files, deadline)
        artifacts = tuple(
            Artifact(file.path, file.size, file.sha256, f"{file.mode:04o}", self._store.name)
            for file in files
            if file.sha256 in stored
        )
        if len(artifacts) < len(files):
            text = f"{len(files) - len(artifacts)} of {len(files)} files are not in the store: {why}"
            lost = f"{lost}; {text}" if lost else text
        return outcome.model_copy(update={"artifacts": artifacts, "artifacts_lost": lost or None})

    def store_stream(self, stream: StreamOutput, file: SpooledFile, deadline: float) -> tuple[StreamOutput, str]:
        """Return `stream` with the place of its whole bytes, and why they are lost if they are."""
        stored, why = self._upload_all([file], deadline)
        if not stored:
            return stream, why
        return replace(stream, stored=StoredObject(file.sha256, file.size, self._store.name)), ""

    def _upload_all(self, files: Sequence[SpooledFile], deadline: float) -> tuple[set[str], str]:
        """Return the objects that the store has, and why it does not have the others."""
        stored: set[str] = set()
        pause_seconds, why = FIRST_PAUSE_SECONDS, ""
        for file in files:
            while file.sha256 not in stored:
                try:
                    self._references.keep([file.sha256], self._keep_seconds)
                    self._store.put_file(file.sha256, file.place)
                    stored.add(file.sha256)
                except (StoreDown, StoreFull, redis.RedisError, OSError) as error:
                    why = getattr(error, "message", "") or f"{type(error).__name__}: {error}"
                    log.warning("an upload failed: %s", why, extra={"action": "upload_failed"})
                    if time.monotonic() + pause_seconds > deadline or self._pause(pause_seconds):
                        return stored, f"{why} (tried for {self._deadline_seconds:g} s)"
                    pause_seconds = min(MAX_PAUSE_SECONDS, pause_seconds * 2)
                except StoreError as error:  # this file only, and for ever: too large, or altered in the store
                    why = error.message
                    break
        return stored, why
