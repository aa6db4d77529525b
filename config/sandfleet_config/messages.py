"""Messages of endings that both a producer and a worker record."""

from __future__ import annotations

from typing import Final

CANCELLED: Final = "the job was cancelled"
CANCELLED_QUEUED: Final = "the job was cancelled before it started"
EXPIRED: Final = "no worker took the job within its queue_ttl: check that workers run, and that a host fits the job"
EXPIRED_WAITING: Final = "the job waited in the queue for longer than its queue_ttl: {why}"
OUTPUT_DROPPED: Final = "its output was dropped: Redis was at its maxmemory when the job ended"
CANCEL_MARK: Final = "cancel"
"""The value of a cancel mark that gives no reason."""


def describe_cancel(mark: str) -> str:
    """Return the message of a job that was cancelled while it ran.

    `mark` is the value of its cancel mark.
    """
    return CANCELLED if mark in {"", CANCEL_MARK} else mark


def describe_expiry(why: str = "") -> str:
    """Return the message of a job whose time in the queue is over.

    `why` is why it waited, as its record says.
    """
    return EXPIRED_WAITING.format(why=why) if why else EXPIRED
