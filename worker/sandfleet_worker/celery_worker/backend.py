"""The worker's result backend: an outcome is stored with the end of its claim in one step, or not at all."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery.backends.redis import RedisBackend
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import SandboxError
from sandfleet_config.outcome import Outcome

from sandfleet_worker.tasks import Fenced, JobEnd, run_task

if TYPE_CHECKING:
    from sandfleet_worker.delivery.claim import Claim

log = logging.getLogger(__name__)


class ClaimsBackend(RedisBackend):
    """Celery's Redis backend whose `store_result` asks `finish.lua`; everything else stays Celery's."""

    app: Any

    def store_result(
        self,
        task_id: str,
        result: Any,
        state: str,  # noqa: ARG002  it follows from the outcome
        traceback: Any = None,  # noqa: ARG002  never told: it shows code of ours, and an outcome says why
        request: Any = None,
        **_: Any,
    ) -> Any:
        """Record the outcome that `result` is or carries, whatever an outage delays it.

        Raises:
            Fenced: the claim is not ours any more.
        """
        host = run_task(self.app).host
        assert host is not None  # the consumer does not start without
        claim = host.intake.held.find(request.properties["delivery_tag"])
        if claim is None:
            raise Fenced(f"job {task_id} is not held here")
        outcome = _read_outcome(claim, result)
        faults = result.errors if isinstance(result, SandboxError) else ()
        if not host.intake.settle(claim, lambda: host.intake.ledger.finish(claim, outcome, faults)):
            raise Fenced(f"job {task_id} was taken over")
        return result


def _read_outcome(claim: Claim, result: Any) -> Outcome:
    if isinstance(result, JobEnd):
        return result.outcome
    if isinstance(result, SandboxError) and result.outcome is not None:
        return result.outcome
    extra = {"action": "internal", "job_id": claim.job_id}
    fault = result if isinstance(result, BaseException) else None
    log.error("job %s has no outcome but %s", claim.job_id, type(result).__name__, exc_info=fault, extra=extra)
    text, code = "a fault in sandfleet itself: see the worker's log", ErrorCode.INTERNAL
    return Outcome.of(code, claim.job_id, text, attempts=claim.end_attempts(code))
