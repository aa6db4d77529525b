"""`BatchRetry`: start the next run of a batch's jobs that did not end OK."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sandfleet_config.codes import Category
from sandfleet_config.errors import RequestError, SpecInvalid

from sandfleet.channel.overview import NextRun
from sandfleet.channel.records import RunState
from sandfleet.overview.job_filter import JobFilter, read_ended_code
from sandfleet.retry.changes import keep_delivery

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from sandfleet_config.codes import ErrorCode
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.channel.overview import EndedJob, ImageChoice, Overview
    from sandfleet.retry.changes import JobChanger

SHOWN_JOBS: Final = 5
MAX_FAULTS: Final = 10


@dataclass
class RetryPlan:
    """The jobs that a retry would run: how many by code, the first few, and those it cannot run.

    `not_kept` counts jobs whose spec is no longer kept, of those that match.
    """

    codes: Counter[ErrorCode] = field(default_factory=Counter["ErrorCode"])
    first: list[JobFacts] = field(default_factory=list["JobFacts"])
    not_kept: int = 0

    @property
    def total(self) -> int:
        """The number of jobs that match."""
        return self.codes.total()


@dataclass
class RetryResult:
    """How many jobs are queued again, and what became of the others that matched."""

    states: Counter[RunState] = field(default_factory=Counter["RunState"])

    @property
    def queued(self) -> int:
        """The number of jobs whose next run is queued."""
        return self.states[RunState.QUEUED]

    @property
    def later(self) -> int:
        """The number of jobs that somebody else ran again meanwhile: they were left alone."""
        return self.states[RunState.LATER]

    @property
    def not_kept(self) -> int:
        """The number of jobs that cannot run again, since what they ran is no longer kept."""
        return self.states[RunState.NO_MESSAGE] + self.states[RunState.UNREADABLE] + self.states[RunState.UNKNOWN]


class BatchRetry:
    """One retry of a batch: `plan` shows it, `start` does it.

    `changer` encodes each job again; None leaves the specs as they are. `find_spec`, which needs a
    `changer`, returns the spec of a job whose own is no longer kept, from a file, or None.
    """

    def __init__(
        self,
        overview: Overview,
        batch: str,
        wanted: JobFilter,
        *,
        changer: JobChanger | None = None,
        find_spec: Callable[[JobFacts], SandboxSpec | None] | None = None,
        images: ImageChoice = "kept",
    ) -> None:
        self._overview = overview
        self._batch = batch
        self._wanted = wanted
        self._changer = changer
        self._find_spec = find_spec
        self._images: ImageChoice = images

    def plan(self) -> RetryPlan:
        """Return what `start` would do now.

        Raises:
            SpecInvalid: the changes do not fit a job; names the first few.
        """
        plan = RetryPlan()
        faults: dict[str, list[str]] = {}
        for page in self._pages():
            plan.codes.update(read_ended_code(ended) for ended in page)
            if len(plan.first) < SHOWN_JOBS:
                shown = [ended.job_id for ended in page[: SHOWN_JOBS - len(plan.first)]]
                plan.first += [job for job in self._overview.facts(shown) if job is not None]
            plan.not_kept += self._check(page, faults)
            if faults:
                break
        if faults:
            raise _refuse(faults)
        return plan

    def _check(self, page: Sequence[EndedJob], faults: dict[str, list[str]]) -> int:
        """Check each job with its changes; return the number of jobs whose spec is not known."""
        if self._changer is None:
            return self._overview.are_kept([ended.job_id for ended in page]).count(False)
        found = self._read_specs(page)
        for job, spec in found.values():
            try:
                self._changer.check(job, spec)
            except RequestError as error:
                faults.setdefault(error.message, []).append(job.job_id)
        return len(page) - len(found)

    def _read_specs(self, page: Sequence[EndedJob]) -> Mapping[str, tuple[JobFacts, SandboxSpec]]:
        """Return each job that has one with its spec: as it ran last or, if not kept, of the file."""
        ids = [ended.job_id for ended in page]
        found: dict[str, tuple[JobFacts, SandboxSpec]] = {}
        for job, request in zip(self._overview.facts(ids), self._overview.kept_requests(ids), strict=True):
            if job is None:
                continue
            if request is not None:
                found[job.job_id] = job, request.spec
            elif self._find_spec is not None and (spec := self._find_spec(job)) is not None:
                found[job.job_id] = job, keep_delivery(spec, job)
        return found

    def start(self) -> Iterator[tuple[str, RunState]]:
        """Queue the jobs again, some hundred by one call; yield each job's id and its result.

        Jobs that end meanwhile are left alone. Call `plan` first if specs are changed: it checks
        all before the first is queued.
        """
        for page in self._pages():
            yield from zip((ended.job_id for ended in page), self._start(page), strict=True)

    def _start(self, page: Sequence[EndedJob]) -> list[RunState]:
        if self._changer is None:
            return self._overview.start_runs([NextRun(ended.job_id, ended.run) for ended in page], images=self._images)
        runs = {ended.job_id: ended.run for ended in page}
        wishes = [
            NextRun(job_id, runs[job_id], self._changer.encode(job, spec), job.queue)
            for job_id, (job, spec) in self._read_specs(page).items()
            if job.queue
        ]
        self._changer.upload()
        # A job that cannot be changed does not run: as it was, nobody asked for it.
        started = self._overview.start_runs(wishes, images=self._images)
        states = dict(zip((wish.job_id for wish in wishes), started, strict=True))
        return [states.get(ended.job_id, RunState.NO_MESSAGE) for ended in page]

    def _pages(self) -> Iterator[list[EndedJob]]:
        """Yield the ends of the jobs that match, some hundred at a time."""
        for page in self._overview.ended_pages(self._batch):
            found = [ended for ended in page if self._takes(read_ended_code(ended))]
            if self._wanted.is_of_record and found:
                facts = self._overview.facts([ended.job_id for ended in found])
                matching = {job.job_id for job in facts if job is not None and self._wanted.takes(job)}
                found = [ended for ended in found if ended.job_id in matching]
            if found:
                yield found

    def _takes(self, code: ErrorCode) -> bool:
        return code.category is not Category.OK and self._wanted.takes_code(code)


def _refuse(faults: Mapping[str, Sequence[str]]) -> SpecInvalid:
    """Return the error that names each fault once, with its first job."""
    told = [
        f"{message} (job {ids[0]}" + (f" and {len(ids) - 1} more)" if len(ids) > 1 else ")")
        for message, ids in list(faults.items())[:MAX_FAULTS]
    ]
    return SpecInvalid.of(f"nothing was queued: {'; '.join(told)}")
