"""The fields of what is listed, for programs: ``-o json`` of the command line and the pages' API.

Never env, stdin or output. Times are ISO 8601 in UTC, None if they are not known.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandfleet.channel.fleet_state import (
        AuditEntry,
        Cordon,
        HostImage,
        Pause,
        PreparedStarts,
        QueueState,
        WorkerStatus,
    )
    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.overview.host_failures import HostFailures
    from sandfleet.overview.hosts import HostState
    from sandfleet.overview.summary import BatchSummary


def format_iso(at: float) -> str | None:
    """Return a unix time as ISO 8601 in UTC, None if it is not known or is none."""
    try:
        return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds") if at else None
    except (ValueError, OverflowError, OSError):  # a forged one
        return None


def job_fields(job: JobFacts) -> dict[str, Any]:
    """Return a job's facts for programs; never env, stdin or output."""
    return {
        "job_id": job.job_id,
        "state": job.state,
        "code": job.code.value if job.code and job.state == "ended" else None,
        "category": job.code.category.value if job.code and job.state == "ended" else None,
        "run": job.run,
        "batch": job.batch,
        "queue": job.queue,
        "labels": dict(job.labels),
        "line": job.line,
        "image": job.image,
        "host": job.host or None,
        "attempts": len(job.attempts),
        "submitted": format_iso(job.submitted),
        "started": format_iso(job.started),
        "ended": format_iso(job.ended) if job.state == "ended" else None,
        "seconds": None if (seconds := job.count_seconds()) is None else round(seconds, 3),
        "why": job.why or None,
    }


def batch_fields(batch: BatchSummary) -> dict[str, Any]:
    """Return a batch's counts for programs."""
    return {
        "batch": batch.name,
        "state": batch.state,
        "total": batch.total,
        "ended": batch.ended,
        "ok": batch.ok,
        "failed": batch.failed,
        "sealed": batch.is_sealed,
        "codes": dict(batch.codes),
        "used": format_iso(batch.used),
        "last_end": format_iso(batch.last_end),
    }


def host_fields(host: HostState) -> dict[str, Any]:
    """Return a host with its workers for programs."""
    newest = host.newest
    return {
        "host": host.name,
        "state": host.state,
        "cordon": cordon_fields(host.cordon),
        "slots": host.slots,
        "busy": host.busy,
        "running": host.running,
        "waiting": host.waiting,
        "warm": dict(host.warm),
        "prepared": prepared_fields(host.prepared),
        "queues": list(host.queues),
        "labels": dict(newest.labels) if newest else {},
        "load": newest.load if newest else None,
        "memory_free": newest.memory_free if newest else None,
        "memory_budget": newest.memory_budget if newest else None,
        "disk_free": newest.disk_free if newest else None,
        "unenforced": list(newest.unenforced) if newest else [],
        "failures": None if host.failures is None else _failures_fields(host.failures),
        "workers": [worker_fields(worker) for worker in host.workers],
    }


def _failures_fields(failures: HostFailures) -> dict[str, Any]:
    return asdict(failures) | {"is_odd": failures.is_odd}


def prepared_fields(prepared: PreparedStarts) -> dict[str, Any]:
    """Return for programs how jobs started that asked for a prepared spare."""
    return {
        "starts": prepared.starts,
        "misses": dict(prepared.misses),
        "quarantined": list(prepared.quarantined),
    }


def worker_fields(worker: WorkerStatus) -> dict[str, Any]:
    """Return a worker for programs."""
    return {
        "worker": worker.owner,
        "state": worker.state,
        "running": worker.running,
        "waiting": worker.waiting,
        "warm": dict(worker.warm),
        "prepared": prepared_fields(worker.prepared),
        "lease_seconds": round(worker.lease_seconds, 3),
        "version": worker.version,
        "runsc": worker.runsc,
        "platform": worker.platform,
        "started": format_iso(worker.started),
        "seen": format_iso(worker.seen),
    }


def cordon_fields(cordon: Cordon | None) -> dict[str, Any] | None:
    """Return the mark on a host for programs."""
    if cordon is None:
        return None
    return {
        "by": cordon.by,
        "at": format_iso(cordon.at),
        "reason": cordon.reason,
        "deadline": format_iso(cordon.deadline or 0.0),
        "drain": cordon.deadline is not None,
    }


def queue_fields(queue: QueueState, at: float) -> dict[str, Any]:
    """Return a queue at a time for programs."""
    return {
        "queue": queue.name,
        "waiting": queue.total,
        "by_priority": {str(step): count for step, count in queue.waiting.items()},
        "oldest": format_iso(queue.oldest),
        "oldest_seconds": round(max(0.0, at - queue.oldest), 3) if queue.oldest else None,
        "workers": queue.workers,
        "served": queue.is_served,
        "pause": pause_fields(queue.pause),
    }


def pause_fields(pause: Pause | None) -> dict[str, Any] | None:
    """Return the mark on a queue for programs."""
    return None if pause is None else {"by": pause.by, "at": format_iso(pause.at), "note": pause.note}


def image_fields(image: HostImage) -> dict[str, Any]:
    """Return an image of a host for programs."""
    return {"image": image.name, "digest": image.digest, "bytes": image.size, "used": format_iso(image.used)}


def audit_fields(entry: AuditEntry) -> dict[str, Any]:
    """Return an entry of the audit for programs."""
    return {
        "id": entry.entry_id,
        "at": format_iso(entry.at),
        "by": entry.by,
        "role": entry.role,
        "via": entry.via,
        "action": entry.action,
        "target": entry.target,
        "count": entry.count,
        "reason": entry.reason,
        "result": entry.result,
    }
