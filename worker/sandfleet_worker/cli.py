"""``sandfleet-worker``: the commands on the machine of a worker.

Start a worker, run the whole product on one machine, look after images and the host.
"""

from __future__ import annotations

import logging
import os
import sys
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from pydantic import ValidationError
from sandfleet_config.collector import pause_collector, resume_collector, skip_last_collection
from sandfleet_config.command_line import describe_usage_error, is_help
from sandfleet_config.environment import check_environment, describe_settings_faults
from sandfleet_config.errors import SandboxError
from sandfleet_config.settings import SettingsInvalid, WorkerSettings
from sandfleet_config.telemetry import skip_redis_telemetry
from sandfleet_config.terminal import write_line
from sandfleet_config.units import format_count

from sandfleet_worker.commands.datasets import register as register_datasets
from sandfleet_worker.commands.images import register as register_images
from sandfleet_worker.commands.preparations import register as register_preparations
from sandfleet_worker.commands.recipes import register as register_recipes
from sandfleet_worker.commands.shared import register as register_shared

if TYPE_CHECKING:
    from collections.abc import Iterator

cli = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)
images = typer.Typer(no_args_is_help=True, help="Images on this host.")
cli.add_typer(images, name="images")
datasets = typer.Typer(no_args_is_help=True, help="Datasets on this host: read-only folders that many jobs share.")
cli.add_typer(datasets, name="datasets")

Concurrency = Annotated[
    int | None, typer.Option(min=1, help="Sandboxes at once on this host, all its workers together.")
]


def _print_version(is_wanted: bool) -> None:  # noqa: FBT001  typer calls it
    if is_wanted:
        print(f"sandfleet-worker {version('sandfleet-worker')}")
        raise typer.Exit


@cli.callback()
def _options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Start a worker, run everything on one machine, look after images and the host."""


@contextmanager
def _print_known_errors() -> Iterator[None]:
    """Turn the errors people can mend into one red sentence and exit code 1.

    Anything else is a bug and keeps its traceback.
    """
    from sandfleet_worker.commands.failures import LocalFailed, PreflightFailed

    resume_collector()  # each command has imported what it needs
    try:
        yield
    except (PreflightFailed, LocalFailed, SettingsInvalid, SandboxError) as error:
        _fail(str(error))
    except ValidationError as error:
        _fail(describe_settings_faults(error))
    except OSError as error:
        if error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}")


def _fail(text: str) -> NoReturn:
    _print_error(text)
    raise typer.Exit(1) from None


def _print_error(text: str) -> None:
    from sandfleet_config.logs import is_json

    if is_json():
        logging.getLogger(__name__).critical("%s", text, extra={"action": "start_failed"})
        return
    from rich.console import Console

    Console(stderr=True).print(f"error: {text}", style="red", markup=False, highlight=False, soft_wrap=True)


FOREIGN_SETTINGS = ("CELERY_BROKER_URL", "CELERY_BROKER_READ_URL", "CELERY_BROKER_WRITE_URL", "CELERY_RESULT_BACKEND")
"""Celery reads these before our one setting.

