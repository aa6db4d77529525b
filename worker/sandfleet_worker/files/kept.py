"""Let the store keep the inputs of jobs for as long as anybody may run these jobs again."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Final

import redis
from sandfleet_config.scripts import DEAD_TTL_SECONDS
from sandfleet_config.store.protocol import UNUSED_SECONDS, StoreError

from sandfleet_worker.system.detached import call_detached

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_config.spec import SandboxSpec
    from sandfleet_config.store.references import References

log = logging.getLogger(__name__)

RENEWED_SECONDS: Final = 3600.0
"""A worker renews an object at most this often; shorter than the store's own margin."""
MAX_KNOWN: Final = 10_000
"""Objects whose renewals one worker remembers."""

assert RENEWED_SECONDS < UNUSED_SECONDS


class KeptInputs:
    """Renews the references to inputs; safe for threads.

    Submit lets the store keep a job's inputs for its `queue_ttl` and the result TTL. A job that is
    tried again, or that a person runs again, may need them later than that.
    """

    def __init__(self, references: References, result_ttl_seconds: float) -> None:
        self._references, self._result_ttl_seconds = references, result_ttl_seconds
        self._kept_until: dict[str, float] = {}

    def keep(self, spec: SandboxSpec, pause: Callable[[float], object]) -> None:
        """Renew the inputs of a job before it runs.

        Another run of it may begin until its outcome expires.
        """
        seconds = spec.queue_ttl + spec.timeout_seconds + spec.grace + self._result_ttl_seconds
        self._keep(list_objects(spec), seconds, pause)

    def keep_for_dead_letter(self, spec: SandboxSpec, pause: Callable[[float], object]) -> None:
        """Renew the inputs of a job that is a dead letter now.

        A person may queue it again until the dead letter expires.
        """
        self._keep(list_objects(spec), DEAD_TTL_SECONDS, pause)

    def _keep(self, names: list[str], seconds: float, pause: Callable[[float], object]) -> None:
        """Renew what is due.

        A failure is no reason not to run the job: what is missing then says so itself.
        """
        until = time.monotonic() + seconds
        known = self._kept_until
        due = [name for name in names if name not in known or known[name] < until - RENEWED_SECONDS]
        if not due:
            return
        try:
            call_detached(lambda: self._references.keep(due, seconds), pause)
        except (StoreError, redis.RedisError) as error:
            extra = {"action": "references_not_renewed"}
            log.warning("the store was not told to keep %d inputs of a job: %s", len(due), error, extra=extra)
            return
        if len(known) > MAX_KNOWN:
            known.clear()
        known |= dict.fromkeys(due, until)


def list_objects(spec: SandboxSpec) -> list[str]:
    """Return the names of the objects that are inputs of `spec`, each once."""
    return [name for name in dict.fromkeys([*(file.sha256 for file in spec.files), spec.stdin.sha256]) if name]
