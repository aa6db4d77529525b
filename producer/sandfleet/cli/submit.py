"""``sandfleet submit`` and ``sandfleet wait``: queue files of jobs, write their outcomes."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from sandfleet_config.errors import SpecInvalid

from sandfleet.cli.artifacts import SaveOptions, Saver
from sandfleet.cli.exits import INTERRUPTED, SOME_NOT_OK
from sandfleet.cli.files import LineFiles, LocalFiles
from sandfleet.cli.jsonl import STDIN, parse_specs, read_ids, read_lines
from sandfleet.cli.show import note
from sandfleet.cli.waiting import open_results, resume_batch, resume_jobs, wait_for_jobs
from sandfleet.errors import FleetError, JobUnknown

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandfleet_config.codes import ErrorCode
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.fleet import Fleet
    from sandfleet.job import Job


@dataclass(frozen=True)
class SubmitOptions:
    """The options of ``sandfleet submit`` that say how a file is queued."""

    batch: str | None = None
    queue: str | None = None
    is_idempotent: bool = False
    on_done: str = ""
    """The endpoint that gets a webhook when the batch is done."""
    save: str | None = None
    """The folder for artifacts, those of each job in one of its own."""

    @property
    def fields(self) -> dict[str, Any]:
        """The options that `Fleet.submit_chunks` takes."""
        given = {"batch": self.batch, "queue": self.queue, "idempotent": self.is_idempotent}
        return given | {"on_done": self.on_done}


@dataclass(frozen=True)
class SpecSource:
    """The file of jobs, and what its lines get from the command line.

    `defaults` are for fields that a line lacks; `files` and `artifacts` are added to each line's own.
    """

    name: str
    defaults: Mapping[str, Any]
    files: Sequence[str] = ()
    artifacts: Sequence[str] = ()


def read_specs(fleet: Fleet, source: SpecSource) -> list[SandboxSpec]:
    """Read a file of jobs, and upload the large files that its lines name once all lines are checked.

    Return the empty list if nothing can be queued; stderr says why.
    """
    name, local = source.name, LocalFiles()
    try:
        common = local.add_options(source.files)
    except SpecInvalid as error:
        note(f"nothing was queued: {error.message}")
        return []
    folder = Path() if name == STDIN else Path(name).parent
    files = LineFiles(local, folder, common, source.artifacts)
    specs, faults = parse_specs(read_lines(name), fleet.settings.max_spec_bytes, source.defaults, files)
    for fault in faults:
        note(f"line {fault.number}: {fault.text}")
    if faults:
        bad = len({fault.number for fault in faults})
        note(f"nothing was queued: {bad} of {bad + len(specs)} lines are faulty")
        return []
    if not specs:
        note(f"nothing was queued: {'stdin' if name == STDIN else name} has no jobs")
    else:
        local.upload(fleet)
    return specs


def submit_specs(
    fleet: Fleet, specs: list[SandboxSpec], options: SubmitOptions, *, is_waited: bool, out: str | None, is_json: bool
) -> int:
    """Queue the jobs, wait for them if asked to; return the exit code."""
    handles: dict[Job, None] = {}
    counts: Counter[ErrorCode] = Counter()
    status = 0

    def resume() -> str:
        return resume_batch(options.batch, out) if options.batch else resume_jobs([job.id for job in handles], out)

    saver = Saver(fleet, SaveOptions(options.save))
    with open_results(out, saver.take) as results:  # opened first: what cannot be written stops the submit
        try:
            for jobs in fleet.submit_chunks(specs, **options.fields):
                handles |= dict.fromkeys(jobs)
                if not is_json and not (is_waited and out == STDIN):  # else stdout is for the outcomes
                    print("\n".join(job.id for job in jobs), flush=True)
        except (KeyboardInterrupt, FleetError) as error:
            # The jobs of the chunk under way, which have no ids yet, can only be found by the batch's name.
            note(f"stopped: at least {len(handles)} of {len(specs)} jobs were queued. To wait for them: {resume()}")
            if isinstance(error, FleetError):
                raise
            status = INTERRUPTED
        else:
            if is_waited:
                status, counts = wait_for_jobs(fleet, list(handles), results, batch=options.batch, is_listed=False)
                status = status or (0 if saver.is_complete else SOME_NOT_OK)
    saver.sum_up()
    if status == INTERRUPTED and options.save is not None:
        which = f"--batch {shlex.quote(options.batch)}" if options.batch else "ID"
        note(f"to save the others later: sandfleet artifacts {which} --save {shlex.quote(options.save)}")
    if is_json:
        told = {"batch": options.batch, "job_ids": [job.id for job in handles]}
        codes = {"codes": {code.value: count for code, count in counts.items()}}
        print(json.dumps(told | (codes if is_waited else {})))
    return status


def wait_for(fleet: Fleet, job_ids: list[str], *, file: str | None, out: str | None, timeout: float | None) -> int:
    """Wait for the jobs of the command line and of `file`; return the exit code."""
    listed = read_ids(file) if file else []
    ids = list(dict.fromkeys(job_ids + listed))
    if not ids:
        raise typer.BadParameter("give job ids, or --file with some")
    is_unknown = False
    for job_id in ids:
        try:
            fleet.job(job_id)
        except JobUnknown as error:
            note(str(error))
            is_unknown = True
    if is_unknown:
        return SOME_NOT_OK
    with open_results(out) as results:
        return wait_for_jobs(fleet, ids, results, timeout=timeout)[0]