They belong to another application of this environment.
"""


def _read_settings(
    concurrency: int | None = None, queue: str | None = None, processes: str | None = None
) -> WorkerSettings:
    check_environment()
    for name in FOREIGN_SETTINGS:
        os.environ.pop(name, None)
    given = {"concurrency": concurrency, "queue": queue, "processes": processes}
    return WorkerSettings(**{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]


@cli.command()
def start(
    concurrency: Concurrency = None,
    queue: Annotated[str | None, typer.Option(help="The queue to take jobs from.")] = None,
    processes: Annotated[
        str | None,
        typer.Option(
            metavar="N|auto",
            help="Worker processes, for hosts with many cores; auto: one for each 12 cores.",
        ),
    ] = None,
) -> None:
    """Take jobs until SIGTERM (finish what runs) or SIGQUIT (give it back to the queue)."""
    with _print_known_errors():
        settings = _read_settings(concurrency, queue, processes)
        if settings.process_count > 1:
            from sandfleet_worker.commands.supervise import supervise

            code = supervise(settings)
        else:
            from sandfleet_worker.commands.start import serve

            code = serve(settings)
    raise typer.Exit(code)


@cli.command(hidden=True)
def process(number: int, ready_fd: Annotated[int, typer.Option()] = -1) -> None:
    """Run one of the processes of `start`, which starts it; 0 does the preflight."""
    from sandfleet_worker.commands.supervise import run_process

    with _print_known_errors():
        code = run_process(_read_settings(), number, ready_fd)
    raise typer.Exit(code)


@cli.command()
def local(
    concurrency: Concurrency = None,
    flower: Annotated[bool, typer.Option(help="Start Flower, the page to watch jobs.")] = True,  # noqa: FBT002
    flower_port: Annotated[int, typer.Option(help="Flower's port; a free one where it is taken.")] = 5555,
    demo: Annotated[bool, typer.Option("--demo", help="Submit a batch, to have something to look at.")] = False,  # noqa: FBT002
) -> None:
    """Run everything on this machine: a private Redis, one worker, and Flower with the pages in it.

    Ctrl-C ends it; queued jobs are kept.
    """
    from sandfleet_worker.commands.local import run_local

    with _print_known_errors():
        code = run_local(_read_settings(concurrency), flower_port if flower else None, has_demo=demo)
    raise typer.Exit(code)


@cli.command()
def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:  # noqa: FBT002
    """Say what this host can and cannot do, with the fix; exit 1 if jobs cannot run."""
    from rich.console import Console

    from sandfleet_worker.commands.doctor import report

    with _print_known_errors():
        is_able = report(_read_settings(), Console(), as_json=json)
    raise typer.Exit(0 if is_able else 1)


@cli.command()
def clean() -> None:
    """Remove what killed workers left: processes, mounts, cgroups, folders.

    Safe beside live workers.
    """
    from sandfleet_worker.files.spool import remove_dead_spools
    from sandfleet_worker.sandbox.runner import RunscRunner

    with _print_known_errors():
        settings = _read_settings()
        with RunscRunner(settings) as runner:
            swept = runner.sweep()
        remove_dead_spools(settings.files.spool_dir)
    sandboxes = format_count(swept.sandboxes, "sandbox", "sandboxes")
    processes = format_count(swept.processes, "process", "processes")
    print(f"removed {sandboxes} and {processes} of {format_count(swept.owners, 'dead worker')}")


@images.command("add")
def add_image(
    name: str,
    source: Annotated[
        str,
        typer.Argument(
            help="rootfs:FOLDER, rootfs:FILE.tar[.gz|.xz|.zst] or oci:LAYOUT[:TAG]; empty: a starter image."
        ),
    ] = "",
) -> None:
    """Add or replace the image NAME."""
    from sandfleet_worker.sandbox.image.store import ImageStore

    with _print_known_errors():
        image = ImageStore(_read_settings().images.root).add(name, source or None)
    print(f"{image.name} {image.digest}")


register_images(images, _read_settings, _print_known_errors)


register_recipes(images, _read_settings, _print_known_errors)
register_preparations(images, _read_settings, _print_known_errors)
register_datasets(datasets, _read_settings, _print_known_errors)


register_shared(images, _read_settings, _print_known_errors)


def main(argv: list[str] | None = None) -> NoReturn:
    """Run the command line and exit; a wrong one is one line and exit code 2."""
    sys.argv[0] = Path(sys.argv[0]).name
    is_program = argv is None
    if is_program:
        pause_collector()
        skip_redis_telemetry()
    try:
        status = cli(args=argv, prog_name="sandfleet-worker", standalone_mode=False)
    except typer.Abort:
        sys.exit(1)
    except typer.TyperException as error:
        if is_help(error):
            write_line(error.format_message())
        else:
            _print_error(describe_usage_error(error, {}))
        sys.exit(2)
    finally:
        if is_program:
            resume_collector()
            skip_last_collection()
    sys.exit(status if isinstance(status, int) else 0)


if __name__ == "__main__":
    main()
