"""The commands `sandfleet-worker datasets add|list|rm|gc|verify`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sandfleet_config.terminal import write_line
from sandfleet_config.units import format_bytes, format_count

from sandfleet_worker.commands.images import SHORT_DIGEST_CHARS, Json, verify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet_config.settings import WorkerSettings

    from sandfleet_worker.commands.images import Guard, Read
    from sandfleet_worker.sandbox.image.datasets import DatasetStore
    from sandfleet_worker.sandbox.image.image import Image


def register(app: typer.Typer, read_settings: Read, guard: Guard) -> None:
    """Add the commands to `app`; `guard` turns known errors into one line and exit code 1."""
    _register_changes(app, read_settings, guard)
    _register_listing(app, read_settings, guard)


def _open(settings: WorkerSettings) -> DatasetStore:
    from sandfleet_worker.sandbox.image.datasets import DatasetStore

    return DatasetStore(settings.images.root)


def _register_changes(app: typer.Typer, read_settings: Read, guard: Guard) -> None:
    @app.command("add")
    def add_dataset(
        name: Annotated[str, typer.Argument(help="Jobs find it as /data/NAME.")],
        source: Annotated[Path, typer.Argument(help="A folder, or a tar (plain, gz, bz2, xz or zst).")],
    ) -> None:
        """Add or replace the dataset NAME; jobs that use the old one now keep it."""
        with guard():
            dataset = _open(read_settings()).add(name, source, write_line)
        print(f"{dataset.name} {dataset.digest}")

    @app.command("rm")
    def remove_dataset(name: Annotated[str, typer.Argument(help="A name, or a digest.")]) -> None:
        """Remove the dataset NAME; refused while a job uses it."""
        with guard():
            _open(read_settings()).remove(name)
        print(f"removed {name}")

    @app.command("gc")
    def collect_garbage() -> None:
        """Remove what killed adds left, and datasets that have lost their names, but those in use.

        `add` takes the name from an older dataset. Jobs that name one by its digest need it still.
        """
        with guard():
            gone = _open(read_settings()).collect()
        for digest in gone:
            print(f"removed {digest}")
        print(f"{format_count(len(gone), 'dataset')} removed")


def _register_listing(app: typer.Typer, read_settings: Read, guard: Guard) -> None:
    @app.command("list")
    def list_datasets(*, as_json: Json = False) -> None:
        """List the datasets on this host."""
        with guard():
            found = _open(read_settings()).list()
        if as_json:
            print(json.dumps([describe(dataset) for dataset in found], indent=1))
        elif found:
            _print_table(found)
        else:
            write_line("there are no datasets here: sandfleet-worker datasets add NAME FOLDER")

    @app.command("verify")
    def verify_datasets() -> None:
        """Read all datasets whole and compare them with what was packed.

        Exit 1 if one was changed.
        """
        with guard():
            store = _open(read_settings())
            found, damaged = store.list_with_damaged()
            verify(store, found, damaged)
        print(f"{format_count(len(found), 'dataset is as it was', 'datasets are as they were')} packed")


def describe(dataset: Image) -> dict[str, Any]:
    """Return what people ask about a dataset, as plain data."""
    fields = {"name", "digest", "erofs_path", "size_bytes", "erofs_sha256", "created", "source"}
    return dataset.model_dump(mode="json", include=fields)


def _print_table(found: Sequence[Image]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "digest", "size", "added", "source")
    for dataset in found:
        size, added = format_bytes(dataset.size_bytes), f"{dataset.created:%Y-%m-%d %H:%M}"
        table.add_row(dataset.name, dataset.digest[:SHORT_DIGEST_CHARS], size, added, dataset.source)
    Console().print(table)
