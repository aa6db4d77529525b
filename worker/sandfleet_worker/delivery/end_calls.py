"""Calls to Redis that record how a job ended, whether or not a worker had it."""

from __future__ import annotations

import contextlib
import logging
import random
import time
from typing import TYPE_CHECKING

import redis
from sandfleet_config.messages import OUTPUT_DROPPED
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.run_summary import NO_FACTS, RunFacts, cut_summary, encode_summary
from sandfleet_config.scripts import DEAD_TTL_SECONDS, MAX_DEAD_BYTES, MAX_DEAD_LETTERS, stored_result

from sandfleet_worker.delivery.outages import REDIS_ERRORS
from sandfleet_worker.delivery.script_calls import ScriptCalls

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandfleet_config.outcome import Outcome

    from sandfleet_worker.delivery.claim import Claim

log = logging.getLogger(__name__)

DROPPED_FROM_BYTES = 4096
"""Outputs that together are smaller are recorded even beyond maxmemory.

The outcome itself takes a quarter of this size.
"""


DROP_PAUSES_SECONDS = (0.1, 0.3, 0.6)
"""Pauses between the tries to record an output; a random part of each is left out.

Redis counts what its clients are sending, so large ends that come together need for a moment several
times what they will take.
"""


class EndCalls(ScriptCalls):
    """Ends jobs. Each call may be repeated when its answer got lost."""

    def finish(
        self,
        claim: Claim,
        outcome: Outcome,
        faults: Sequence[Mapping[str, str]] = (),
        reason: str = "",
        facts: RunFacts = NO_FACTS,
    ) -> bool:
        """Record how the job ended, in the dead letters too if there is a `reason`.

        Where Redis stays at its maxmemory, the outcome is recorded without its output, and says so.
        """
        message = claim.message if reason else b""
        if claim.run != outcome.run:
            outcome = outcome.model_copy(update={"run": claim.run})
        known = facts._replace(queue=claim.queue)
        before, after = (self._identity.owner, claim.claim_id), (reason, message)
        if outcome.output_bytes >= DROPPED_FROM_BYTES:
            args = self._list_arguments(before, outcome, known, after, faults, droppable=True)
            for pause in (*DROP_PAUSES_SECONDS, 0.0):
                answer = self._record(args, reason, droppable=True)
                if answer >= 0:
                    return bool(answer)
                time.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - so that ends that came together part
            log.warning(
                "the output of job %s is dropped: Redis has no memory for %d bytes",
                claim.job_id,
                outcome.output_bytes,
                extra={"action": "output_dropped", "job_id": claim.job_id},
            )
            outcome = outcome.without_output(OUTPUT_DROPPED)
        return bool(self._record(self._list_arguments(before, outcome, known, after, faults), reason))

    def end_queued(self, outcome: Outcome, facts: RunFacts) -> bool:
        """Record the end of a queued job; return False if it is not queued any more."""
        args = self._list_arguments(("", ""), outcome, facts)
        return self._note_end(facts.queue, outcome, is_ours=bool(self._record(args)))

    def end_all_queued(self, endings: Sequence[tuple[Outcome, RunFacts]]) -> list[bool]:
        """Do what `end_queued` does for many jobs, by one round trip."""
        with self._redis.pipeline(transaction=False) as pipe:
            for outcome, facts in endings:
                args = self._list_arguments(("", ""), outcome, facts)
                self._scripts["finish"](keys=[], args=[KEY_PREFIX, *args], client=pipe)
            answers: list[object] = pipe.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, redis.RedisError) and not isinstance(answer, redis.ResponseError):
                raise answer
        return [
            self._note_end(facts.queue, outcome, is_ours=answer == 1)
            for (outcome, facts), answer in zip(endings, answers, strict=True)
        ]

    def _list_arguments(
        self,
        holder: tuple[str, str],
        outcome: Outcome,
        facts: RunFacts,
        dead: tuple[str, bytes] = ("", b""),
        faults: Sequence[Mapping[str, str]] = (),
        *,
        droppable: bool = False,
    ) -> tuple[str | float | bytes, ...]:
        """Return the arguments of the script.

        `holder` are owner and claim, `dead` reason and message for the dead letters.
        """
        text, (reason, message) = stored_result(outcome, faults), dead
        first = (*holder, outcome.job_id, outcome.code.value, text, self._ttl, reason, DEAD_TTL_SECONDS, message)
        summary = cut_summary(encode_summary(outcome, facts), outcome, text)
        return (*first, "droppable" if droppable else "", summary)

    def _record(self, args: tuple[str | float | bytes, ...], reason: str = "", *, droppable: bool = False) -> int:
        """Call the script with what `_list_arguments` has returned."""
        try:
            answer = int(self._call("finish", *args))
        except redis.exceptions.OutOfMemoryError:
            if not droppable:
                raise
            answer = -1
        if reason and answer >= 0:
            # The end is recorded, whatever becomes of this: a sweep does the same within a minute.
            with contextlib.suppress(*REDIS_ERRORS):
                self.drop_stale_dead()
        return answer

    def drop_stale_dead(self) -> None:
        """Drop dead letters whose time is over, and the oldest of too many."""
        self._call("drop_dead", DEAD_TTL_SECONDS, MAX_DEAD_LETTERS, MAX_DEAD_BYTES)
