"""``sandfleet batch retry``: run again what did not end OK."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

import typer
from sandfleet_config.errors import RequestError
from sandfleet_config.units import format_count

from sandfleet.channel.records import RunState
from sandfleet.cli.exits import SOME_NOT_OK, USAGE
from sandfleet.cli.show import note, print_summary, safe_line
from sandfleet.overview.fields import job_fields
from sandfleet.retry.changes import parse_changes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet.batch import Batch
    from sandfleet.cli.spec_file import SpecFile
    from sandfleet.fleet import Fleet
    from sandfleet.overview.job_filter import JobFilter
    from sandfleet.retry.batch_retry import BatchRetry, RetryPlan

WHY_NOT = {
    RunState.UNKNOWN: "their records have expired",
    RunState.UNREADABLE: "their messages cannot be read",
    RunState.IN_QUEUE: "they ended in the queue, and their messages stand too far back in it: let a worker pass them",
    RunState.UNUSABLE: "a key of their queue or batch in Redis has a wrong type",
}


def read_changes(words: Sequence[str] | None) -> dict[str, object]:
    """Parse the words of ``--set``.

    Raises:
        typer.BadParameter: one is not field=value.
    """
    try:
        return parse_changes(words or [])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--set") from None


def retry_batch(
    fleet: Fleet,
    batch: Batch,
    wanted: JobFilter,
    changes: dict[str, object],
    *,
    resolve_images: bool = False,
    file: SpecFile | None = None,
    is_dry: bool = False,
    is_json: bool = False,
) -> int:
    """Plan the retry, show the plan or do it; return the exit code."""
    retry = batch.new_retry(
        wanted,
        changes,
        resolve_images=resolve_images,
        find_spec=file.find if file is not None else None,
        max_spec_bytes=fleet.settings.max_spec_bytes,
    )
    if is_dry or changes or file is not None:  # all are checked before the first is queued
        try:
            plan = retry.plan()
            if file is not None:
                file.refuse_other()
        except RequestError as error:
            note(error.message)
            return USAGE
        if is_dry:
            return _show_plan(fleet, batch, plan, is_json=is_json)
    if resolve_images:
        batch.forget_pins()
    return _start(fleet, batch, retry, is_json=is_json)


def _show_plan(fleet: Fleet, batch: Batch, plan: RetryPlan, *, is_json: bool) -> int:
    if is_json:
        codes = {code.value: count for code, count in plan.codes.items()}
        shown = {"batch": batch.name, "match": plan.total, "codes": codes, "not_kept": plan.not_kept}
        print(json.dumps(shown | {"first": [job_fields(job) for job in plan.first]}, indent=2))
        return 0
    print(
        f"{format_count(plan.total, 'job')} of batch {safe_line(batch.name)} would run again"
        + (":" if plan.total else "")
    )
    print_summary(plan.codes, is_output=True)
    for job in plan.first:
        code = job.code.value if job.code else job.state
        print(f"{job.job_id}\t{code}\t{safe_line(job.name)}")
    if plan.total > len(plan.first):
        print(f"and {plan.total - len(plan.first)} more")
    if plan.not_kept:
        _note_not_kept(fleet, plan.not_kept, "cannot")
    return 0


def _note_not_kept(fleet: Fleet, count: int, verb: str) -> None:
    dropped = fleet.count_dropped_specs()
    bounds = "Redis keeps 256 MiB of specs, 16 MiB while it is more than 80 % full: then raise its maxmemory"
    why = f" ({bounds}; {dropped} were dropped lately)" if dropped else ""
    note(
        f"{count} of them {verb} run again: their specs are no longer kept{why}."
        " If a file of jobs was submitted, give it: --from FILE; else submit them again"
    )


def _start(fleet: Fleet, batch: Batch, retry: BatchRetry, *, is_json: bool) -> int:
    states: Counter[RunState] = Counter()
    try:
        for _, state in retry.start():
            states[state] += 1
    finally:
        if is_json:
            shown = {state.value.replace(" ", "_"): count for state, count in states.items()}
            print(json.dumps({"batch": batch.name, "queued": 0, **shown}))
        else:
            later = f", {states[RunState.LATER]} were queued before" if states[RunState.LATER] else ""
            print(f"{states[RunState.QUEUED]} queued{later}")
    if not states:
        codes = ", ".join(f"{count} {code}" for code, count in sorted(batch.codes.items()))
        note(f"no job of batch {safe_line(batch.name)} matches; its jobs that have ended: {codes or 'none'}")
    not_kept = states.pop(RunState.NO_MESSAGE, 0)
    if not_kept:
        _note_not_kept(fleet, not_kept, "did not")
    failed = [state for state in WHY_NOT if states[state]]
    for state in failed:
        note(f"{states[state]} were not queued: {WHY_NOT[state]}")
    return SOME_NOT_OK if failed or not_kept else 0
