"""``sandfleet jobs cancel`` and ``jobs retry``: act on jobs by the filters of their list."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from sandfleet.actions import Selection
from sandfleet.cli import opening
from sandfleet.cli.acting import DryRun, Yes, act_on_jobs, new_operator, show_preview
from sandfleet.cli.jobs_list import find_batch
from sandfleet.cli.lists import States, read_filter
from sandfleet.cli.option_fields import takes_fields
from sandfleet.cli.past_options import EndOptions, PastOptions
from sandfleet.cli.show import note
from sandfleet.cli.watching import complete_watch
from sandfleet.history.finding import find_history
from sandfleet.history.open_filter import may_be_open, names_jobs, takes_open
from sandfleet.history.words import format_words

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet.actions import Operator
    from sandfleet.fleet import Fleet
    from sandfleet.history.words import Words

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...")]
Why = Annotated[str, typer.Option("--reason", "-r", help="Why; it stands in the audit.")]
app = typer.Typer(rich_markup_mode=None)


@dataclass(frozen=True, kw_only=True)
class ActOptions:
    """The options of an act on jobs."""

    job_ids: Ids = None
    reason: Why = ""
    is_dry: DryRun = False
    is_sure: Yes = False


@dataclass(frozen=True, kw_only=True)
class CancelOptions(EndOptions, ActOptions):
    """The command line of ``sandfleet jobs cancel``."""

    state: States = None


@dataclass(frozen=True, kw_only=True)
class RetryOptions(PastOptions, ActOptions):
    """The command line of ``sandfleet jobs retry``."""


@app.command()
@takes_fields(CancelOptions)
def cancel(line: CancelOptions) -> None:
    """Cancel jobs by their ids, or those that match; says how many, and asks first.

    Without a batch: jobs that workers have, and the next 200 of each queue.
    """
    wanted = line.read_words()
    with opening.open_fleet() as fleet:
        operator = new_operator(fleet)
        selection = _select(fleet, operator, line.job_ids or [], wanted, is_failed=False)
        preview = operator.preview_cancel(selection)
        if line.is_dry:
            show_preview("cancel", preview)
            return
        act = partial(operator.cancel_jobs, reason=line.reason)
        raise typer.Exit(act_on_jobs("cancel", preview, act, selection, is_sure=line.is_sure))


@app.command()
@takes_fields(RetryOptions)
def retry(line: RetryOptions) -> None:
    """Run jobs again that did not end OK, by their ids, or those that match; asks first.

    Jobs of other batches than one that Redis has come from the history. `batch retry` can change
    specs, too.
    """
    wanted = line.read_words()
    with opening.open_fleet() as fleet:
        operator = new_operator(fleet)
        selection = _select(fleet, operator, line.job_ids or [], wanted, is_failed=True)
        preview = operator.preview_retry(selection)
        if line.is_dry:
            show_preview("run again", preview)
            return
        act = partial(operator.retry_jobs, reason=line.reason)
        raise typer.Exit(act_on_jobs("run again", preview, act, selection, is_sure=line.is_sure))


def _select(fleet: Fleet, operator: Operator, job_ids: list[str], words: Words, *, is_failed: bool) -> Selection:
    """Select jobs by ids, in a batch that Redis has, from the history, or open ones.

    Raises:
        typer.BadParameter: nothing was asked for, or too much.
        HistoryUnavailable: the past is asked for, and none is in reach.
    """
    if job_ids:
        if not words.is_empty:
            raise typer.BadParameter("give ids, or filters, not both")
        return operator.select_jobs(job_ids)
    if not names_jobs(words, is_of_ended=is_failed):
        raise typer.BadParameter("name the jobs: ids, or filters. An empty filter would be every job")
    asked = words.wanted
    if find_batch(fleet, words) is not None:
        chosen = read_filter([*asked.codes], [*asked.categories], None, [*words.states], asked.host)
        return operator.select_in_batch(asked.batch, replace(chosen, labels=dict(asked.labels)), is_failed=is_failed)
    if is_failed:
        if words.states and "ended" not in words.states:
            raise typer.BadParameter("jobs of this state have not ended: there is nothing to run again")
        return Selection.of_history(format_words(words), find_history(), asked)
    if not may_be_open(words):
        raise typer.BadParameter("these words ask how or when jobs ended: there is nothing to cancel")
    note("of each queue, the next 200 jobs are looked at: name a batch to cancel all of it")
    return Selection(format_words(words), lambda: _find_open(fleet, words))


def _find_open(fleet: Fleet, words: Words) -> Iterator[tuple[str, int]]:
    now = time.time()
    for job in fleet.open_jobs(queue=words.wanted.queue, host=words.wanted.host):
        if takes_open(job, words, now, is_on_host=bool(words.wanted.host)):
            yield job.job_id, job.run


class JobsGroup(TyperGroup):
    """The list of jobs as a command, with sub-commands that act on them.

    The list's own options are not asked for before a sub-command.
    """

    def __init__(self, listing: Any) -> None:
        commands: Any = get_group(app)

        def run(**given: Any) -> Any:
            return listing.callback(**given) if given else None  # nothing before a sub-command

        super().__init__(
            name="jobs",
            commands=dict(commands.commands),
            params=listing.params,
            callback=run,
            help=listing.help,
            rich_markup_mode=None,
            invoke_without_command=True,
        )

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the list's options, or those of a sub-command only."""
        if not args or args[0] not in self.commands:
            return super().parse_args(ctx, complete_watch(args))
        kept, self.params = self.params, []
        try:
            return super().parse_args(ctx, args)
        finally:
            self.params = kept
