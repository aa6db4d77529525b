"""Read a batch's jobs in the order of submit, with existing outcomes; memory does not grow."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sandfleet_config.outcome import Outcome

    from sandfleet.channel.protocol import Channel
    from sandfleet.channel.records import JobRecord

PAGE_JOBS: Final = 200
"""Outcomes fetched by one call: about 35 MB with full output. Two pages are in memory."""
ENDED: Final = "ended"
FORGOTTEN: Final = "forgotten"


class BatchJob(NamedTuple):
    """One job of a batch, as it was when it was read.

    `state` is ``ended``, ``queued``, ``waiting``, ``running``, or ``forgotten``: the job has ended,
    and its outcome has expired or was deleted. `outcome` is None unless it is ``ended``. `record`
    is read for a job that has not ended, and for all jobs if asked for.
    """

    job_id: str
    batch: str
    state: str
    outcome: Outcome | None = None
    record: JobRecord | None = None


class Cursor(NamedTuple):
    """A place in a batch's list: the number of jobs before it, and the id of the last of them."""

    position: int = 0
    last: str = ""


START: Final = Cursor()


class _Members:
    """Pages of a batch's list, which loses jobs at its front while it is read."""

    def __init__(self, channel: Channel, name: str, start: Cursor) -> None:
        self._channel, self._name = channel, name
        self._position, self._last = start

    def read(self) -> Iterator[list[str]]:
        while ids := self._read_next():
            self._position += len(ids)
            self._last = ids[-1]
            yield ids

    def _read_next(self) -> list[str]:
        """Return the next page.

        It is read together with the job before it, which shows whether the list has moved.
        """
        if not self._position:
            return self._channel.batch_page(self._name, 0, PAGE_JOBS)
        ids = self._channel.batch_page(self._name, self._position - 1, PAGE_JOBS + 1)
        if ids[:1] == [self._last]:
            return ids[1:]
        self._find_last()
        return self._channel.batch_page(self._name, self._position, PAGE_JOBS)

    def _find_last(self) -> None:
        """Find the last job again: nearer to the front, or gone together with all before it."""
        end = self._position
        while end > 0:
            start = max(0, end - PAGE_JOBS)
            ids = self._channel.batch_page(self._name, start, end - start)
            if self._last in ids:
                self._position = start + ids.index(self._last) + 1
                return
            end = start
        self._position = 0


class BatchRows:
    """The jobs of a batch from `start` on.

    `cursor` is the place after the last one that was yielded.
    """

    def __init__(
        self,
        channel: Channel,
        name: str,
        start: Cursor = START,
        relisted: dict[str, None] | None = None,
        *,
        needs_records: bool = False,
    ) -> None:
        """`relisted` are the jobs before `start` that may come again; further ones are added."""
        self.cursor = start
        self.relisted = {} if relisted is None else relisted
        self._channel, self._name = channel, name
        self._needs_records = needs_records

    def read(self) -> Iterator[list[BatchJob]]:
        """Yield the jobs, some at a time; Redis looks up the next ones while the caller works."""
        members = _Members(self._channel, self._name, self.cursor)
        for job_ids, outcomes in self._channel.outcome_chunks(members.read()):
            if not job_ids:
                continue
            found = self._new_jobs(job_ids, outcomes)
            self.cursor = Cursor(self.cursor.position + len(job_ids), job_ids[-1])
            yield found

    def _new_jobs(self, job_ids: Sequence[str], outcomes: Sequence[Outcome | None]) -> list[BatchJob]:
        found = dict(zip(job_ids, outcomes, strict=True))
        missing = [job_id for job_id, outcome in found.items() if outcome is None]
        if missing:
            self._channel.expire_overdue(missing)
        rerun = [job_id for job_id, outcome in found.items() if outcome is not None and outcome.run > 1]
        asked = list(found) if self._needs_records else missing + rerun
        records = dict(zip(asked, self._channel.records(asked), strict=True)) if asked else {}
        if missing:
            # Read after the records: such a job may have ended in between.
            found |= zip(missing, self._channel.outcomes(missing), strict=True)
        new = [job_id for job_id in found if self._is_new(job_id, records.get(job_id))]
        return [self._new_job(job_id, found[job_id], records.get(job_id)) for job_id in new]

    def _new_job(self, job_id: str, outcome: Outcome | None, record: JobRecord | None) -> BatchJob:
        if outcome is not None:
            return BatchJob(job_id, self._name, ENDED, outcome, record)
        is_over = record is None or record.state == ENDED
        return BatchJob(job_id, self._name, FORGOTTEN if is_over or record is None else record.state, None, record)

    def _is_new(self, job_id: str, record: JobRecord | None) -> bool:
        """Whether the job has not come before; few are in the list twice, and only these are remembered."""
        is_new = job_id not in self.relisted
        if record is not None and record.is_relisted:
            self.relisted[job_id] = None
        return is_new
