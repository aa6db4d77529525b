"""Ends a message that is no job where it is read.

It gets its outcome and events without a thread or a request. So each of many such messages delays
the good jobs behind it by a fraction of a millisecond only.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from sandfleet_config.outcome import Outcome, Timing
from sandfleet_config.queues import TASK_NAME

from sandfleet_worker.celery_worker.events import describe_end, describe_received
from sandfleet_worker.delivery.settlement import Finish

if TYPE_CHECKING:
    from sandfleet_config.errors import SandboxError

    from sandfleet_worker.delivery.claim import Claim
    from sandfleet_worker.delivery.intake import Intake
    from sandfleet_worker.delivery.read_message import JobMessage

log = logging.getLogger(__name__)


def refuse(intake: Intake, claim: Claim, job_message: JobMessage, refusal: SandboxError, events: Any) -> None:
    """End `claim` with `refusal`, and send its events; called in the claimer's thread."""
    queued = 0.0 if job_message.submitted is None else max(0.0, time.time() - job_message.submitted)
    outcome = Outcome.of(
        refusal.code,
        claim.job_id,
        refusal.message,
        timing=Timing.of(queued=queued),
        attempts=claim.end_attempts(refusal.code),
        host=claim.attempts[-1].host if claim.attempts else "",
    )
    if not intake.settle(claim, Finish(outcome, refusal.errors), in_claimer=True):
        return
    extra = {"action": "job_ended", "job_id": claim.job_id, "queue": claim.queue, "outcome": outcome}
    log.info("job %s ended: %s", claim.job_id, outcome.to_summary(), extra=extra)
    try:
        events.send("task-received", uuid=claim.job_id, name=TASK_NAME, **describe_received(job_message, claim))
        events.send("task-failed", uuid=claim.job_id, traceback="", **describe_end(str(refusal)))
    except Exception as error:  # noqa: BLE001  any kind of a broken connection
        log.debug("cannot send an event: %s", error)
