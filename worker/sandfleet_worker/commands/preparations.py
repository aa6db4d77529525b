"""The commands `sandfleet-worker images prepare|unprepare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from sandfleet_config.settings import WorkerSettings

    from sandfleet_worker.sandbox.image.image import Image
    from sandfleet_worker.sandbox.prepared.preparation import Preparation, Tried
    from sandfleet_worker.sandbox.prepared.registry import Preparations

    Guard = Callable[[], AbstractContextManager[None]]
    Read = Callable[[], WorkerSettings]

ImageName = Annotated[str, typer.Argument(help="A name as `images list` shows it, or a digest.")]


def register(app: typer.Typer, read_settings: Read, guard: Guard) -> None:
    """Add the commands to `app`; `guard` turns known errors into one line and exit code 1."""

    @app.command("prepare")
    def prepare_image(
        image: ImageName,
        *,
        name: Annotated[str, typer.Option(help="Jobs name it: `prepared: NAME`.")],
        python_import: Annotated[
            list[str] | None, typer.Option(metavar="MODULES", help="Modules, in order: numpy,pandas; repeatable.")
        ] = None,
    ) -> None:
        """Let jobs of IMAGE start in a Python that has done these imports.

        It is tried once. Without --python-import only the interpreter is started ahead.
        """
        modules = [part.strip() for text in python_import or () for part in text.split(",") if part.strip()]
        with guard():
            told = prepare(read_settings(), image, name, tuple(modules))
        for line in told:
            print(line)  # noqa: T201

    @app.command("unprepare")
    def unprepare_image(
        image: ImageName, *, name: Annotated[str, typer.Option(help="The name of the preparation.")]
    ) -> None:
        """Prepare IMAGE so no more; jobs that name it start as without."""
        with guard():
            settings = read_settings()
            open_preparations(settings).remove(_find_name(settings, image), name)
        print(f"{image} is not prepared as {name} any more")  # noqa: T201


def open_preparations(settings: WorkerSettings) -> Preparations:
    """Return the preparations of this host."""
    from sandfleet_worker.sandbox.prepared.registry import Preparations

    return Preparations(settings.images.root, settings.prepared)


def _find_name(settings: WorkerSettings, name: str) -> str:
    """Return what the list of preparations calls an image, which may be gone by now."""
    from sandfleet_config.errors import ImageInvalid, ImageNotFound
    from sandfleet_config.image_names import normalize_image

    from sandfleet_worker.sandbox.image.store import ImageStore

    try:
        return ImageStore(settings.images.root).resolve(name).name.partition("@")[0]
    except (ImageInvalid, ImageNotFound):
        return normalize_image(name).partition("@")[0]


def prepare(settings: WorkerSettings, image_name: str, name: str, modules: tuple[str, ...]) -> Iterator[str]:
    """Try a preparation and add it to the list of the host; return what to tell.

    Raises:
        SandboxError: it cannot be one, or does not work; says why. Then nothing is added.
    """
    from sandfleet_config.errors import ImageInvalid

    from sandfleet_worker.sandbox.image.store import ImageStore
    from sandfleet_worker.sandbox.prepared.preparation import Preparation
    from sandfleet_worker.sandbox.prepared.registry import Registered, check

    check(name, modules)
    preparations = open_preparations(settings)
    image = ImageStore(settings.images.root).resolve(image_name)
    shown = image.name.partition("@")[0]
    if preparations.is_of_settings(shown, name):
        raise ImageInvalid.of(f"{name} of {shown} is of SANDFLEET_PREPARED__IMPORTS: change it there, or name another")
    tried = try_preparation(settings, image, Preparation(name, modules))
    preparations.add(
        Registered(
            image=shown,
            name=name,
            modules=modules,
            digest=image.digest,
            seconds=round(tried.seconds, 3),
            memory_bytes=tried.memory_bytes,
        )
    )
    return _describe(settings, shown, Preparation(name, modules), tried)


def _describe(settings: WorkerSettings, image: str, preparation: Preparation, tried: Tried) -> Iterator[str]:
    from sandfleet_config.units import format_bytes

    memory = f", {format_bytes(-(-tried.memory_bytes >> 20) << 20)} of memory" if tried.memory_bytes else ""
    yield f"{image} is prepared as {preparation}: {tried.seconds:.2f} s of imports{memory}"
    yield f"jobs say `prepared: {preparation.name}`, or: sandfleet run --image {image} --prepared {preparation.name}"
    if settings.prepared.start == "off":
        yield "SANDFLEET_PREPARED__START is off: no job of this host starts so"
    if not settings.warm.size:
        yield "SANDFLEET_WARM__SIZE is 0: this host keeps no spares, so no job starts so"


def try_preparation(settings: WorkerSettings, image: Image, preparation: Preparation) -> Tried:
    """Prepare one spare on this host, and run a small job in it.

    Raises as `RunscRunner.try_preparation`.
    """
    from sandfleet_worker.sandbox.runner import RunscRunner

    none = settings.warm.model_copy(update={"size": 0, "images": ()})
    with RunscRunner(settings.model_copy(update={"warm": none})) as runner:
        return runner.try_preparation(image, preparation)
