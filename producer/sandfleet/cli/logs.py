"""``sandfleet logs``: the output of one job, also while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandfleet.cli.exits import SOME_NOT_OK
from sandfleet.cli.live import OutputPrinter
from sandfleet.cli.show import explain, note
from sandfleet.errors import OutputNotLive

if TYPE_CHECKING:
    from sandfleet_config.outcome import Outcome

    from sandfleet.fleet import Fleet


def show_logs(fleet: Fleet, job_id: str, *, is_followed: bool) -> int:
    """Print the output of a job: so far if it runs, or until its end if it is followed.

    Return the exit code: 1 if the job does not show its output while it runs.
    """
    job = fleet.job(job_id)
    printer = OutputPrinter(is_safe=True)
    if job.is_done:
        _print_ended(printer, job.outcome(0))
        return 0
    try:
        for chunk in job.stream(follow=is_followed):
            printer.print(chunk)
    except OutputNotLive as error:
        note(str(error))
        return SOME_NOT_OK
    if is_followed:
        _print_ended(printer, job.outcome())
    elif not printer.is_any:
        record = fleet.record(job_id)
        note(f"job {job_id} is {record.state if record else 'ended'} and has written nothing; -f waits for its output")
    return 0


def _print_ended(printer: OutputPrinter, outcome: Outcome) -> None:
    printer.finish(outcome)
    if not outcome.is_ok:
        note(explain(outcome))
