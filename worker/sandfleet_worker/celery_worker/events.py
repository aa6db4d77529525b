"""The fields of the events that workers send about jobs.

Everybody who watches reads them: no environment, stdin or output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sandfleet_worker.delivery.claim import Claim
    from sandfleet_worker.delivery.read_message import JobMessage

END_FIELDS = ("result", "exception", "runtime")
"""The fields in which an event says how an attempt ended."""
MAX_LABEL_CHARS = 1024
"""Labels of a job in an event, all together.

Flower keeps each event's text several times over, for 20,000 jobs.
"""

MAX_END_CHARS = 1024
"""Of the text that says how an attempt ended; `sandfleet show` has the whole."""


def describe_received(job_message: JobMessage, claim: Claim) -> dict[str, Any]:
    """Return the fields of ``task-received``.

    `kwargs` is a dict literal, since Flower's search takes such apart:
    ``kwargs:batch=nightly kwargs:label.suite=s7``. Another attempt clears how the last one ended.
    """
    batch = None if job_message.request is None else job_message.request.batch
    return {
        "args": job_message.line,
        "kwargs": repr(_find_searched(job_message, batch, claim.queue)),
        "batch": batch,
        "queue": claim.queue,
        "attempt": len(claim.attempts) or None,
        "retries": max(0, len(claim.attempts) - 1),
        "root_id": job_message.job_id,
        **(dict.fromkeys(END_FIELDS) if len(claim.attempts) > 1 else {}),
    }


def describe_end(text: str, runtime_seconds: float | None = None) -> dict[str, Any]:
    """Return the fields of an event for an end that is no ``OK``; `text` starts with the code."""
    text = text if len(text) <= MAX_END_CHARS else f"{text[:MAX_END_CHARS]}..."
    fields: dict[str, Any] = {"result": text, "exception": text}
    return fields if runtime_seconds is None else fields | {"runtime": runtime_seconds}


def _find_searched(job_message: JobMessage, batch: str | None, queue: str) -> dict[str, str]:
    found = {"queue": queue} if batch is None else {"batch": batch, "queue": queue}
    labels = {} if job_message.request is None else job_message.request.spec.labels
    chars = left_out = 0
    for key, value in labels.items():
        chars += len(key) + len(value)
        if chars > MAX_LABEL_CHARS:
            left_out += 1
        else:
            found[f"label.{key}"] = value
    return found | ({"labels left out": str(left_out)} if left_out else {})
