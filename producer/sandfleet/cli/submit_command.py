"""The command ``sandfleet submit``: its options, and which way of submit they choose."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from sandfleet.cli import completion, exits, limits, opening, options
from sandfleet.cli.option_fields import takes_fields
from sandfleet.cli.spec_options import SpecOptions, drop_defaults

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet_config.spec import SandboxSpec

    from sandfleet.cli.files import LocalFiles
    from sandfleet.cli.submit import SubmitOptions
    from sandfleet.cli.ways.reading import Common
    from sandfleet.cli.ways.sources import Source

app = typer.Typer(rich_markup_mode=None)
COMMAND = "sandfleet.command"
"""Key of the words after ``--`` in a context's `meta`."""
NEEDS_WAY = "a command after -- needs --each, --csv, --tsv, --jsonl or --array"


class SubmitCommand(TyperCommand):
    """Keeps what comes after ``--`` apart: it is the jobs' command, not a file of jobs."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Split the words at the first ``--``."""
        at = args.index("--") if "--" in args else len(args)
        ctx.meta[COMMAND] = args[at + 1 :]
        return super().parse_args(ctx, args[:at])


@dataclass(frozen=True, kw_only=True)
class SubmitLine(SpecOptions):
    """The command line of ``sandfleet submit``."""

    ctx: typer.Context
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FILE] [-- COMMAND [ARG]]", help="A file of jobs, one JSON spec a line; - is stdin."),
    ] = None
    each: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOB", help="One job for each local file, which it gets; {} is its path there. Quote it."
        ),
    ] = None
    csv: Annotated[
        str | None, typer.Option(metavar="FILE", help="One job for each row; {column} in the command. - is stdin.")
    ] = None
    tsv: Annotated[str | None, typer.Option(metavar="FILE", help="As --csv, separated by tabs.")] = None
    jsonl: Annotated[str | None, typer.Option(metavar="FILE", help="As --csv, one JSON object a line.")] = None
    array: Annotated[
        str | None, typer.Option(metavar="INDEXES", help="One job for each of 0-999, 0-999:10 or 1,3,7; {index}.")
    ] = None
    label_from: Annotated[
        list[str] | None, typer.Option(metavar="[KEY=]COLUMN", help="A label from a column; repeatable.")
    ] = None
    name: Annotated[
        str | None, typer.Option(help="The label `name` of each job, such as 'seed {seed}'; has a default.")
    ] = None
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check all, show the first jobs, queue nothing.")] = False
    wait: Annotated[bool, typer.Option("--wait", help="Wait for all of them, then sum up.")] = False
    out: options.Out = None
    batch: Annotated[
        str | None, typer.Option(help="A name for all of them.", autocompletion=completion.complete_batch)
    ] = None
    max_failures: limits.MaxFailures = None
    fail_fast: limits.FailFast = False
    at_most: limits.AtMost = None
    deadline: limits.Deadline = None
    on_stop: limits.OnStop = "keep"
    after: limits.After = None
    after_batch: limits.AfterBatch = None
    image: Annotated[
        str, typer.Option(help="The image, where a line of FILE has none; for a command python.", show_default=False)
    ] = ""
    require: options.RequiresOfLines = None
    save: options.SaveAll = None
    idempotent: options.Idempotent = False
    has_ids: options.Ids = False
    is_quiet: options.Quiet = False
    on_done: options.OnDone = ""
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with the ids.")] = False


@app.command(cls=SubmitCommand)
@takes_fields(SubmitLine)
def submit(line: SubmitLine) -> None:
    """Queue a file of jobs, or a command for each script, row or index.

    All is checked before the first job is queued. The options of run hold for all jobs; a line of
    FILE that says something itself has its way.
    """
    from sandfleet.cli.ways.reading import Common

    source = _choose(line, line.ctx.meta[COMMAND])
    how = _read_how(line)
    awaited = limits.read_after(line.after, line.after_batch)
    faults: list[str] = []
    fields = drop_defaults({**line.collect_fields(faults), "image": line.image, "after": awaited})
    common = Common(fields, line.file or (), line.artifact or (), line.stdin_file, faults)
    raise typer.Exit(_submit(line, source, common, how))


