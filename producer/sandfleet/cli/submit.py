"""``sandfleet submit`` and ``sandfleet wait``: files of jobs in, outcomes out."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import typer

from sandfleet.cli.exits import INTERRUPTED, SOME_NOT_OK, USAGE
from sandfleet.cli.jsonl import parse_specs, read_ids, read_lines
from sandfleet.cli.show import note
from sandfleet.cli.waiting import resume_command, wait_for_jobs
from sandfleet.errors import FleetError, JobUnknown

if TYPE_CHECKING:
    from sandfleet_config.errors import ErrorCode

    from sandfleet.fleet import Fleet


def submit_file(fleet: Fleet, name: str, *, batch: str | None, is_waited: bool, out: str | None, is_json: bool) -> int:
    """Check the file `name`, queue its jobs, wait for them if asked to; return the exit code."""
    specs, faults = parse_specs(read_lines(name), fleet.settings.max_spec_bytes)
    if faults:
        for fault in faults:
            note(f"line {fault.number}: {fault.text}")
        bad = len({fault.number for fault in faults})
        note(f"nothing was queued: {bad} of {bad + len(specs)} lines are faulty")
        return USAGE
    ids: dict[str, None] = {}
    counts: Counter[ErrorCode] = Counter()
    status = 0
    try:
        for spec in specs:
            job_id = fleet.submit(spec, batch=batch).id
            ids[job_id] = None
            if not is_json:
                print(job_id, flush=True)
    except (KeyboardInterrupt, FleetError) as error:
        note(f"stopped: {len(ids)} of {len(specs)} jobs were queued. To wait for them: {resume_command(ids, out)}")
        if isinstance(error, FleetError):
            raise
        status = INTERRUPTED
    else:
        if is_waited:
            status, counts = wait_for_jobs(fleet, list(ids), out=out, is_listed=False)
    if is_json:
        codes = {code.value: count for code, count in counts.items()}
        print(json.dumps({"batch": batch, "job_ids": list(ids)} | ({"codes": codes} if is_waited else {})))
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
