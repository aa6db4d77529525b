"""A producer that reads JSON lines on stdin and answers on stdout.

Other releases' Pythons run it too.

Uses only what every release of `sandfleet` has. SANDFLEET_REDIS_URL names the Redis. It ends with
its stdin.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from sandfleet import Fleet

if TYPE_CHECKING:
    from sandfleet import Outcome

TIMEOUT_SECONDS = 60


def submit(fleet: Fleet, batch: str, specs: list[dict[str, Any]]) -> list[str]:
    """Queue jobs of one batch; return their ids."""
    return [job.id for job in fleet.submit_many(specs, batch=batch)]


def wait(fleet: Fleet, ids: list[str]) -> dict[str, Any]:
    """Wait for jobs, one by one."""
    return {job_id: tell(fleet.job(job_id).outcome(TIMEOUT_SECONDS)) for job_id in ids}


def read(fleet: Fleet, batch: str, ids: list[str]) -> dict[str, Any]:
    """Read the jobs, which have ended or soon will, in every way there is."""
    found = fleet.batch(batch)
    return {
        "as_completed": [tell(outcome) for outcome in fleet.as_completed(ids, timeout=TIMEOUT_SECONDS)],
        "batch.as_completed": [tell(outcome) for outcome in found.as_completed(timeout=TIMEOUT_SECONDS)],
        "batch.outcomes": [tell(outcome) for outcome in found.outcomes()],
        "outcome": [tell(fleet.job(job_id).outcome(TIMEOUT_SECONDS)) for job_id in ids],
        "counts": [found.counts.total, found.counts.done],
        "ids": found.job_ids,
    }


def cancel(fleet: Fleet, ids: list[str]) -> list[str]:
    """Cancel jobs; return what that did."""
    return [str(fleet.job(job_id).cancel()) for job_id in ids]


def dead(fleet: Fleet) -> dict[str, str]:
    """Return the codes of the dead letters by job."""
    return {letter.job_id: str(letter.code) for letter in fleet.dead.list()}


def requeue(fleet: Fleet, ids: list[str]) -> list[str]:
    """Queue dead letters again."""
    return [fleet.dead.requeue(job_id).id for job_id in ids]


def tell(outcome: Outcome) -> dict[str, Any]:
    """Return of an outcome what both releases must read alike."""
    return {
        "job_id": outcome.job_id,
        "code": str(outcome.code),
        "exit_code": outcome.exit_code,
        "signal": outcome.signal,
        "stdout": outcome.stdout.text,
        "attempts": [str(attempt.code) for attempt in outcome.attempts],
    }


STEPS = {step.__name__: step for step in (submit, wait, read, cancel, dead, requeue)}

if __name__ == "__main__":
    with Fleet() as fleet:
        for line in sys.stdin:
            name, arguments = json.loads(line)
            answer: Any = STEPS[name](fleet, **arguments)
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
