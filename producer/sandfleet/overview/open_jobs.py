"""The jobs that have not ended, as far as Redis lists them."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.channel.protocol import Channel

QUEUED_OF_EACH: Final = 200
READ_AT_ONCE: Final = 100


def find_open_jobs(channel: Channel, *, queue: str = "", host: str = "") -> Iterator[JobFacts]:
    """Yield the jobs that workers have, then the next of each queue, in the order of their claims.

    With a `host`, those alone that its workers have.
    """
    ids = _list_ids(channel, queue, host)
    seen: set[str] = set()
    while chunk := list(islice(ids, READ_AT_ONCE)):
        new = [job_id for job_id in dict.fromkeys(chunk) if job_id not in seen]
        seen.update(new)
        for job in channel.overview.facts(new):
            if job is not None and job.state != "ended" and queue in {"", job.queue}:
                yield job


def _list_ids(channel: Channel, queue: str, host: str) -> Iterator[str]:
    state = channel.fleet_state
    summary = state.read_summary()
    for name in sorted({worker.host for worker in summary.workers}):
        if host in {"", name}:
            yield from (job.job_id for job in state.running_jobs(name))
    if host:
        return
    for known in summary.queues:
        if queue in {"", known.name}:
            yield from state.queued_ids(known.name, 0, QUEUED_OF_EACH)
