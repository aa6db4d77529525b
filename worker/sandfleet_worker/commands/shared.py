"""The commands `sandfleet-worker images push|unshare` and `images list --shared`."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer
from sandfleet_config.terminal import write_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from sandfleet_config.settings import WorkerSettings

    from sandfleet_worker.shared_images import FleetImages

    Guard = Callable[[], AbstractContextManager[None]]

Name = Annotated[str, typer.Argument(help="A name as `images list` shows it.")]


@contextmanager
def _open(settings: WorkerSettings) -> Iterator[FleetImages]:
    from contextlib import closing

    import redis
    from sandfleet_config.errors import ImageUnavailable

    from sandfleet_worker.host import connect
    from sandfleet_worker.shared_images import FleetImages

    with closing(FleetImages(settings, connect(settings))) as shared:
        try:
            yield shared
        except redis.RedisError as error:
            raise ImageUnavailable.of(f"redis: {settings.redis_address}: {error}") from error


def register(images: typer.Typer, read_settings: Callable[[], WorkerSettings], guard: Guard) -> None:
    """Add the commands to `sandfleet-worker images`; `guard` prints errors that people can mend."""

    @images.command("push")
    def push_image(name: Name) -> None:
        """Put the image NAME into the fleet's store.

        Hosts that list it in SANDFLEET_IMAGES__SHARED take it from there.
        """
        from sandfleet_config.units import format_bytes

        from sandfleet_worker.sandbox.image.store import ImageStore

        with guard():
            settings = read_settings()
            with _open(settings) as shared:
                pushed = shared.push(ImageStore(settings.images.root), name)
        size = (
            f"uploaded {format_bytes(pushed.uploaded_bytes)}" if pushed.uploaded_bytes else "was in the store already"
        )
        write_line(size)
        if pushed.here != pushed.digest:
            text = f"on this host, {pushed.name} means {pushed.here} now: push it again to share that one"
            write_line(text)
        print(f"{pushed.name} {pushed.digest}")  # noqa: T201

    @images.command("unshare")
    def unshare_image(name: Name) -> None:
        """Share the image NAME no more.

        Hosts that have it keep it for a while; the store does for a day.
        """
        from sandfleet_config.errors import ImageNotFound

        with guard(), _open(read_settings()) as shared:
            if not shared.unshare(name):
                raise ImageNotFound.of(f"no image {name[:200]} is shared: see `sandfleet-worker images list --shared`")
        print(f"{name} is shared no more")  # noqa: T201


def list_shared(settings: WorkerSettings, *, as_json: bool) -> None:
    """Print the names that the fleet shares, and whether this host takes them."""
    from sandfleet_worker.sandbox.image.store import ImageStore

    with _open(settings) as shared:
        found = shared.list_names()
        takes = {name: shared.can_take(name, digest) for name, digest in found.items()}
    here = ImageStore(settings.images.root).list_references()
    if as_json:
        rows = [
            {"name": name, "digest": digest, "is_here": digest in here, "is_taken": takes[name]}
            for name, digest in found.items()
        ]
        print(json.dumps(rows, indent=1))  # noqa: T201
        return
    if not found:
        write_line("no image is shared: sandfleet-worker images push NAME")
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "digest", "here", "taken by this host (SANDFLEET_IMAGES__SHARED)")
    for name, digest in found.items():
        table.add_row(name, digest, "yes" if digest in here else "no", "yes" if takes[name] else "no")
    Console().print(table)