def _read_how(line: SubmitLine) -> SubmitOptions:
    """Return how the jobs are queued.

    Raises:
        typer.BadParameter: an option lacks another, or has a value that cannot be.
    """
    from sandfleet.cli.submit import SubmitOptions

    if line.batch == "":  # a variable of a script that is not set
        raise typer.BadParameter("is empty: give the batch a name, or leave the option out", param_hint="--batch")
    for option, is_given, needed, is_there in (
        ("--out", line.out is not None, "--wait", line.wait),
        ("--save", line.save is not None, "--wait", line.wait),
        ("--idempotent", line.idempotent, "--batch", line.batch),
        ("--on-done", line.on_done, "--batch", line.batch),
        ("--ids", line.has_ids, "another --out than -", line.out != "-"),
    ):
        if is_given and not is_there:
            raise typer.BadParameter(f"needs {needed}", param_hint=option)
    bounds = limits.read_limits(
        line.batch,
        line.on_stop,
        max_failures=line.max_failures,
        fail_fast=line.fail_fast,
        at_most=line.at_most,
        deadline=line.deadline,
    )
    return SubmitOptions(
        batch=line.batch,
        queue=options.check_queue_name(line.queue),
        is_idempotent=line.idempotent,
        has_ids=line.has_ids,
        is_quiet=line.is_quiet,
        save=line.save,
        limits=bounds,
        on_done=line.on_done,
    )


def _choose(line: SubmitLine, command: Sequence[str]) -> Source:
    """Return the one way of submit that was asked for.

    Raises:
        typer.BadParameter: there is none, there are several, or an option does not belong to it.
    """
    from sandfleet.cli.ways.sources import ARRAY, EACH, Source

    files, ways = line.files or [], {"csv": line.csv, "tsv": line.tsv, "jsonl": line.jsonl, ARRAY: line.array}
    given: dict[str, Sequence[str]] = {kind: (text,) for kind, text in ways.items() if text is not None}
    given |= {EACH: line.each} if line.each else {}
    if len(given) > 1:
        raise typer.BadParameter(f"give one of {' and '.join(f'--{kind}' for kind in given)}")
    if not given:
        return _choose_file(line, files, command)
    ((kind, names),) = given.items()
    if files:
        quoted = ": put the pattern in quotes, or your shell takes it apart" if kind == EACH else ""
        said = f"what is {' '.join(files)}? The command comes after --{quoted}"
        raise typer.BadParameter(said, param_hint=f"--{kind}")
    if not command and kind != ARRAY:
        raise typer.BadParameter("needs a command: -- COMMAND [ARG]", param_hint=f"--{kind}")
    return Source(kind, names, command, line.label_from or (), line.name)


def _choose_file(line: SubmitLine, files: Sequence[str], command: Sequence[str]) -> Source:
    from sandfleet.cli.ways.sources import JOBS, Source

    if command:
        raise typer.BadParameter(NEEDS_WAY)
    if len(files) > 1:
        more = " ".join(files[1:])
        raise typer.BadParameter(f"takes one file of jobs: what is {more}? {NEEDS_WAY}")
    if not files:
        raise typer.BadParameter("give a file of jobs (- is stdin), or --each, --csv, --tsv, --jsonl or --array")
    for option, value in (("--label-from", line.label_from), ("--name", line.name)):
        if value:
            raise typer.BadParameter("a line of a file of jobs has labels of its own", param_hint=option)
    return Source(JOBS, files)


def _submit(line: SubmitLine, source: Source, common: Common, how: SubmitOptions) -> int:
    """Read, check, upload and queue; return the exit code."""
    from sandfleet.cli.files import LocalFiles
    from sandfleet.cli.submit import submit_specs
    from sandfleet.cli.ways.reading import check_input, read_input, read_specs, upload_files
    from sandfleet.cli.ways.stages import Stages

    local, stages = LocalFiles(), Stages(is_quiet=line.is_quiet)
    with opening.open_fleet() as fleet:
        most = fleet.settings.max_spec_bytes
        if line.dry_run:
            return _preview(line, read_specs(source, common, local, most, stages), how, most, local)
        given = read_input(source, common, local, most)
        if given is None:
            return exits.USAGE
        # Before anything connects or starts a thread: they are forked. In a plain `with`: Ctrl-C within
        # `ExitStack.enter_context`, after their start and before their registration, would leave them.
        with given.new_encoders(fleet, how.encoding) or nullcontext() as encoders:
            specs = check_input(given, most, stages, encoders)
            if not specs:
                return exits.USAGE
            upload_files(local, fleet, stages)
            return submit_specs(fleet, specs, how, stages, is_waited=line.wait, out=line.out, is_json=line.is_json)


def _preview(
    line: SubmitLine, specs: Sequence[SandboxSpec], how: SubmitOptions, max_spec_bytes: int, local: LocalFiles
) -> int:
    """Show what a submit would do; return the exit code."""
    from sandfleet.cli.ways.preview import preview, preview_rules, print_preview

    if not specs:
        return exits.USAGE
    totals = preview(specs, how.batch, max_spec_bytes, local.large_bytes)
    print_preview(specs, totals | preview_rules(specs, how.limits, how.on_done), is_json=line.is_json)
    return 0
