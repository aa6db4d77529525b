"""`SpecFile`: a batch's file of jobs, for a retry of jobs whose specs are no longer kept."""

from __future__ import annotations

from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Final, TypeAlias

import typer
from sandfleet_config.errors import SpecInvalid
from sandfleet_config.units import format_count

from sandfleet.cli.exits import USAGE
from sandfleet.cli.files import LocalFiles
from sandfleet.cli.jsonl import read_lines
from sandfleet.cli.ways.reading import Common, read_specs, upload_files
from sandfleet.cli.ways.sources import JOBS, Source
from sandfleet.cli.ways.stages import Stages
from sandfleet.submit.contents import list_fingerprints

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandfleet_config.spec import SandboxSpec

    from sandfleet.batch import Batch
    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.fleet import Fleet

REMEDY: Final = (
    "Give the file that was submitted. If options of that submit changed its jobs (--memory, --env, --label ...),"
    " write them into the lines"
)
Retried: TypeAlias = "tuple[object, object]"
"""`retry_on` and `retry_with` of a spec: neither its fingerprint nor its job's record has them."""


class SpecFile:
    """The specs of a file of jobs, by fingerprint: a job finds the spec of its submit."""

    def __init__(self, fleet: Fleet, batch: Batch, name: str) -> None:
        """Read and check the file, and upload the local files that it names.

        Raises:
            typer.Exit: it has faults, or no jobs; stderr says which.
            OSError: it cannot be read.
        """
        self._name, self._batch = name, batch
        local, stages = LocalFiles(), Stages()
        self._specs = read_specs(Source(JOBS, (name,)), Common({}), local, fleet.settings.max_spec_bytes, stages)
        if not self._specs:
            raise typer.Exit(USAGE)
        upload_files(local, fleet, stages)
        self._known: dict[str, dict[Retried, int]] = {}
        for index, spec in enumerate(self._specs):
            for fingerprint in list_fingerprints(spec):
                self._known.setdefault(fingerprint, {}).setdefault(_retried(spec), index)
        self._fault = ""

    def find(self, job: JobFacts) -> SandboxSpec | None:
        """Return the spec that the job was submitted with, None if the file does not tell it."""
        known = self._known.get(job.spec_sha256, {})
        if len(known) == 1:
            return self._specs[next(iter(known.values()))]
        if known and (spec := self._find_by_place(job)) is not None:
            return spec
        self._fault = self._fault or (self._tell_alike(job, known.values()) if known else self._tell_missing(job))
        return None

    def _find_by_place(self, job: JobFacts) -> SandboxSpec | None:
        """Return the spec at the job's place in the batch, if the file has all of its jobs."""
        place = self._places.get(job.job_id, len(self._specs))
        if len(self._places) != len(self._specs) or place >= len(self._specs):
            return None
        spec = self._specs[place]
        return spec if job.spec_sha256 in list_fingerprints(spec) else None

    @cached_property
    def _places(self) -> dict[str, int]:
        """Each job's place in the batch, in the order of submit."""
        return {job_id: place for place, job_id in enumerate(dict.fromkeys(self._batch.iter_ids()))}

    def refuse_other(self) -> None:
        """Refuse the file if it did not tell the spec of a job.

        Raises:
            SpecInvalid: names the job, and the line that should have its spec.
        """
        if self._fault:
            raise SpecInvalid.of(f"nothing was queued: {self._name}: {self._fault}")

    def _tell_missing(self, job: JobFacts) -> str:
        place = self._places.get(job.job_id, 0)
        if place >= len(self._specs):
            jobs = format_count(len(self._specs), "job")
            told = f"it has {jobs}, and job {job.job_id} is number {place + 1} of batch {self._batch.name}"
        else:
            told = (
                f"line {self._find_line(place)} has another spec than job {job.job_id},"
                f" which is number {place + 1} of batch {self._batch.name}"
            )
        return f"{told}. {REMEDY}"

    def _tell_alike(self, job: JobFacts, indexes: Iterable[int]) -> str:
        first, second, *_ = (self._find_line(index) for index in indexes)
        return (
            f"lines {first} and {second} differ only in retry_on or retry_with. Which of them job {job.job_id} had is"
            f" told only by a file with all jobs of batch {self._batch.name}, in the order of their submit"
        )

    def _find_line(self, place: int) -> int:
        numbers = (number for number, line in enumerate(read_lines(self._name), 1) if line.strip())
        return next(islice(numbers, place, None))


def _retried(spec: SandboxSpec) -> Retried:
    return spec.retry_on, spec.retry_with
