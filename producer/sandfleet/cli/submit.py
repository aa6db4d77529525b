"""``sandfleet submit`` and ``sandfleet wait``: files of jobs in, outcomes out."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from sandfleet.cli.exits import INTERRUPTED, SOME_NOT_OK
from sandfleet.cli.jsonl import parse_specs, read_ids, read_lines
from sandfleet.cli.show import note
from sandfleet.cli.waiting import resume_batch_command, resume_command, wait_for_jobs
from sandfleet.errors import FleetError, JobUnknown

if TYPE_CHECKING:
    from sandfleet_config.errors import ErrorCode
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.fleet import Fleet
    from sandfleet.job import Job


@dataclass(frozen=True)
class Submission:
    """How a file is queued."""

    batch: str | None = None
    queue: str | None = None
    is_idempotent: bool = False


def read_specs(name: str, max_spec_bytes: int, priority: int | None) -> list[SandboxSpec] | None:
    """Read the file `name`; `priority` is for lines without. None where any line is faulty, which has been told."""
    specs, faults = parse_specs(read_lines(name), max_spec_bytes, {} if priority is None else {"priority": priority})
    if not faults:
        return specs
    for fault in faults:
        note(f"line {fault.number}: {fault.text}")
    bad = len({fault.number for fault in faults})
    note(f"nothing was queued: {bad} of {bad + len(specs)} lines are faulty")
    return None


def submit_specs(
    fleet: Fleet, specs: list[SandboxSpec], how: Submission, *, is_waited: bool, out: str | None, is_json: bool
) -> int:
    """Queue the jobs, wait for them if asked to; return the exit code."""
    handles: dict[Job, None] = {}
    counts: Counter[ErrorCode] = Counter()
    status = 0
    try:
        for jobs in fleet.submit_portions(specs, batch=how.batch, queue=how.queue, idempotent=how.is_idempotent):
            handles |= dict.fromkeys(jobs)
            if not is_json and not (is_waited and out == "-"):  # stdout then is the outcomes'
                print("\n".join(job.id for job in jobs), flush=True)
    except (KeyboardInterrupt, FleetError) as error:
        # Of the portion under way, which has no ids yet, only the batch's name tells later.
        ids = [job.id for job in handles]
        resume = resume_batch_command(how.batch, out) if how.batch else resume_command(ids, out)
        note(f"stopped: at least {len(ids)} of {len(specs)} jobs were queued. To wait for them: {resume}")
        if isinstance(error, FleetError):
            raise
        status = INTERRUPTED
    else:
        if is_waited:
            status, counts = wait_for_jobs(fleet, list(handles), out=out, is_listed=False)
    if is_json:
        codes = {code.value: count for code, count in counts.items()}
        print(
            json.dumps(
                {"batch": how.batch, "job_ids": [job.id for job in handles]} | ({"codes": codes} if is_waited else {})
            )
        )
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
    status, _ = wait_for_jobs(fleet, ids, out=out, timeout=timeout)
    return status
