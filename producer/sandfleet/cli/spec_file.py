"""`SpecFile`: a batch's file of jobs, for a retry of jobs whose specs are no longer kept."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import typer
from sandfleet_config.errors import SpecInvalid
from sandfleet_config.fingerprint import spec_sha256
from sandfleet_config.units import format_count

from sandfleet.cli.exits import USAGE
from sandfleet.cli.files import LocalFiles
from sandfleet.cli.jsonl import read_lines
from sandfleet.cli.ways.reading import Common, read_specs, upload_files
from sandfleet.cli.ways.sources import JOBS, Source
from sandfleet.cli.ways.stages import Stages

if TYPE_CHECKING:
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.batch import Batch
    from sandfleet.channel.job_facts import JobFacts
    from sandfleet.fleet import Fleet


class SpecFile:
    """The specs of a file of jobs, by fingerprint: a job finds the spec of its submit."""

    def __init__(self, fleet: Fleet, name: str) -> None:
        """Read and check the file, and upload the local files that it names.

        Raises:
            typer.Exit: it has faults, or no jobs; stderr says which.
            OSError: it cannot be read.
        """
        self._name = name
        local, stages = LocalFiles(), Stages()
        specs = read_specs(Source(JOBS, (name,)), Common({}), local, fleet.settings.max_spec_bytes, stages)
        if not specs:
            raise typer.Exit(USAGE)
        upload_files(local, fleet, stages)
        self._order = [spec_sha256(spec) for spec in specs]
        self._specs = dict(zip(self._order, specs, strict=True))
        self._missing: JobFacts | None = None

    def find(self, job: JobFacts) -> SandboxSpec | None:
        """Return the spec that the job was submitted with, None if the file does not have it."""
        found = self._specs.get(job.spec_sha256)
        if found is None and self._missing is None:
            self._missing = job
        return found

    def refuse_other(self, batch: Batch) -> None:
        """Refuse the file if a job was not found in it.

        Raises:
            SpecInvalid: names the line that should have its spec.
        """
        job = self._missing
        if job is None:
            return
        place = next((at for at, job_id in enumerate(batch.iter_ids()) if job_id == job.job_id), 0)
        if place >= len(self._order):
            jobs = format_count(len(self._order), "job")
            told = f"it has {jobs}, and job {job.job_id} is number {place + 1} of batch {batch.name}"
        else:
            told = (
                f"line {self._find_line(place)} has another spec than job {job.job_id},"
                f" which is number {place + 1} of batch {batch.name}"
            )
        raise SpecInvalid.of(f"nothing was queued: {self._name}: {told}. Give the file that was submitted")

    def _find_line(self, place: int) -> int:
        numbers = (number for number, line in enumerate(read_lines(self._name), 1) if line.strip())
        return next(islice(numbers, place, None))
