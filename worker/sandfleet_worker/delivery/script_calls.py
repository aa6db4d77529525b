"""The scripts of a worker, and one call of one of them, counted for the worker's metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.scripts import read_script

from sandfleet_worker.delivery.claim import Flag
from sandfleet_worker.delivery.outages import REDIS_ERRORS
from sandfleet_worker.delivery.replicas import NO_REPLICAS, Replicas

if TYPE_CHECKING:
    from collections.abc import Sequence

    import redis
    from sandfleet_config.codes import ErrorCode
    from sandfleet_config.outcome import Outcome

    from sandfleet_worker.delivery.claim import Claim
    from sandfleet_worker.delivery.identity import Identity
    from sandfleet_worker.metrics.counts import JobCounts

PACKAGE = "sandfleet_worker.delivery"
SCRIPTS = (
    *("register", "beat", "leave", "announce", "claim", "restore", "recover", "limit_attempts", "wait", "start"),
    "lost_runs",
    *("finish", "requeue", "drained", "reap", "other_host", "cancel", "drop_dead", "pin_image", "sweep_parked"),
)
"""The scripts that a worker calls.

Those that are not in this package's ``lua`` are the contract's.
"""
REPLICATED: dict[str, Callable[[Any], bool]] = {
    "register": bool,
    "claim": lambda answer: answer[0] == b"job",
    "start": lambda answer: answer[0] == b"started",
    "finish": lambda answer: answer == 1,
    "requeue": bool,
}
"""Scripts whose work a replica must have before the worker goes on, and how to tell that they wrote.

A claim that a fail-over undoes would be started again by another worker, and an end that it undoes
would leave a job that seems to run.
"""


class ScriptCalls:
    """Calls scripts in the name of one worker. `counts` are for its metrics, if it has any."""

    def __init__(
        self,
        client: redis.Redis,
        identity: Identity,
        result_ttl_seconds: int,
        replicas: Replicas = NO_REPLICAS,
        counts: JobCounts | None = None,
    ) -> None:
        self._identity, self._ttl, self._replicas, self._counts = identity, result_ttl_seconds, replicas, counts
        texts = {name: read_script(name, PACKAGE) for name in SCRIPTS}
        self._scripts: dict[str, Any] = {name: client.register_script(text) for name, text in texts.items()}
        self._redis: Any = client

    @property
    def are_replicas_there(self) -> bool:
        """Whether replicas have what this worker wrote last, as far as it waits for them."""
        return self._replicas.are_there

    def _call(self, name: str, *args: str | float | bytes) -> Any:
        counts, began = self._counts, time.perf_counter()
        if counts is None:
            return self._run(name, args)
        try:
            return self._run(name, args)
        except REDIS_ERRORS:
            counts.note_redis_error()
            raise
        finally:
            counts.note_call(name, time.perf_counter() - began)

    def _run(self, name: str, args: Sequence[str | float | bytes]) -> Any:
        if (is_written := REPLICATED.get(name)) and self._replicas.are_wanted:
            return self._scripts[name].call_replicated(self._replicas, is_written, [KEY_PREFIX, *args])
        return self._scripts[name](keys=[], args=[KEY_PREFIX, *args])

    def _note_end(self, queue: str, outcome: Outcome, *, is_ours: bool) -> bool:
        """Count the end of a job, if it was ours to end; return `is_ours`."""
        if is_ours and self._counts:
            self._counts.note_end(queue, outcome)
        return is_ours

    def _note_attempt(self, claim: Claim, code: ErrorCode, *, is_ours: bool, is_cut: bool = False) -> bool:
        """Count a try of a job that had started, unless a drain cut it; return `is_ours`."""
        has_started = claim.attempts and claim.flag is Flag.START and not claim.is_waiting
        if is_ours and self._counts and has_started and not is_cut:
            self._counts.note_attempt(claim.attempts[-1].host, code)
        return is_ours
