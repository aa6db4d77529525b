"""Command ``sandfleet``: ``run submit show logs wait artifacts cancel jobs batches batch dead store``.

Exit codes of ``run``: the program's own; 123 it did not compile (``--lang``); 124 timeout; 125 our
failure or bad usage (as docker); 126 not executable; 127 not found; 128+N signal; 137 out of memory;
130 cancelled. Exit codes of the others, and of ``run --cases``: 0; 1 a job is not OK or not known, a
case is not accepted; 2 bad usage or a bad file; 124 the wait's timeout; 125 the fleet is out of
reach; 130 Ctrl-C.
"""

from __future__ import annotations

from typing import Annotated

import typer
from sandfleet_config.command_line import describe_usage_error, is_help
from sandfleet_config.terminal import write_line

from sandfleet.cli import completion, exits, opening, options
from sandfleet.cli.hints import OTHER_OPTIONS, UNITS
from sandfleet.cli.lazy_group import LazyGroup
from sandfleet.cli.option_fields import takes_fields
from sandfleet.cli.run_options import RunOptions
from sandfleet.cli.show import note

app = typer.Typer(
    name="sandfleet",
    cls=LazyGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Run jobs in gVisor sandboxes on a fleet of hosts.",
)


def _print_version(is_wanted: bool) -> None:  # noqa: FBT001  typer calls it
    if is_wanted:
        from importlib.metadata import version

        print(f"sandfleet {version('sandfleet')}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run jobs in gVisor sandboxes on many hosts; SANDFLEET_REDIS_URL says where their Redis is."""


@app.command(context_settings={"allow_interspersed_args": False})
@takes_fields(RunOptions)
def run(line: RunOptions) -> None:
    """Run one command in a fresh sandbox, print its output and exit with its code.

    With --lang, compile a source file, and run it: exit code 123 says that it did not compile.
    Ctrl-C cancels it.
    """
    from sandfleet.cli.run import RunFiles, run_job

    if not line.lang and (line.cases is not None or line.exact or line.compile_timeout):
        raise typer.BadParameter("--cases, --exact and --compile-timeout need a language", param_hint="--lang")
    with opening.open_fleet() as fleet:
        local = RunFiles(
            line.file or (), line.artifact or (), line.stdin_file, is_stdin_sent=line.stdin, save=line.save
        )
        queue = options.check_queue_name(line.queue)
        if line.lang:
            from sandfleet.cli.programs import read_line, run_program

            raise typer.Exit(run_program(fleet, read_line(line, local, queue)))
        image = "python" if line.image is None else line.image
        fields = {"image": image, "command": line.command or [], "idempotency_key": line.key, **line.read_fields()}
        raise typer.Exit(run_job(fleet, fields, local, queue=queue, is_json=line.is_json))


@app.command()
def wait(
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...")] = None,
    file: Annotated[str | None, typer.Option(help="Job ids, one a line; - is stdin.")] = None,
    out: options.Out = None,
    timeout: options.WaitTimeout = None,
    *,
    is_quiet: options.Quiet = False,
) -> None:
    """Wait for jobs and sum up; exits 1 if any was not OK. Ctrl-C only stops waiting."""
    from sandfleet.cli.submit import wait_for

    with opening.open_fleet() as fleet:
        raise typer.Exit(wait_for(fleet, job_ids or [], file=file, out=out, timeout=timeout, is_quiet=is_quiet))


@app.command()
def show(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    *,
    run: Annotated[int | None, typer.Option(min=1, help="An earlier run of a job that was run again.")] = None,
    is_json: Annotated[
        bool, typer.Option("--json", help="Print its facts as JSON, if it has ended its outcome.")
    ] = False,
) -> None:
    """Show a job, ended or not: where it is, its outcome and output, and what to do next.

    It also shows why the job waits, and its runs. Of one that Redis does not know any more, what the
    history says.
    """
    from sandfleet.cli.job_view import show_job
    from sandfleet.errors import JobUnknown

    with opening.open_fleet() as fleet:
        try:
            show_job(fleet, job_id, run, is_json=is_json)
        except JobUnknown:
            from sandfleet.cli.past_view import show_past

            if not show_past(job_id, run, is_json=is_json):
                raise


@app.command()
def logs(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    *,
    is_followed: Annotated[
        bool, typer.Option("--follow", "-f", help="Print what comes until the job has ended; waits for a queued one.")
    ] = False,
) -> None:
    """Print the output of a job that has ended, or of one that runs and was submitted with --live."""
    from sandfleet.cli.logs import show_logs

    with opening.open_fleet() as fleet:
        raise typer.Exit(show_logs(fleet, job_id, is_followed=is_followed))


@app.command()
def artifacts(
    job_id: Annotated[str | None, typer.Argument(metavar="ID")] = None,
    *,
    batch: Annotated[
        str | None,
        typer.Option(autocompletion=completion.complete_batch, help="All ended jobs of a batch, not one job."),
    ] = None,
    save: options.Save = None,
    overwrite: options.Overwrite = False,
    run: Annotated[int | None, typer.Option(min=1, help="Of an earlier run of the job.")] = None,
    is_json: Annotated[bool, typer.Option("--json", help="Print JSON; of a batch one object a job.")] = False,
) -> None:
    """List the files that a job left (path, bytes, sha256), or save them.

    Exits 1 if a file is lost or not saved.
    """
    from sandfleet.cli.artifacts import SaveOptions, show_batch, show_job

    if (job_id is None) == (batch is None):
        raise typer.BadParameter("give a job's id, or --batch NAME")
    if overwrite and save is None:
        raise typer.BadParameter("needs --save", param_hint="--overwrite")
    if run is not None and job_id is None:
        raise typer.BadParameter("needs a job's id", param_hint="--run")
    how = SaveOptions(save, overwrite)
    with opening.open_fleet() as fleet:
        if job_id is not None:
            raise typer.Exit(show_job(fleet, job_id, run, how, is_json=is_json))
        raise typer.Exit(show_batch(fleet, batch or "", how, is_json=is_json))


@app.command()
def cancel(job_ids: Annotated[list[str], typer.Argument(metavar="ID...")]) -> None:
    """Cancel jobs, queued or running; says of each what that did."""
    from sandfleet.errors import JobUnknown

    exit_code = 0
    with opening.open_fleet() as fleet:
        for job_id in job_ids:
            try:
                print(f"{job_id}\t{fleet.job(job_id).cancel()}")
            except JobUnknown as error:
                note(str(error))
                exit_code = exits.SOME_NOT_OK
    raise typer.Exit(exit_code)


def run_command(words: list[str]) -> int:
    """Run the command with its arguments; each error is one line and an exit code, no traceback."""
    usage = exits.OUR_FAILURE if words[:1] == ["run"] else exits.USAGE
    try:
        status = app(args=words, prog_name="sandfleet", standalone_mode=False)
    except typer.TyperException as error:
        if is_help(error):
            write_line(error.format_message())
            return exits.USAGE
        note(describe_usage_error(error, OTHER_OPTIONS, UNITS))
        return usage
    except (KeyboardInterrupt, typer.Abort):
        return exits.INTERRUPTED
    except SystemExit as end:
        # typer's exit code 1 for a closed stdout could pass for the program's own.
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        return exits.SIGNAL_BASE + exits.SIGPIPE
    except Exception as error:
        from sandfleet.cli.failures import find_exit, is_told

        if not is_told(error):
            raise
        return find_exit(error, usage)
    return status if isinstance(status, int) else 0
