"""The ``sandfleet`` command: ``run``, ``submit``, ``show``, ``wait``, ``cancel``, ``batch``, ``dead``.

Exit codes of ``run``: the program's own; 124 timeout, 125 our failure or bad usage (as docker), 126 not executable,
127 not found, 128+N signal, 137 out of memory, 130 cancelled. Of the others: 0; 1 a job not OK or not known; 2 bad usage or a
bad file; 124 the wait's own timeout; 125 the fleet is out of reach; 130 Ctrl-C.
"""

from __future__ import annotations

import json
import signal
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from sandfleet_config.errors import SandboxError
from sandfleet_config.queues import check_queue
from sandfleet_config.settings import SettingsInvalid
from sandfleet_config.usage import is_help, word_usage

from sandfleet.cli import batch as batch_commands
from sandfleet.cli import dead as dead_commands
from sandfleet.cli import exits
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
app.add_typer(batch_commands.app, name="batch")
app.add_typer(dead_commands.app, name="dead")

QueueOption = Annotated[str | None, typer.Option(help="The queue; default SANDFLEET_QUEUE. Queues take turns.")]
PriorityOption = Annotated[int | None, typer.Option(help="0 (first) to 9; default 6.")]


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
    command: Annotated[
        list[str] | None, typer.Argument(metavar="[--] COMMAND [ARG]", help="Default: the image's own.")
    ] = None,
    *,
    image: Annotated[str, typer.Option(help="The image to run in.")] = "python",
    timeout: Annotated[float, typer.Option(help="Seconds until SIGTERM; 0 is 30.")] = 0.0,
    grace: Annotated[float | None, typer.Option(help="Seconds from SIGTERM to the kill; default 5.")] = None,
    memory: Annotated[str, typer.Option(help="Such as 256MiB; 0 is the host's ceiling.")] = "0",
    cpu: Annotated[float, typer.Option(help="Cores, such as 0.5; 0 is the host's ceiling.")] = 0.0,
    pids: Annotated[int, typer.Option(help="Processes and threads; 0 is the host's ceiling.")] = 0,
    disk: Annotated[str, typer.Option(help="Such as 64MiB; 0 is the host's ceiling.")] = "0",
    env: Annotated[
        list[str] | None, typer.Option("--env", "-e", help="KEY=VALUE, or KEY from here; repeatable.")
    ] = None,
    workdir: Annotated[str, typer.Option("--workdir", "-w", help="Absolute path in the image.")] = "",
    user: Annotated[str, typer.Option("--user", "-u", help="name, uid, name:group or uid:gid.")] = "",
    label: Annotated[list[str] | None, typer.Option("--label", "-l", help="key=value; repeatable.")] = None,
    require: Annotated[
        list[str] | None, typer.Option(help="A label that the host must have, key=value; repeatable.")
    ] = None,
    writable: Annotated[bool, typer.Option("--writable", help="A writable root file system.")] = False,
    max_output: Annotated[str | None, typer.Option(help="Bytes kept a stream, such as 1MiB; default 64KiB.")] = None,
    keep: Annotated[str, typer.Option(help="head, tail or both.")] = "head",
    on_output_limit: Annotated[str, typer.Option(help="truncate or kill.")] = "truncate",
    stdin: Annotated[
        bool, typer.Option("--stdin", "-i", help="Send stdin to its end first; else it is empty.")
    ] = False,
    queue: QueueOption = None,
    priority: PriorityOption = None,
    queue_ttl: Annotated[
        float | None, typer.Option(help="Seconds until it expires in the queue; default 1 day.")
    ] = None,
    max_attempts: Annotated[int | None, typer.Option(help="Charged starts at most; 1 is one start; default 3.")] = None,
    key: Annotated[str, typer.Option("--idempotency-key", help="The same key and spec are the same job.")] = "",
    is_json: Annotated[bool, typer.Option("--json", help="Print the outcome instead of the output.")] = False,
) -> None:
    """Run one command in a fresh sandbox, print its output and exit with its code. Ctrl-C cancels it."""
    from sandfleet.cli.run import read_cores, read_env, read_labels, read_stdin, run_job

    with Fleet() as fleet:
        fields: dict[str, Any] = {
            "image": image,
            "command": command or [],
            "working_dir": workdir,
            "env": read_env(env or []),
            "resources": {
                "memory_bytes": memory,
                "cpu_quota": read_cores(cpu),
                "pids_limit": pids,
                "disk_bytes": disk,
            },
            "security": {"user": user, "read_only_rootfs": not writable},
            "timeout": timeout,
            "labels": read_labels(label or []),
            "requires": read_labels(require or [], "--require"),
            "output": {"keep": keep, "on_limit": on_output_limit} | ({"max_bytes": max_output} if max_output else {}),
        }
        given = {"grace": grace, "priority": priority, "queue_ttl": queue_ttl, "max_attempts": max_attempts}
        fields |= {name: value for name, value in given.items() if value is not None} | {"idempotency_key": key}
        if stdin:
            fields["stdin"] = read_stdin(fleet.settings.max_spec_bytes)
        raise typer.Exit(run_job(fleet, fields, queue=_check_queue(queue), is_json=is_json))


