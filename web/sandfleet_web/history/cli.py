"""``sandfleet-web history``: write the history alone, look after its file, and export it."""

from __future__ import annotations

import json
import signal
from contextlib import closing, contextmanager
from importlib.metadata import version
from typing import TYPE_CHECKING, Annotated

import typer
from sandfleet.errors import FleetError
from sandfleet_config.units import format_count

from sandfleet_web.command_line import print_known_errors, read_settings

if TYPE_CHECKING:
    from collections.abc import Generator

    from sandfleet_config.web_settings import WebSettings

app = typer.Typer(no_args_is_help=True, help="Write the history of ended runs, look after its file, export it.")


@app.command()
def run() -> None:
    """Write the history until SIGTERM; where another process writes it, wait for that one's end.

    `sandfleet-web serve` does so, too.
    """
    from sandfleet_config.logs import set_up_handler

    from sandfleet_web.history.writer import HistoryWriter

    settings = _read_settings()
    set_up_handler(settings.log_format, settings.log_level, "sandfleet-web", version("sandfleet-web"))
    writer = HistoryWriter(settings)

    def stop(*_: object) -> None:
        writer.ask_to_stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    writer.run()


@app.command()
def status(*, is_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False) -> None:
    """Show how old and how complete the history is; exit 1 if something is wrong with it."""
    from sandfleet.history.fields import status_fields
    from sandfleet.history.file_history import FileHistory

    file = _read_settings().history_file
    with closing(FileHistory(file)) as history, print_known_errors(), _known_errors():
        found = history.status()
    fields = {"file": str(file), **status_fields(found)}
    if is_json:
        print(json.dumps(fields))
    else:
        for name, value in fields.items():
            print(f"{name}\t{ascii(value)[1:-1] if isinstance(value, str) else value}")
    if found.fault:
        raise typer.Exit(1)


@app.command()
def prune() -> None:
    """Delete now what is too old or too many, as the writer does every 10 s."""
    from sandfleet_web.history.schema import open_for_writing
    from sandfleet_web.history.store import HistoryStore
    from sandfleet_web.history.writer import prune_once

    settings = _read_settings()
    kept = settings.web.history
    if not settings.history_file.exists():
        raise typer.BadParameter(f"there is no history at {settings.history_file}")
    with print_known_errors(), _known_errors(), closing(HistoryStore(open_for_writing(settings.history_file))) as store:
        before = store.read_position().rows
        while prune_once(store, kept):
            pass
        after = store.read_position().rows
    print(f"{format_count(before - after, 'run')} deleted, {after} kept")


@app.command()
def forget(
    batch: Annotated[str, typer.Argument(metavar="BATCH")],
) -> None:
    """Delete the runs of a batch that have ended by now, also where Redis has nothing of it any more.

    `sandfleet batch forget` does so, too, for a batch that Redis has.
    """
    from sandfleet.channel.redis_channel import RedisChannel

    with print_known_errors():
        channel = RedisChannel(_read_settings())
        if channel.read_batch(batch).total:
            raise typer.BadParameter(
                f"Redis has jobs of batch {ascii(batch)[1:-1]}: sandfleet batch forget deletes them, too"
            )
        for _ in channel.forget_batch(batch):
            pass
    print(f"{ascii(batch)[1:-1]} is forgotten: the writer of the history deletes its runs")


@app.command()
def export(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORD]...", help="A filter, such as batch:nightly code:TIMEOUT since:2d."),
    ] = None,
) -> None:
    """Print the runs that match as JSON lines, the newest end first."""
    from sandfleet.history.fields import run_fields
    from sandfleet.history.file_history import FileHistory
    from sandfleet.history.words import WordsInvalid, parse_words

    try:
        wanted = parse_words(" ".join(words or ())).wanted
    except WordsInvalid as error:
        raise typer.BadParameter(str(error)) from None
    with closing(FileHistory(_read_settings().history_file)) as history, print_known_errors(), _known_errors():
        for found in history.export_runs(wanted):
            print(json.dumps(run_fields(found)))


def _read_settings() -> WebSettings:
    with print_known_errors():
        return read_settings()


@contextmanager
def _known_errors() -> Generator[None]:
    """Turn errors of the file into those that commands tell."""
    import sqlite3

    from sandfleet_web.history.schema import NewerFile

    try:
        yield
    except (sqlite3.Error, NewerFile) as error:
        raise FleetError(f"the history: {error}") from error
