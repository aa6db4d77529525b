"""Remote control commands of ours in place of Celery's.

Celery's ``revoke`` records REVOKED at once, before anything is dead, and forgets when workers restart. Ours marks the job in
Redis, for whichever worker takes it, and kills its sandbox where it runs; the outcome ``CANCELLED`` is the job's own to record.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery.worker.control import Panel
from sandfleet_config.errors import ErrorCode
from sandfleet_config.outcome import Outcome
from sandfleet_config.queues import JOB_ID
from sandfleet_config.words import CANCELLED_QUEUED

from sandfleet_worker.tasks import run_task

if TYPE_CHECKING:
    from sandfleet_worker.delivery.intake import Intake

log = logging.getLogger(__name__)


def install_commands() -> None:
    """Put our commands into Celery's panel, which is one for the process."""
    commands: dict[str, Any] = {"revoke": revoke, "terminate": terminate, "revoke_by_stamped_headers": refuse_stamps}
    commands |= {"add_consumer": refuse_queues, "cancel_consumer": refuse_queues}
    Panel.data.update(commands)


def revoke(state: Any, task_id: object, **_: object) -> dict[str, str]:
    """Cancel jobs by id, queued or running; ``terminate`` and ``signal`` change nothing."""
    given = task_id if isinstance(task_id, list | tuple) else [task_id]
    job_ids = [job_id for job_id in given if isinstance(job_id, str) and JOB_ID.match(job_id)]
    host = run_task(state.app).host
    assert host is not None  # the consumer does not start without
    for job_id in job_ids:
        _cancel_queued(host.intake, job_id)
    running = [job_id for job_id in job_ids if state.consumer.pool.cancel(job_id)]
    for job_id in running:
        log.info("job %s is revoked", job_id, extra={"action": "job_revoked", "job_id": job_id})
    return {"ok": f"{len(job_ids)} jobs cancelled, {len(running)} of them on this worker"}


def _cancel_queued(intake: Intake, job_id: str) -> None:
    """Mark the job and, where it waits with a record of its own, end it; a stock producer's job ends when it is claimed."""
    if intake.ledger.cancel(job_id) == "queued":
        batch = intake.ledger.read_batch(job_id)
        intake.ledger.end_queued(Outcome.of(ErrorCode.CANCELLED, job_id, CANCELLED_QUEUED, batch=batch))


def refuse_queues(state: Any, **_: object) -> dict[str, str]:  # noqa: ARG001  the panel's signature
    """Say where the queues come from."""
    return {"error": "the queues of a worker are its settings SANDFLEET_QUEUE and SANDFLEET_QUEUES"}


def terminate(state: Any, signal: str, task_id: object, **_: object) -> dict[str, str]:  # noqa: ARG001
    """Cancel jobs by id, as ``revoke``."""
    return revoke(state, task_id)


def refuse_stamps(state: Any, **_: object) -> dict[str, str]:  # noqa: ARG001  the panel's signature
    """Say that jobs carry no stamps."""
    return {"error": "jobs carry no stamps: revoke them by id"}
