"""``sandfleet submit`` and ``sandfleet wait``: files of jobs in, outcomes out."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from sandfleet.cli.exits import INTERRUPTED, SOME_NOT_OK
from sandfleet.cli.jsonl import STDIN, parse_specs, read_ids, read_lines
from sandfleet.cli.show import note
from sandfleet.cli.waiting import open_results, resume_batch, resume_jobs, wait_for_jobs
from sandfleet.errors import FleetError, JobUnknown

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandfleet_config.codes import ErrorCode
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.fleet import Fleet
    from sandfleet.job import Job


@dataclass(frozen=True)
class Submission:
    """How a file is queued."""

    batch: str | None = None
    queue: str | None = None
    is_idempotent: bool = False


def read_specs(name: str, max_spec_bytes: int, defaults: Mapping[str, Any]) -> list[SandboxSpec]:
    """Read the file `name`; `defaults` are for fields a line has not. Empty where nothing can be queued, and why was told."""
    specs, faults = parse_specs(read_lines(name), max_spec_bytes, defaults)
    for fault in faults:
        note(f"line {fault.number}: {fault.text}")
    if faults:
        bad = len({fault.number for fault in faults})
        note(f"nothing was queued: {bad} of {bad + len(specs)} lines are faulty")
        return []
    if not specs:
        note(f"nothing was queued: {'stdin' if name == STDIN else name} has no jobs")
    return specs


def submit_specs(
    fleet: Fleet, specs: list[SandboxSpec], how: Submission, *, is_waited: bool, out: str | None, is_json: bool
) -> int:
    """Queue the jobs, wait for them if asked to; return the exit code."""
    handles: dict[Job, None] = {}
    counts: Counter[ErrorCode] = Counter()
    status = 0

    def resume() -> str:
        return resume_batch(how.batch, out) if how.batch else resume_jobs([job.id for job in handles], out)

    with open_results(out) as results:  # before the first job is queued: what cannot be written is told then
        try:
            for jobs in fleet.submit_portions(specs, batch=how.batch, queue=how.queue, idempotent=how.is_idempotent):
                handles |= dict.fromkeys(jobs)
                if not is_json and not (is_waited and out == STDIN):  # stdout then is the outcomes'
                    print("\n".join(job.id for job in jobs), flush=True)
        except (KeyboardInterrupt, FleetError) as error:
            # Of the portion under way, which has no ids yet, only the batch's name tells later.
            note(f"stopped: at least {len(handles)} of {len(specs)} jobs were queued. To wait for them: {resume()}")
            if isinstance(error, FleetError):
                raise
            status = INTERRUPTED
        else:
            if is_waited:
                status, counts = wait_for_jobs(fleet, list(handles), results, batch=how.batch, is_listed=False)
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
    with open_results(out) as results:
        return wait_for_jobs(fleet, ids, results, timeout=timeout)[0]
