"""The commands `sandfleet-worker images list|pull|inspect|rm|gc|verify`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer
from sandfleet_config.errors import ImageInvalid, SandboxError
from sandfleet_config.image_names import REGISTRY_PREFIX
from sandfleet_config.terminal import write_line
from sandfleet_config.units import format_bytes, format_count

from sandfleet_worker.commands.preparations import open_preparations
from sandfleet_worker.commands.shared import list_shared

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from sandfleet_config.settings import WorkerSettings

    from sandfleet_worker.sandbox.image.finder import ImageFinder
    from sandfleet_worker.sandbox.image.image import Image
    from sandfleet_worker.sandbox.image.store import ImageStore
    from sandfleet_worker.sandbox.prepared.registry import Registered

    Guard = Callable[[], AbstractContextManager[None]]
    Read = Callable[[], WorkerSettings]

SHORT_DIGEST_CHARS = len("sha256:") + 12
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(help="A name as `images list` shows it, or a digest.")]


def register(app: typer.Typer, read_settings: Read, guard: Guard) -> None:
    """Add the commands to `app`; `guard` turns known errors into one line and exit code 1."""
    _register_listing(app, read_settings, guard)
    _register_changes(app, read_settings, guard)


def _open(settings: WorkerSettings) -> tuple[ImageStore, ImageFinder]:
    from sandfleet_worker.sandbox.image.finder import ImageFinder
    from sandfleet_worker.sandbox.image.store import ImageStore

    store = ImageStore(settings.images.root)
    return store, ImageFinder(store, settings.images)


def _register_listing(app: typer.Typer, read_settings: Read, guard: Guard) -> None:
    @app.command("list")
    def list_images(
        *,
        as_json: Json = False,
        shared: Annotated[bool, typer.Option("--shared", help="List those that the fleet shares instead.")] = False,
    ) -> None:
        """List the images on this host."""
        with guard():
            (list_shared if shared else _list_here)(read_settings(), as_json=as_json)

    @app.command("inspect")
    def inspect_image(name: Name) -> None:
        """Print what this host knows of an image, as JSON."""
        with guard():
            store, finder = _open(read_settings())
            image = store.resolve(name)
            evictable = {found.digest for found in finder.cache.list_evictable()}
            prepared = _list_preparations(read_settings())
        print(json.dumps(describe(image, prepared, is_evictable=image.digest in evictable), indent=1))

    @app.command("verify")
    def verify_images(
        names: Annotated[list[str] | None, typer.Argument(help="Names or digests; default: all images.")] = None,
    ) -> None:
        """Read images whole and compare them with what was packed; exit 1 if one was changed."""
        with guard():
            store, _ = _open(read_settings())
            found, damaged = ([store.resolve(name) for name in names], ()) if names else store.list_with_damaged()
            verify(store, found, damaged)
        print(f"{format_count(len(found), 'image is as it was', 'images are as they were')} packed")


def _list_here(settings: WorkerSettings, *, as_json: bool) -> None:
    store, finder = _open(settings)
    found = store.list()
    evictable = {image.digest for image in finder.cache.list_evictable()}
    prepared = _list_preparations(settings)
    if as_json:
        shown = [describe(image, prepared, is_evictable=image.digest in evictable) for image in found]
        print(json.dumps(shown, indent=1))
    elif found:
        _print_table(found, evictable, prepared)
    else:
        write_line("there are no images here: sandfleet-worker images add python")


class Verifier(Protocol):
    """A store of images or of datasets."""

    def verify(self, image: Image, /) -> None:
        """Raise ``ImageInvalid`` if its file is not what was packed."""


def verify(store: Verifier, found: Sequence[Image], damaged: Sequence[str]) -> None:
    """Read images or datasets whole; `damaged` is what is known to be wrong with others.

    Raises:
        ImageInvalid: with all that is wrong.
    """
    if faults := [*damaged, *(fault for image in found if (fault := _find_fault(store, image)))]:
        raise ImageInvalid.of("; ".join(faults))


def _find_fault(store: Verifier, image: Image) -> str:
    """Say why an image or a dataset is not as it was packed; empty if it is, or is gone."""
    try:
        store.verify(image)
    except SandboxError as error:
        return error.message
    except FileNotFoundError:
        return ""  # it was removed meanwhile
    return ""


def _register_changes(app: typer.Typer, read_settings: Read, guard: Guard) -> None:
    @app.command("pull")
    def pull_image(
        name: Annotated[str, typer.Argument(help="docker://[REGISTRY/]PATH[:TAG][@DIGEST]")],
    ) -> None:
        """Pull an image from its registry now, whatever `pull_from` says.

        It stays until it is removed.
        """
        with guard():
            _, finder = _open(read_settings())
            image = finder.pull(name)
        print(f"{image.name} {image.digest}")

    @app.command("rm")
    def remove_image(name: str) -> None:
        """Remove the image NAME; jobs that use it now keep it."""
        with guard():
            gone = remove(read_settings(), name)
        print(f"removed {name}{f' and {gone} of its preparations' if gone else ''}")

    @app.command("gc")
    def collect_garbage(
        *,
        everything: Annotated[bool, typer.Option("--all", help="Remove every pulled image that no job uses.")] = False,
    ) -> None:
        """Remove what killed pulls left, and pulled images past the bounds of this host.

        The least recently used images go first.
        """
        with guard():
            store, finder = _open(read_settings())
            store.sweep()
            gone = finder.cache.clear() if everything else finder.cache.shrink()
        for digest in gone:
            print(f"removed {digest}")
        print(f"{format_count(len(gone), 'image')} removed")


def remove(settings: WorkerSettings, name: str) -> int:
    """Remove an image, or a name of it, with the preparations of what is gone; return how many.

    Raises as `ImageStore.remove`.
    """
    store, _ = _open(settings)
    before = store.list_references()
    store.remove(name)
    try:
        return open_preparations(settings).forget(before - store.list_references())
    except ImageInvalid as error:  # the image is gone, and whatever names it does nothing
        write_line(f"its preparations stay in the list: {error.message}")
        return 0


def _list_preparations(settings: WorkerSettings) -> Sequence[Registered]:
    """Return the preparations of this host; none if the list cannot be used, which stderr tells."""
    try:
        return open_preparations(settings).list_all()
    except ImageInvalid as error:
        write_line(f"no preparation is used: {error.message}")
        return ()


def _find_prepared(image: Image, prepared: Sequence[Registered]) -> Sequence[Registered]:
    names = {image.name.partition("@")[0], image.digest}
    if image.source.startswith(REGISTRY_PREFIX):
        names.add(image.source.partition("@")[0])
    return [entry for entry in prepared if entry.image in names]


def describe(image: Image, prepared: Sequence[Registered] = (), *, is_evictable: bool) -> dict[str, Any]:
    """Return what people ask about an image, as plain data; `prepared` are all of the host."""
    fields = image.model_dump(mode="json", exclude={"users", "groups", "directories", "format"})
    own = [entry.model_dump(mode="json", exclude={"image"}) for entry in _find_prepared(image, prepared)]
    return fields | {"is_evictable": is_evictable, "preparations": own}


def _print_table(found: list[Image], evictable: set[str], prepared: Sequence[Registered]) -> None:
    """Print one image a line; one without a name here by that which it was pulled or fetched by."""
    from rich.console import Console
    from rich.table import Table

    from sandfleet_worker.sandbox.image.cache import is_pulled

    table = Table("name", "digest", "size", "added", "kept", "prepared")
    for image in found:
        kept = "while used" if image.digest in evictable else "always"
        size, added = format_bytes(image.size_bytes), f"{image.created:%Y-%m-%d %H:%M}"
        name = image.source if image.name == image.digest and is_pulled(image) else image.name
        as_names = ", ".join(entry.name for entry in _find_prepared(image, prepared)) or "-"
        table.add_row(name, image.digest[:SHORT_DIGEST_CHARS], size, added, kept, as_names)
    Console().print(table)
