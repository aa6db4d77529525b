"""Errors between a producer and the fleet.

How a job ended is an error of `sandfleet_config.errors`.

FleetError
├── FleetUnavailable   (also a ConnectionError)
├── ResultTimeout      (also a TimeoutError)
├── QueueFull
├── JobUnknown         (also a LookupError)
│   └── BatchUnknown
├── JobExists          (also a ValueError)
├── IdempotencyConflict (also a ValueError)
├── FileMissing        (also a LookupError)
├── ArtifactsNotSaved
├── ResultsNotWritten
├── OutputNotLive
├── ActionRefused      (also a ValueError)
├── HistoryUnavailable (also a ConnectionError)
├── QueryTooSlow       (also a TimeoutError)
└── PackageMissing     (also an ImportError)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

MAX_NAMED_JOBS = 3


class FleetError(Exception):
    """An error between this process and the fleet; it says nothing about how a job ends.

    `job_ids` are the jobs concerned.
    """

    def __init__(self, message: str, job_ids: Iterable[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.job_ids = tuple(job_ids)

    def __str__(self) -> str:
        """Return the message alone."""
        return self.message


class FleetUnavailable(FleetError, ConnectionError):
    """Redis or the store cannot be reached or refuses; the message says which, and what to set.

    `job_ids` are jobs that may have been queued nevertheless.
    """


class ResultTimeout(FleetError, TimeoutError):
    """The timeout of a wait passed. The jobs in `job_ids` go on: wait again, or cancel them."""


class JobUnknown(FleetError, LookupError):
    """The fleet knows no job of that id: it was never submitted, or its outcome has expired."""


class BatchUnknown(JobUnknown):
    """The fleet knows no batch of that name: it was never submitted, or all of it has expired."""


class QueueFull(FleetError):
    """The queue has ``max_queued`` jobs, or Redis is nearly full.

    Submit again when workers have taken some. `job_ids` are the jobs of the same call that are
    queued.
    """


class IdempotencyConflict(FleetError, ValueError):
    """`key` belongs to the job `job_id`, which has another spec: give a new job a new key.

    `job_ids` are the jobs of the same call that are queued.
    """

    def __init__(self, message: str, key: str, job_id: str, job_ids: Iterable[str] = ()) -> None:
        super().__init__(message, job_ids)
        self.key = key
        self.job_id = job_id


class JobExists(FleetError, ValueError):
    """Another job has that id: choose a new one, or reattach with ``fleet.job(id)``."""


class FileMissing(FleetError, LookupError):
    """There is no such artifact, or the store lacks its bytes: they expired, or were altered."""


class ArtifactsNotSaved(FleetError):
    """Some artifacts were not saved; `refused` has the reason by path.

    The name is not safe, another file is there already, or the store does not have the bytes any
    more. All others were saved, to the paths `saved`.
    """

    def __init__(self, refused: Mapping[str, str], saved: Iterable[Path] = (), job_ids: Iterable[str] = ()) -> None:
        named = [f"{safe_name(path)}: {reason}" for path, reason in list(refused.items())[:MAX_NAMED_JOBS]]
        more = len(refused) - len(named)
        text = "; ".join(named) + (f"; and {more} more" if more else "")
        super().__init__(f"{len(refused)} of the artifacts were not saved: {text}", job_ids)
        self.refused = dict(refused)
        self.saved = list(saved)


class ResultsNotWritten(FleetError):
    """A table of results was not begun.

    Its format is unknown, another process writes it, or it is another table.
    """


class OutputNotLive(FleetError):
    """The output of the job cannot be read while it runs: its spec does not say ``output.live``.

    Its outcome has the output when it has ended.
    """


class ActionRefused(FleetError, ValueError):
    """An act of an operator was refused, and nothing was done; the message says what is missing."""


class HistoryUnavailable(FleetError, ConnectionError):
    """No history of ended runs is in reach; the message says what to set or to start."""


class QueryTooSlow(FleetError, TimeoutError):
    """A question to the history took more than 2 s: narrow the time, or give a batch."""


class PackageMissing(FleetError, ImportError):
    """A package of an extra is not installed; the message has the command that installs it."""


def safe_name(text: str) -> str:
    """Return the name of a file for a message, with characters that control a terminal escaped."""
    return text if text.isprintable() else ascii(text)[1:-1]


def name_jobs(job_ids: Iterable[str]) -> str:
    """Return the first of `job_ids` for a message, and how many more there are."""
    ids = list(job_ids)
    shown = ", ".join(ids[:MAX_NAMED_JOBS])
    return shown if len(ids) <= MAX_NAMED_JOBS else f"{shown} and {len(ids) - MAX_NAMED_JOBS} more"
