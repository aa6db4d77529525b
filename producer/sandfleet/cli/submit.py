"""``sandfleet submit`` and ``sandfleet wait``: queue files of jobs, write their outcomes."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer
from sandfleet_config.units import format_count

from sandfleet.cli.artifacts import SaveOptions, Saver
from sandfleet.cli.exits import INTERRUPTED, SOME_NOT_OK
from sandfleet.cli.jsonl import read_ids
from sandfleet.cli.show import note
from sandfleet.cli.waiting import open_results, resume_batch, resume_jobs, wait_for_jobs
from sandfleet.cli.ways.checking import paused_collector
from sandfleet.errors import FleetError, JobUnknown

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sandfleet_config.batch_limits import BatchLimits
    from sandfleet_config.codes import ErrorCode
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.cli.ways.stages import Stages
    from sandfleet.fleet import Fleet
    from sandfleet.job import Job
    from sandfleet.submit.encoders import Encoders


@dataclass(frozen=True)
class SubmitOptions:
    """The options of ``sandfleet submit`` that say how a file is queued."""

    batch: str | None = None
    queue: str | None = None
    is_idempotent: bool = False
    has_ids: bool = False
    """Whether ids are asked for; where only ids name the jobs, they are printed anyway."""
    is_quiet: bool = False
    save: str | None = None
    """The folder for artifacts, those of each job in one of its own."""
    limits: BatchLimits | None = None
    on_done: str = ""
    """The endpoint that gets a webhook when the batch is done."""

    @property
    def encoding(self) -> dict[str, Any]:
        """The arguments of `Fleet.new_encoders`."""
        given = {"batch": self.batch, "queue": self.queue, "limits": self.limits}
        return given | {"idempotent": self.is_idempotent}

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of `Fleet.submit_chunks`."""
        return self.encoding | {"on_done": self.on_done}


def submit_specs(
    fleet: Fleet,
    specs: list[SandboxSpec] | Encoders,
    options: SubmitOptions,
    stages: Stages,
    *,
    is_waited: bool,
    out: str | None,
    is_json: bool,
) -> int:
    """Queue the jobs, wait for them if asked to; return the exit code."""
    handles: dict[str, Job] = {}
    counts: Counter[ErrorCode] = Counter()
    status = 0

    saver = Saver(fleet, SaveOptions(options.save))
    with open_results(out, saver.take) as results:  # opened first: what cannot be written stops the submit
        try:
            for jobs in _queue(fleet, specs, options, stages):
                handles |= {job.id: job for job in jobs}
                if not is_json and (options.has_ids or not (is_waited or options.batch)):
                    print("\n".join(job.id for job in jobs), flush=True)
        except (KeyboardInterrupt, FleetError) as error:
            _note_stopped(handles.values(), len(specs), options.batch, out)
            if isinstance(error, FleetError):
                raise
            status = INTERRUPTED
        else:
            if is_waited:
                how: dict[str, Any] = {"batch": options.batch, "is_quiet": options.is_quiet}
                status, counts = wait_for_jobs(fleet, list(handles.values()), results, is_listed=False, **how)
                status = status or (0 if saver.is_complete else SOME_NOT_OK)
            elif not (is_json or options.is_quiet):
                _note_queued(len(handles), options.batch)
    _sum_up_saved(saver, options, status)
    if is_json:
        _print_object(options.batch, list(handles.values()), counts if is_waited else None)
    return status


def _note_stopped(jobs: Iterable[Job], total: int, batch: str | None, out: str | None) -> None:
    """Say how many jobs were queued, and which command waits for them."""
    ids = [job.id for job in jobs]
    # The jobs of the chunk under way, which have no ids yet, can only be found by the batch's name.
    resume = resume_batch(batch, out) if batch else resume_jobs(ids, out)
    of_all = format_count(total, "job was", "jobs were")
    note(f"stopped: at least {len(ids)} of {of_all} queued. To wait: {resume}")


def _queue(
    fleet: Fleet, specs: list[SandboxSpec] | Encoders, options: SubmitOptions, stages: Stages
) -> Iterator[list[Job]]:
    """Yield the jobs of each chunk that is queued; show the progress."""
    done = 0
    with stages.stage("queuing", "queued", len(specs)) as report, paused_collector():
        for jobs in fleet.submit_chunks(specs, **options.arguments):
            done += len(jobs)
            report(done)
            yield jobs
    stages.sum_up()


def _print_object(batch: str | None, jobs: Sequence[Job], counts: Counter[ErrorCode] | None) -> None:
    told = {"batch": batch, "job_ids": [job.id for job in jobs]}
    codes = {} if counts is None else {"codes": {code.value: count for code, count in counts.items()}}
    print(json.dumps(told | codes))


def _sum_up_saved(saver: Saver, options: SubmitOptions, status: int) -> None:
    """Say how much was saved, and how to save the artifacts of an interrupted wait later."""
    saver.sum_up()
    if status == INTERRUPTED and options.save is not None:
        which = f"--batch {shlex.quote(options.batch)}" if options.batch else "ID"
        note(f"to save the others later: sandfleet artifacts {which} --save {shlex.quote(options.save)}")


def _note_queued(count: int, batch: str | None) -> None:
    """Say how to follow the jobs of a batch; others are named by the printed ids."""
    if batch:
        note(
            f"queued {format_count(count, 'job')} in batch {batch}. To follow: sandfleet batch watch {shlex.quote(batch)}"
        )


def wait_for(
    fleet: Fleet,
    job_ids: list[str],
    *,
    file: str | None,
    out: str | None,
    timeout: float | None,
    is_quiet: bool = False,
) -> int:
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
        return wait_for_jobs(fleet, ids, results, timeout=timeout, is_quiet=is_quiet)[0]
