"""``sandfleet jobs cancel`` and ``jobs retry``: act on jobs by the filters of their list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_group

from sandfleet.cli import completion, opening, options
from sandfleet.cli.acting import DryRun, Yes, act_on_jobs, new_operator, show_preview
from sandfleet.cli.lists import Categories, Codes, States, read_filter
from sandfleet.cli.watching import complete_watch

if TYPE_CHECKING:
    from sandfleet.actions import Operator, Selection
    from sandfleet.overview.job_filter import JobFilter

Ids = Annotated[list[str] | None, typer.Argument(metavar="[ID]...")]
Batch = Annotated[str, typer.Option(help="The jobs of this batch.", autocompletion=completion.complete_batch)]
Host = Annotated[str, typer.Option(help="Jobs whose last attempt was there.")]
Why = Annotated[str, typer.Option("--reason", "-r", help="Why; it stands in the audit.")]
app = typer.Typer(rich_markup_mode=None)


@app.command()
def cancel(
    job_ids: Ids = None,
    *,
    batch: Batch = "",
    code: Codes = None,
    category: Categories = None,
    state: States = None,
    label: options.Labels = None,
    host: Host = "",
    reason: Why = "",
    is_dry: DryRun = False,
    is_sure: Yes = False,
) -> None:
    """Cancel jobs by their ids, or those of a batch that match; says how many, and asks first."""
    wanted = read_filter(code, category, label, state, host)
    with opening.open_fleet() as fleet:
        operator = new_operator(fleet)
        selection = _select(operator, job_ids or [], batch, wanted, is_failed=False)
        preview = operator.preview_cancel(selection)
        if is_dry:
            show_preview("cancel", preview)
            return
        act = lambda chosen: operator.cancel_jobs(chosen, reason)  # noqa: E731
        raise typer.Exit(act_on_jobs("cancel", preview, act, selection, is_sure=is_sure))


@app.command()
def retry(
    job_ids: Ids = None,
    *,
    batch: Batch = "",
    code: Codes = None,
    category: Categories = None,
    label: options.Labels = None,
    host: Host = "",
    reason: Why = "",
    is_dry: DryRun = False,
    is_sure: Yes = False,
) -> None:
    """Run jobs again that did not end OK, by their ids, or those of a batch that match.

    `batch retry` can change their specs, too.
    """
    wanted = read_filter(code, category, label, None, host)
    with opening.open_fleet() as fleet:
        operator = new_operator(fleet)
        selection = _select(operator, job_ids or [], batch, wanted, is_failed=True)
        preview = operator.preview_retry(selection)
        if is_dry:
            show_preview("run again", preview)
            return
        act = lambda chosen: operator.retry_jobs(chosen, reason)  # noqa: E731
        raise typer.Exit(act_on_jobs("run again", preview, act, selection, is_sure=is_sure))


def _select(operator: Operator, job_ids: list[str], batch: str, wanted: JobFilter, *, is_failed: bool) -> Selection:
    has_filter = bool(wanted.is_by_code or wanted.is_of_record or wanted.states)
    if job_ids:
        if batch or has_filter:
            raise typer.BadParameter("give ids, or --batch with filters, not both")
        return operator.select_jobs(job_ids)
    if not batch:
        raise typer.BadParameter("name the jobs: ids, or --batch with filters. An empty filter would be every job")
    return operator.select_in_batch(batch, wanted, is_failed=is_failed)


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
