"""``sandfleet store``: how full the store is, and delete what nothing refers to any more."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sandfleet_config.store.garbage import check_owner, collect_garbage
from sandfleet_config.store.opening import open_store
from sandfleet_config.units import format_bytes, format_count

from sandfleet.channel.connection import Connections
from sandfleet.cli.show import note, print_lines
from sandfleet.fleet import read_settings

if TYPE_CHECKING:
    from collections.abc import Generator

    import redis
    from sandfleet_config.store.garbage import Garbage
    from sandfleet_config.store.protocol import ObjectInfo, ObjectStore

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="See how full the store is, delete what no job refers to any more.",
)
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@contextmanager
def _open() -> Generator[tuple[ObjectStore, redis.Redis]]:
    """Open the fleet's store, and its Redis."""
    settings = read_settings()
    connections = Connections(settings)
    try:
        with connections.guard():
            store = open_store(settings, connections.redis)
            yield store, connections.redis
            store.close()
    finally:
        connections.close()


@app.command()
def usage(*, is_json: AsJson = False) -> None:
    """Show the number and the bytes of all objects, and how many of them `gc` would delete now."""
    with _open() as (store, client):
        found = collect_garbage(client, store, is_dry_run=True)
    total, size = found.objects + found.kept_objects, found.bytes + found.kept_bytes
    if is_json:
        shown = {"store": store.name, "objects": total, "bytes": size}
        print(json.dumps(shown | {"collectable_objects": found.objects, "collectable_bytes": found.bytes}, indent=2))
        return
    lines = [
        ("store", store.name),
        ("objects", _count(total, size)),
        ("collectable", _count(found.objects, found.bytes)),
    ]
    print_lines(lines)


@app.command()
def gc(
    *,
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Delete nothing; print what would be deleted: SHA-256, bytes, time.")
    ] = False,
    is_adopted: Annotated[
        bool, typer.Option("--adopt", help="Collect in a store of another fleet, which uses it no more.")
    ] = False,
    is_json: AsJson = False,
) -> None:
    """Delete objects a day after their last job has ended and its outcome has expired.

    An upload that no job refers to is deleted when it is a day old.
    """
    listed: list[dict[str, Any]] = []

    def tell(item: ObjectInfo) -> None:
        if is_json:
            listed.append({"sha256": item.sha256, "bytes": item.size, "modified": item.modified.isoformat()})
        elif is_dry_run:
            print(f"{item.sha256}\t{item.size}\t{item.modified.isoformat(timespec='seconds')}")

    with _open() as (store, client):
        if is_dry_run and not is_adopted:
            check_owner(client, store)
        found = collect_garbage(client, store, is_dry_run=is_dry_run, is_adopting=is_adopted, on_object=tell)
    if is_json:
        shown: dict[str, object] = {"store": store.name, "dry_run": is_dry_run, **asdict(found), "deleted": listed}
        print(json.dumps(shown, indent=2))
        return
    note(_describe(found, is_dry_run=is_dry_run))


def _describe(found: Garbage, *, is_dry_run: bool) -> str:
    did = "would delete" if is_dry_run else "deleted"
    more = f" and {found.leftovers} unfinished uploads" if found.leftovers else ""
    return f"{did} {_count(found.objects, found.bytes)}{more}; {_count(found.kept_objects, found.kept_bytes)} kept"


def _count(objects: int, size: int) -> str:
    return f"{format_count(objects, 'object')}, {format_bytes(size)}"
