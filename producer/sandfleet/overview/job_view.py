"""`JobView`: a job, where it is, and why it waits."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from sandfleet_config.advice import find_advice

from sandfleet.channel.job_facts import JobFacts

if TYPE_CHECKING:
    from sandfleet_config.outcome import Outcome

    from sandfleet.channel.overview import Queued
    from sandfleet.channel.protocol import Channel


BUSY: Final = "all slots of the hosts that take it are busy"


@dataclass(frozen=True)
class JobView:
    """A job's facts, its outcome if its newest run has ended, and else its place in the queue.

    `blocked` says why no worker claims any job now, as far as Redis's memory is the reason.
    """

    facts: JobFacts
    outcome: Outcome | None = None
    queued: Queued | None = None
    blocked: str = ""

    @property
    def advice(self) -> str:
        """The next thing to do about an ended job, by its code; empty for any other."""
        return find_advice(self.outcome.code) if self.outcome is not None else ""

    def explain_wait(self) -> str:
        """Say why a job waits that has not started; empty for any other."""
        if self.facts.state == "waiting":
            return "a worker has it, and gets its image or its files, or waits for a place to boot"
        if self.facts.state != "queued":
            return ""
        if self.blocked:
            return self.blocked
        place = self.queued
        if place is not None and (marked := _explain_marks(place)):
            return marked
        if self.facts.why:
            return self.facts.why
        if place is None:
            return ""
        if not place.workers:
            return "no worker lives: start one (sandfleet-worker start)"
        if not place.is_served:
            return f"no live worker takes jobs of the queue {self.facts.queue}: see SANDFLEET_QUEUES of the hosts"
        if self.facts.attempts:
            return "it is tried again in a moment, on another host if there is one"
        return BUSY


def _explain_marks(place: Queued) -> str:
    """Say which mark of an operator keeps the job from its start; empty for none."""
    if place.pause is not None:
        return f"its queue is paused by {place.pause.by or 'somebody'}: {place.pause.note or 'no reason given'}"
    if place.cordons:
        first = place.cordons[0]
        others = f" and {len(place.cordons) - 1} more" if len(place.cordons) > 1 else ""
        why = f"by {first.by or 'somebody'}: {first.reason or 'no reason given'}"
        return f"all hosts that take it are cordoned: {first.host}{others}, {why}"
    return ""


def read_view(channel: Channel, job_id: str, *, counts: bool = True) -> JobView | None:
    """Read what Redis has about a job; None if it has no record and no outcome.

    `counts` also counts the jobs before a queued one, for which its queue is searched.
    """
    (facts,) = channel.overview.facts([job_id])
    (outcome,) = channel.outcomes([job_id])
    if facts is None:
        return None if outcome is None else JobView(_facts_of(outcome), outcome)
    if facts.state == "ended" or outcome is not None:
        return JobView(facts, outcome)
    if facts.state != "queued":
        return JobView(facts)
    (record,) = channel.records([job_id])  # it knows the limits of the job's batch
    known = facts if record is None else replace(facts, why=record.why, why_at=record.why_at)
    return JobView(known, None, channel.overview.find_queued(facts, counts=counts), channel.explain_no_claims())


def _facts_of(outcome: Outcome) -> JobFacts:
    """Return what an outcome says of a job whose record has expired."""
    ended = outcome.attempts[-1].ended if outcome.attempts else None
    return JobFacts(
        job_id=outcome.job_id,
        state="ended",
        code=outcome.code,
        run=outcome.run,
        batch=outcome.batch,
        labels=outcome.labels,
        attempts=outcome.attempts,
        ended=ended.timestamp() if ended is not None else time.time(),
    )
