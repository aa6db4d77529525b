"""The ``sandfleet`` command: ``run submit show wait artifacts cancel jobs batches batch dead store``.

Exit codes of ``run``: the program's own; 124 timeout; 125 our failure or bad usage (as docker); 126
not executable; 127 not found; 128+N signal; 137 out of memory; 130 cancelled. Exit codes of the
others: 0; 1 a job is not OK or not known; 2 bad usage or a bad file; 124 the wait's timeout; 125
the fleet is out of reach; 130 Ctrl-C.
"""

from __future__ import annotations

import signal
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from sandfleet_config.command_line import describe_usage_error, is_help
from sandfleet_config.errors import RequestError, SandboxError
from sandfleet_config.queues import check_queue
from sandfleet_config.settings import SettingsInvalid
from sandfleet_config.store.protocol import StoreError

from sandfleet.cli import batch as batch_commands
from sandfleet.cli import dead as dead_commands
from sandfleet.cli import exits, limits, options
from sandfleet.cli import lists as list_commands
from sandfleet.cli import results as results_command
from sandfleet.cli import run as typed
from sandfleet.cli import store as store_commands
from sandfleet.cli.hints import OTHER_OPTIONS
from sandfleet.cli.show import note
from sandfleet.errors import FleetError, FleetUnavailable, JobUnknown
from sandfleet.fleet import Fleet

app = typer.Typer(
    name="sandfleet",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Run jobs in gVisor sandboxes on a fleet of hosts.",
)

batch_commands.app.command()(results_command.results)
app.add_typer(batch_commands.app, name="batch")
app.add_typer(dead_commands.app, name="dead")
app.add_typer(store_commands.app, name="store")
app.command()(list_commands.batches)
app.command()(list_commands.jobs)


def _print_version(is_wanted: bool) -> None:  # noqa: FBT001  typer calls it
    if is_wanted:
        print(f"sandfleet {version('sandfleet')}")
        raise typer.Exit


