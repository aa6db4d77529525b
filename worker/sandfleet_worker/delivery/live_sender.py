"""Sends the output of running jobs to Redis, for jobs that asked for it (`output.live`)."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any, Final

import redis
from sandfleet_config.live import ENTRY_BYTES, LIVE_TTL_SECONDS, MAX_ALL_LIVE_BYTES, MAX_LIVE_BYTES
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.scripts import read_script

from sandfleet_worker.delivery.live_output import LiveOutput
from sandfleet_worker.delivery.outages import can_pass
from sandfleet_worker.delivery.script_calls import PACKAGE
from sandfleet_worker.system.supervised_thread import Backoff, SupervisedThread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandfleet_worker.delivery.claim import Claim

log = logging.getLogger(__name__)

GATHER_SECONDS: Final = 0.01
"""Least time from call to call: one call sends the output of all jobs that comes meanwhile."""
IDLE_SECONDS: Final = 10.0
LOG_SECONDS: Final = 60.0
"""Least time between two log lines about output that Redis has refused."""


class LiveSender:
    """One thread of the worker, begun with the first job that asks; by one pipeline for all jobs.

    What Redis does not take is skipped: neither the job nor the thread that reads its output waits
    for it. `owner` is the worker's name in Redis. `on_failure` ends the worker.
    """

    def __init__(self, client: redis.Redis, owner: str, on_failure: Callable[[str], None]) -> None:
        self._redis: Any = client
        self._owner = owner
        self._changed = threading.Condition()
        self._outputs: set[LiveOutput] = set()
        self._script, self._sha = read_script("live", PACKAGE), ""
        self._logged = float("-inf")
        backoff = Backoff("live_output", subject="the output of running jobs")
        self._thread = SupervisedThread("live", self._step, on_failure, can_pass=can_pass, backoff=backoff)

    def open(self, claim: Callable[[], Claim]) -> LiveOutput:
        """Return a place for the output of one job; end it with the job.

        `claim` returns the job's claim as it is when its program writes.
        """
        output = LiveOutput(claim, self._wake)
        with self._changed:
            if not self._thread.is_started:
                self._thread.start()
            self._outputs.add(output)
        return output

    def stop(self) -> None:
        """Send nothing more, and close the connection."""
        self._thread.tell_to_stop()
        self._wake()
        self._thread.stop()
        self._redis.close()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify()

    def _step(self) -> float | None:
        with self._changed:
            now = time.monotonic()
            due = [output for output in self._outputs if output.due <= now]
            if not due:
                soonest = min((output.due for output in self._outputs), default=now + IDLE_SECONDS)
                if not self._thread.stopping.is_set():
                    self._changed.wait(min(soonest - now, IDLE_SECONDS))
                return None
        over = [output for output in due if output.is_over]  # asked before their last chunks are taken
        try:
            self._send([output for output in due if not output.is_fenced])
        finally:
            with self._changed:
                self._outputs.difference_update(over)
            for output in over:
                output.note_over()
        return GATHER_SECONDS

    def _send(self, outputs: Sequence[LiveOutput]) -> None:
        """Send by one round trip; what is refused is skipped.

        Raises:
            redis.RedisError: Redis is not there. All of it is skipped.
        """
        if not outputs:
            return
        calls = [self._new_call(output) for output in outputs]
        self._sha = self._sha or self._redis.script_load(self._script)
        answers = self._call_all(calls)
        refused = [answer for answer in answers if isinstance(answer, redis.RedisError)]
        if any(isinstance(answer, redis.exceptions.NoScriptError) for answer in refused):
            self._sha = ""  # Redis was started again; the next call loads it
        for output, answer in zip(outputs, answers, strict=True):
            if answer == 0:
                output.fence()
        if refused and time.monotonic() - self._logged >= LOG_SECONDS:
            self._logged = time.monotonic()
            text = "live output of %d jobs is skipped, Redis does not take it: %s"
            log.warning(text, len(refused), refused[0], extra={"action": "live_output_skipped"})

    def _new_call(self, output: LiveOutput) -> tuple[str | int | bytes, ...]:
        """Return the arguments of `live.lua` for what is to be sent of `output`."""
        claim = output.claim
        facts = (self._owner, claim.claim_id, claim.job_id, len(claim.attempts), claim.run)
        bounds = (LIVE_TTL_SECONDS, MAX_LIVE_BYTES, MAX_ALL_LIVE_BYTES, ENTRY_BYTES)
        return (KEY_PREFIX, *facts, *bounds, *(part for chunk in output.take() for part in chunk))

    def _call_all(self, calls: Sequence[tuple[str | int | bytes, ...]]) -> list[object]:
        with self._redis.pipeline(transaction=False) as pipe:
            for call in calls:
                pipe.evalsha(self._sha, 0, *call)
            answers: list[object] = pipe.execute(raise_on_error=False)
        return answers
