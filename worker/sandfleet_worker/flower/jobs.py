"""A job as Flower keeps it: Celery's task with the fields that sandfleet's events carry in addition."""

from __future__ import annotations

from typing import Any

from celery import states
from celery.events.state import Task

COLUMNS = {
    "batch": "Batch",
    "queue": "Queue",
    "attempt": "Attempt",
    "args": "Job",
    "received": "Received",
    "uuid": "ID",
}
"""What Flower's Tasks page shall call these fields."""
_STOCK: Any = Task
_OWN_FIELDS = ("batch", "queue", "attempt")


class JobTask(Task):
    """Celery's task, and the job's batch, queue and attempt."""

    batch: str | None = None
    queue: str | None = None
    attempt: int | None = None

    # In front: the page of a job shows them in this order.
    _fields = (*_OWN_FIELDS, *_STOCK._fields)
    merge_rules = {states.RECEIVED: (*_STOCK.merge_rules[states.RECEIVED], *_OWN_FIELDS)}  # noqa: RUF012  Celery reads it
