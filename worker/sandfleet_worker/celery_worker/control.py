"""Remote control commands of ours in place of Celery's.

Celery's ``revoke`` records REVOKED at once, before anything is dead, and forgets when workers
restart. Ours marks the job in Redis, for whichever worker takes it, and kills its sandbox where it
runs; the outcome ``CANCELLED`` is the job's own to record.

Commands that mean nothing here answer with an error that names what there is instead: Celery's own
would raise, or say that they had done something.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from celery.platforms import EX_OK
from celery.worker import state as worker_state
from celery.worker.control import Panel
from sandfleet_config.codes import ErrorCode
from sandfleet_config.messages import CANCELLED_QUEUED
from sandfleet_config.queues import JOB_ID
from sandfleet_config.units import format_count

from sandfleet_worker.tasks import run_task

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_worker.delivery.ledger import Ledger

log = logging.getLogger(__name__)

_SIZE = "how many jobs a host runs at once is its setting SANDFLEET_CONCURRENCY"
_QUEUES = "the queues of a worker are its settings SANDFLEET_QUEUE and SANDFLEET_QUEUES"
REFUSED = {
    "add_consumer": _QUEUES,
    "cancel_consumer": _QUEUES,
    "pool_grow": _SIZE,
    "pool_shrink": _SIZE,
    "autoscale": _SIZE,
    "pool_restart": "there is no pool of processes: restart the worker, whose size is its setting SANDFLEET_CONCURRENCY",
    "time_limit": "each job says its own limit, `timeout`; the host's limits are its settings SANDFLEET_POLICY__*",
    "rate_limit": f"there is no limit of rates: {_SIZE}",
    "revoke_by_stamped_headers": "jobs carry no stamps: revoke them by id",
}


def install_commands() -> None:
    """Put our commands into Celery's panel, which is one for the process."""
    commands: dict[str, Any] = {"revoke": revoke, "terminate": terminate, "shutdown": drain}
    Panel.data.update(commands | {name: _new_refusal(text) for name, text in REFUSED.items()})


def _new_refusal(text: str) -> Callable[..., dict[str, str]]:
    def refuse(state: Any, **_: object) -> dict[str, str]:  # noqa: ARG001  the panel's signature
        return {"error": text}

    return refuse


def drain(state: Any, **_: object) -> dict[str, str]:
    """Do what SIGTERM does, and say so; Celery's own raises out of its loop and answers nothing."""
    host = run_task(state.app).host
    assert host is not None  # the consumer does not start without
    flags: Any = worker_state
    flags.should_stop = EX_OK
    running, seconds = len(host.intake.held_claims.running_job_ids()), host.settings.drain_seconds
    log.info("told to drain: %d jobs run", running, extra={"action": "drain"})
    text = f"{host.worker} takes no more jobs. It ends when its {running} running jobs have ended"
    return {"ok": f"{text}; those that take longer than {seconds:g} s go back to their queue"}


def revoke(state: Any, task_id: object, **_: object) -> dict[str, str]:
    """Cancel jobs by id, queued or running; ``terminate`` and ``signal`` change nothing."""
    given = task_id if isinstance(task_id, list | tuple) else [task_id]
    job_ids = [job_id for job_id in given if isinstance(job_id, str) and JOB_ID.match(job_id)]
    host = run_task(state.app).host
    assert host is not None  # the consumer does not start without
    for job_id in job_ids:
        cancel_waiting(host.intake.ledger, job_id)
    running = [job_id for job_id in job_ids if state.consumer.pool.cancel(job_id)]
    for job_id in running:
        log.info("job %s is revoked", job_id, extra={"action": "job_revoked", "job_id": job_id})
    return {"ok": f"{format_count(len(job_ids), 'job')} cancelled, {len(running)} of them on this worker"}


def cancel_waiting(ledger: Ledger, job_id: str) -> str:
    """Mark the job and, where it waits with a record of its own, end it.

    A stock producer's job ends when it is claimed. Returns where it stood: queued, running, ended
    or unknown.
    """
    state = ledger.cancel(job_id)
    if state == "queued":
        ledger.end_queued_job(ErrorCode.CANCELLED, job_id, CANCELLED_QUEUED)
    return state


def terminate(state: Any, signal: str, task_id: object, **_: object) -> dict[str, str]:  # noqa: ARG001
    """Cancel jobs by id, as ``revoke``."""
    return revoke(state, task_id)