@app.command()
def submit(
    file: Annotated[str, typer.Argument(help="One JSON spec a line; - is stdin.")],
    *,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for all of them, then sum up.")] = False,
    out: Annotated[str | None, typer.Option(help="Append outcomes as JSON lines; - is stdout.")] = None,
    batch: Annotated[str | None, typer.Option(help="A name for all of them.")] = None,
    queue: QueueOption = None,
    priority: PriorityOption = None,
    require: Annotated[
        list[str] | None, typer.Option(help="As of run, for lines without `requires`; repeatable.")
    ] = None,
    idempotent: Annotated[
        bool, typer.Option("--idempotent", help="Queue only what an earlier call with this file and --batch did not.")
    ] = False,
    is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of ids.")] = False,
) -> None:
    """Queue a file of jobs; the whole file is checked before the first is queued. Prints job ids, one a line."""
    from sandfleet.cli.run import read_labels
    from sandfleet.cli.submit import SubmitOptions, read_specs, submit_specs

    if out is not None and not wait:
        raise typer.BadParameter("needs --wait", param_hint="--out")
    if idempotent and not batch:
        raise typer.BadParameter("needs --batch", param_hint="--idempotent")
    options = SubmitOptions(batch=batch, queue=_check_queue(queue), is_idempotent=idempotent)
    with Fleet() as fleet:
        given = {"priority": priority, "requires": read_labels(require or [], "--require") or None}
        defaults = {name: value for name, value in given.items() if value is not None}
        specs = read_specs(file, fleet.settings.max_spec_bytes, defaults)
        if not specs:
            raise typer.Exit(exits.USAGE)
        raise typer.Exit(submit_specs(fleet, specs, options, is_waited=wait, out=out, is_json=is_json))


def _check_queue(name: str | None) -> str | None:
    try:
        return name and check_queue(name)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--queue") from None


@app.command()
def wait(
    job_ids: Annotated[list[str] | None, typer.Argument(metavar="[ID]...")] = None,
    file: Annotated[str | None, typer.Option(help="Job ids, one a line; - is stdin.")] = None,
    out: Annotated[str | None, typer.Option(help="Append outcomes as JSON lines; - is stdout.")] = None,
    timeout: Annotated[float | None, typer.Option(help="Seconds to wait; the jobs go on.")] = None,
) -> None:
    """Wait for jobs and sum up; exits 1 if any was not OK. Ctrl-C only stops waiting."""
    from sandfleet.cli.submit import wait_for

    with Fleet() as fleet:
        raise typer.Exit(wait_for(fleet, job_ids or [], file=file, out=out, timeout=timeout))


@app.command()
def show(
    job_id: Annotated[str, typer.Argument(metavar="ID")],
    *,
    run: Annotated[int | None, typer.Option(min=1, help="An earlier run of a job that was run again.")] = None,
    is_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Show a job: its newest run's outcome and output if that has ended."""
    from sandfleet.cli.show import outcome_lines, print_lines, print_stream, record_lines

    with Fleet() as fleet:
        job = fleet.job(job_id)
        if run is not None or job.is_done:
            outcome = job.outcome(None if run is None else 0, run=run)
            if is_json:
                print(json.dumps(outcome.to_json(), indent=2))
                return
            print_lines(outcome_lines(outcome))
            print_stream("stdout", outcome.stdout)
            print_stream("stderr", outcome.stderr)
        elif (record := fleet.record(job_id)) is not None:
            if is_json:
                print(json.dumps({"job_id": job_id, "code": None, **record.model_dump()}, indent=2))
                return
            print_lines(record_lines(job_id, record))
            if record.state == "queued" and (why := fleet.explain_no_claims()):
                print_lines([("waits", why)])


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
    try:
        status = app(args=argv, prog_name="sandfleet", standalone_mode=False)
    except typer.TyperException as error:
        if is_help(error):
            print(error.format_message(), file=sys.stderr)
            return exits.USAGE
        note(word_usage(error, OTHER_OPTIONS))
        words = sys.argv[1:] if argv is None else argv
        return exits.OUR_FAILURE if words[:1] == ["run"] else exits.USAGE
    except SandboxError as error:
        note(str(error))
        return exits.OUR_FAILURE
    except (FleetUnavailable, SettingsInvalid) as error:
        note(str(error))
        return exits.OUR_FAILURE
    except FleetError as error:
        note(str(error))
        return exits.SOME_NOT_OK
    except (KeyboardInterrupt, typer.Abort):
        return exits.INTERRUPTED
    except SystemExit as end:
        # typer ends so where whoever read our output has gone; its 1 could pass for the program's own exit.
        if not isinstance(end.__context__, BrokenPipeError):
            raise
        return exits.SIGNAL_BASE + signal.SIGPIPE
    except OSError as error:
        note(str(error) if error.filename is None else f"{error.filename}: {error.strerror}")
        return exits.USAGE
    except UnicodeError as error:
        note(str(error))
        return exits.USAGE
    return status if isinstance(status, int) else 0
