"""One submit of many jobs: from specs, however they come, to the handles of what is queued, portion by portion."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, assert_never

from sandfleet.channel.records import Answer, AnswerKind
from sandfleet.errors import IdempotencyConflict, JobExists
from sandfleet.job import Job
from sandfleet.submit.check import PORTION_JOBS, PORTION_SECONDS, check_all, split_specs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    from sandfleet.channel.protocol import Channel
    from sandfleet.channel.records import Ticket
    from sandfleet.submit.encode import Desk, Draft, Spec

GATHERED_JOBS = 4 * PORTION_JOBS
"""Of an asynchronous source so many specs are handed to another thread at once, so that portions overlap there too."""


class Submission:
    """Queues the jobs of one desk in one queue."""

    def __init__(self, channel: Channel, desk: Desk, queue: str) -> None:
        self._channel = channel
        self._desk = desk
        self._queue = queue

    def submit_one(self, spec: Spec, job_id: str | None) -> Job:
        """Queue one job, under `job_id` if given."""
        tickets = self._desk.issue([self._desk.new_draft(spec)], job_id)
        return self._hand_out(tickets, self._channel.publish(tickets, self._queue, 1))[0]

    def submit(self, specs: Iterable[Spec]) -> Iterator[list[Job]]:
        """Yield the handles of each portion; a list or tuple is checked as a whole, and must find room as a whole, before."""
        if isinstance(specs, list | tuple):
            return self._seal_after(self._submit(specs, wanted=len(specs), kept=check_all(self._desk, specs)))
        return self._seal_after(self._submit(specs))

    def _seal_after(self, portions: Iterator[list[Job]]) -> Iterator[list[Job]]:
        """Say that the batch is complete when all portions are queued."""
        yield from portions
        self._seal()

    def _seal(self) -> None:
        if self._desk.batch:
            self._channel.seal(self._desk.batch)

    async def submit_async(self, specs: Iterable[Spec] | AsyncIterable[Spec]) -> AsyncIterator[list[Job]]:
        """Do what `submit` does in other threads, one after the other; an asynchronous source is read here."""
        if not isinstance(specs, AsyncIterable):
            async for jobs in _drive(await asyncio.to_thread(self.submit, specs)):
                yield jobs
            return
        first = 0
        async for some in _gather(specs):
            async for jobs in _drive(self._submit(some, first)):
                yield jobs
            first += len(some)
        await asyncio.to_thread(self._seal)

    def _submit(
        self, specs: Iterable[Spec], first: int = 0, wanted: int = 0, kept: Sequence[Draft] = ()
    ) -> Iterator[list[Job]]:
        portions = (self._desk.issue(drafts) for drafts in split_specs(self._desk, specs, first, kept))
        for tickets, answers in self._channel.publish_portions(portions, self._queue, wanted):
            yield self._hand_out(tickets, answers)

    def _hand_out(self, tickets: Sequence[Ticket], answers: Sequence[Answer]) -> list[Job]:
        return [self._new_job(*pair, answers) for pair in zip(tickets, answers, strict=True)]

    def _new_job(self, ticket: Ticket, answer: Answer, answers: Sequence[Answer]) -> Job:
        match answer.kind:
            case AnswerKind.NEW | AnswerKind.SAME:
                return Job(answer.job_id, self._channel, ticket.batch)
            case AnswerKind.ELSEWHERE:
                return Job(answer.job_id, self._channel)
            case AnswerKind.EXISTS:
                raise JobExists(f"there is a job {ticket.job_id} already", [ticket.job_id])
            case AnswerKind.CONFLICT:
                queued = [
                    found.job_id for found in answers if found.kind not in (AnswerKind.EXISTS, AnswerKind.CONFLICT)
                ]
                raise IdempotencyConflict(
                    f"idempotency key {ticket.key!r} stands for job {answer.job_id}, which was submitted with another spec:"
                    " give the new job a key of its own, or submit it as it was",
                    ticket.key,
                    answer.job_id,
                    queued,
                )
            case _:
                assert_never(answer.kind)


async def _drive(portions: Iterator[list[Job]]) -> AsyncIterator[list[Job]]:
    while (jobs := await asyncio.to_thread(next, portions, None)) is not None:
        yield jobs


async def _gather(specs: AsyncIterable[Spec]) -> AsyncIterator[list[Spec]]:
    """Yield what comes, bounded in number and in the time it took."""
    some: list[Spec] = []
    started = time.monotonic()
    async for spec in specs:
        some.append(spec)
        if len(some) >= GATHERED_JOBS or time.monotonic() - started >= PORTION_SECONDS:
            yield some
            some, started = [], time.monotonic()
    if some:
        yield some
