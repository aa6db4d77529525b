"""A job as Flower keeps it: Celery's task, with the fields that sandfleet's events add."""

from __future__ import annotations

import ast
from typing import Any

from celery import states
from celery.events.state import Task

from sandfleet_worker.celery_worker.events import END_FIELDS

COLUMNS = {
    "batch": "Batch",
    "queue": "Queue",
    "attempt": "Attempt",
    "args": "Job",
    "received": "Received",
    "uuid": "ID",
}
"""Column titles of Flower's Tasks page."""
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

    def event(self, type_: str, timestamp: Any = None, local_received: Any = None, fields: Any = None) -> None:  # type: ignore[override]
        """Take an event in.

        `kwargs` is parsed here, once, and not by Flower's search with each later event. A new attempt
        clears how the last one ended, also where no attempt was counted and the event does not say so.
        """
        if type_ == "received":
            fields |= dict.fromkeys(END_FIELDS)
            if isinstance(fields.get("kwargs"), str):
                fields["kwargs"] = _parse_searched(fields["kwargs"])
        super().event(type_, timestamp, local_received, fields)


def _parse_searched(text: str) -> dict[str, str] | str:
    """Parse an event's `kwargs` as a dict literal; anything else is returned unchanged."""
    try:
        found = ast.literal_eval(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return text
    return found if isinstance(found, dict) else text
