"""``sandfleet jobs cancel`` and ``jobs retry``: act on jobs by the filters of their list."""

from __future__ import annotations

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
from sandfleet.history.open_filter import may_be_open, names_jobs
from sandfleet.history.words import format_words
from sandfleet.overview.open_jobs import BEYOND

if TYPE_CHECKING:
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

    Without a batch: the jobs that workers have, and up to 100,000 that wait in queues; not those that wait
    for another attempt or are parked in a batch.
    """
    wanted = line.read_words()
    with opening.open_fleet() as fleet:
        operator = new_operator(fleet)
        selection = _select_open(operator, line.job_ids or [], wanted)
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
        selection = _select_failed(fleet, operator, line.job_ids or [], wanted)
        preview = operator.preview_retry(selection)
        if line.is_dry:
            show_preview("run again", preview)
            return
        act = partial(operator.retry_jobs, reason=line.reason)
        raise typer.Exit(act_on_jobs("run again", preview, act, selection, is_sure=line.is_sure))


def _select_named(operator: Operator, job_ids: list[str], words: Words, *, is_of_ended: bool) -> Selection | None:
    """Select jobs by ids, if there are some.

    Raises:
        typer.BadParameter: nothing was asked for, or too much.
    """
    if job_ids:
        if not words.is_empty:
            raise typer.BadParameter("give ids, or filters, not both")
        return operator.select_jobs(job_ids)
    if not names_jobs(words, is_of_ended=is_of_ended):
        raise typer.BadParameter("name the jobs: ids, or filters. An empty filter would be every job")
    return None


def _select_open(operator: Operator, job_ids: list[str], words: Words) -> Selection:
    """Select jobs by ids, or those that have not ended.

    Raises:
        typer.BadParameter: nothing was asked for, or too much.
    """
    named = _select_named(operator, job_ids, words, is_of_ended=False)
    if named is not None:
        return named
    if not may_be_open(words):
        raise typer.BadParameter("these words ask how or when jobs ended: there is nothing to cancel")
    if not words.wanted.batch:
        note(BEYOND)
    return operator.select_open(words)


def _select_failed(fleet: Fleet, operator: Operator, job_ids: list[str], words: Words) -> Selection:
    """Select jobs by ids, in a batch that Redis has, or from the history.

    Raises:
        typer.BadParameter: nothing was asked for, or too much.
        HistoryUnavailable: the past is asked for, and none is in reach.
    """
    named = _select_named(operator, job_ids, words, is_of_ended=True)
    if named is not None:
        return named
    asked = words.wanted
    if find_batch(fleet, words) is not None:
        chosen = read_filter([*asked.codes], [*asked.categories], None, [*words.states], asked.host)
        return operator.select_in_batch(asked.batch, replace(chosen, labels=dict(asked.labels)), is_failed=True)
    if words.states and "ended" not in words.states:
        raise typer.BadParameter("jobs of this state have not ended: there is nothing to run again")
    return Selection.of_history(format_words(words), find_history(), asked)


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