@app.callback()
def _options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Run jobs in gVisor sandboxes on a fleet of hosts; SANDFLEET_REDIS_URL says where its Redis is."""


@app.command(context_settings={"allow_interspersed_args": False})
def run(
    command: options.Command = None,
    *,
    image: options.Image = "python",
    timeout: options.Timeout = 0.0,
    grace: options.Grace = None,
    memory: options.Memory = "0",
    cpu: options.Cpu = 0.0,
    pids: options.Pids = 0,
    disk: options.Disk = "0",
    env: options.Env = None,
    workdir: options.Workdir = "",
    user: options.User = "",
    label: options.Labels = None,
    require: options.Requires = None,
    writable: options.Writable = False,
    max_output: options.MaxOutput = None,
    keep: options.Keep = "head",
    on_limit: options.OnOutputLimit = "truncate",
    store: options.StoreOutput = False,
    file: options.Files = None,
    artifact: options.Artifacts = None,
    save: options.Save = None,
    dataset: options.DatasetNames = None,
    stdin: options.Stdin = False,
    stdin_file: options.StdinFile = None,
    queue: options.Queue = None,
    priority: options.Priority = None,
    queue_ttl: options.QueueTtl = None,
    max_attempts: options.MaxAttempts = None,
    key: options.Key = "",
    is_json: options.OutcomeAsJson = False,
) -> None:
    """Run one command in a fresh sandbox, print its output and exit with its code. Ctrl-C cancels it."""
    fields = typed.drop_unset(grace=grace, priority=priority, queue_ttl=queue_ttl, max_attempts=max_attempts)
    fields |= {"image": image, "command": command or [], "working_dir": workdir, "idempotency_key": key}
    fields |= typed.read_names(label, require, env, dataset) | typed.read_output(max_output, keep, on_limit, store)
    fields |= typed.read_limits(memory, cpu, pids, disk, timeout) | typed.read_security(user, is_writable=writable)
    local = typed.RunFiles(file or (), artifact or (), stdin_file, is_stdin_sent=stdin, save=save)
    raise typer.Exit(_run(fields, local, _check_queue(queue), is_json=is_json))


def _run(fields: dict[str, Any], local: typed.RunFiles, queue: str | None, *, is_json: bool) -> int:
    with Fleet() as fleet:
        return typed.run_job(fleet, fields, local, queue=queue, is_json=is_json)


@app.command()
def submit(
    file: Annotated[str, typer.Argument(help="One JSON spec a line; - is stdin.")],
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for all of them, then sum up.")] = False,
    out: options.Out = None,
    batch: Annotated[str | None, typer.Option(help="A name for all of them.")] = None,
    max_failures: limits.MaxFailures = None,
    fail_fast: limits.FailFast = False,
    at_most: limits.AtMost = None,
    deadline: limits.Deadline = None,
    on_stop: limits.OnStop = "keep",
    after: limits.After = None,
    after_batch: limits.AfterBatch = None,
    queue: options.Queue = None,
    priority: options.Priority = None,
    require: options.RequiresOfLines = None,
    file_option: options.Files = None,
    artifact: options.Artifacts = None,
    save: options.SaveAll = None,
    idempotent: options.Idempotent = False,
    has_ids: options.Ids = False,
    is_quiet: options.Quiet = False,
    on_done: options.OnDone = "",
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with the ids.")] = False,
) -> None:
    """Queue a file of jobs; the whole file is checked before the first is queued."""
    from sandfleet.cli.submit import SpecSource, SubmitOptions, read_specs, submit_specs

    _refuse_alone(wait, "--wait", **{"--out": out, "--save": save})
    _refuse_alone(batch, "--batch", **{"--idempotent": idempotent or None, "--on-done": on_done or None})
    _refuse_alone(out != "-", "another --out than -", **{"--ids": has_ids or None})
    bounds = limits.read_limits(
        batch, on_stop, max_failures=max_failures, fail_fast=fail_fast, at_most=at_most, deadline=deadline
    )
    how = SubmitOptions(batch, _check_queue(queue), idempotent, has_ids, is_quiet, save, bounds, on_done)
    with Fleet() as fleet:
        awaited, labels = limits.read_after(after, after_batch), typed.read_labels(require or [], "--require")
        defaults = typed.drop_unset(priority=priority, requires=labels or None, after=awaited)
        specs = read_specs(fleet, SpecSource(file, defaults, file_option or (), artifact or ()))
        raise typer.Exit(submit_specs(fleet, specs, how, is_waited=wait, out=out, is_json=is_json))


def _refuse_alone(needed: object, name: str, **given: object) -> None:
    """Refuse the options that were `given` without the one that they need."""
    for option, value in given.items():
        if value is not None and not needed:
            raise typer.BadParameter(f"needs {name}", param_hint=option)


def _check_queue(name: str | None) -> str | None:
    try:
        return name and check_queue(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--queue") from None


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

    with Fleet() as fleet:
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
    """Show a job, ended or not: where it is, why it waits, its runs, its outcome and output, and what to do next."""
    from sandfleet.cli.job_view import show_job

    with Fleet() as fleet:
        show_job(fleet, job_id, run, is_json=is_json)


@app.command()
def artifacts(
    job_id: Annotated[str | None, typer.Argument(metavar="ID")] = None,
    *,
    batch: Annotated[str | None, typer.Option(help="All jobs of a batch that have ended, instead of one job.")] = None,
    save: options.Save = None,
    overwrite: options.Overwrite = False,
    run: Annotated[int | None, typer.Option(min=1, help="Of an earlier run of the job.")] = None,
    is_json: Annotated[bool, typer.Option("--json", help="Print JSON; of a batch one object a job.")] = False,
) -> None:
    """List the files that a job left (path, bytes, sha256), or save them; exits 1 if any is lost or not saved."""
    from sandfleet.cli.artifacts import SaveOptions, show_batch, show_job

    if (job_id is None) == (batch is None):
        raise typer.BadParameter("give a job's id, or --batch NAME")
    if overwrite and save is None:
        raise typer.BadParameter("needs --save", param_hint="--overwrite")
    if run is not None and job_id is None:
        raise typer.BadParameter("needs a job's id", param_hint="--run")
    how = SaveOptions(save, overwrite)
    with Fleet() as fleet:
        if job_id is not None:
            raise typer.Exit(show_job(fleet, job_id, run, how, is_json=is_json))
        raise typer.Exit(show_batch(fleet, batch or "", how, is_json=is_json))


@app.command()
def cancel(job_ids: Annotated[list[str], typer.Argument(metavar="ID...")]) -> None:
    """Cancel jobs, queued or running; says of each what that did."""
    exit_code = 0
    with Fleet() as fleet:
        for job_id in job_ids:
            try:
                print(f"{job_id}\t{fleet.job(job_id).cancel()}")
            except JobUnknown as error:
                note(str(error))
                exit_code = exits.SOME_NOT_OK
    raise typer.Exit(exit_code)


def main(argv: list[str] | None = None) -> int:
    """Run the command; every error is one line and an exit code, never a traceback."""
    words = sys.argv[1:] if argv is None else argv
    usage = exits.OUR_FAILURE if words[:1] == ["run"] else exits.USAGE
    try:
        status = app(args=argv, prog_name="sandfleet", standalone_mode=False)
    except typer.TyperException as error:
        if is_help(error):
            print(error.format_message(), file=sys.stderr)
            return exits.USAGE
        note(describe_usage_error(error, OTHER_OPTIONS))
        return usage
    except RequestError as error:  # what was typed, or what it names, cannot be
        note(str(error))
        return usage
    except SandboxError as error:
        note(str(error))
        return exits.OUR_FAILURE
    except (FleetUnavailable, SettingsInvalid, StoreError) as error:
        note(str(error))
        return exits.OUR_FAILURE
    except FleetError as error:
        note(str(error))
        return exits.SOME_NOT_OK
    except (KeyboardInterrupt, typer.Abort):
        return exits.INTERRUPTED
    except SystemExit as end:
        # typer's exit code 1 for a closed stdout could pass for the program's own.
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        return exits.SIGNAL_BASE + signal.SIGPIPE
    except OSError as error:
        note(str(error) if error.filename is None else f"{error.filename}: {error.strerror}")
        return usage
    except UnicodeError as error:
        note(str(error))
        return usage
    return status if isinstance(status, int) else 0
