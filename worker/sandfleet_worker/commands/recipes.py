"""The commands `sandfleet-worker images build|recipes|clean`."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from sandfleet_config.terminal import write_line

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from sandfleet_config.settings import WorkerSettings

    from sandfleet_worker.sandbox.image.recipe.model import Recipe

    Guard = Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class LockWish:
    """The flags of the lock."""

    path: Path | None
    must_fit: bool
    is_renewed: bool


def build_recipe(settings: WorkerSettings, name: str, file: Path | None, wish: LockWish, flags: dict[str, Any]) -> str:
    """Build the image `name` and return its digest.

    The recipe is that of a file, of flags, or else the ready recipe of that name.

    Raises:
        ImageInvalid: the recipe is faulty, or file and flags are given both.
        SandboxError: as `RecipeBuilder.build`.
    """
    from sandfleet_config.errors import ImageInvalid

    from sandfleet_worker.sandbox.image.recipe.builder import LockChoice, RecipeBuilder
    from sandfleet_worker.sandbox.image.recipe.lock import LOCK_SUFFIX
    from sandfleet_worker.sandbox.image.recipe.whole import find_ready, join, read_recipe
    from sandfleet_worker.sandbox.image.references import encode_name
    from sandfleet_worker.sandbox.image.store import ImageStore

    if file is not None and flags:
        raise ImageInvalid.of("give a recipe with -f, or say by flags what the image shall hold, not both")
    if flags:
        recipe, folder, source = _parse_flags(flags), Path.cwd(), "recipe:flags"
    else:
        path = file or find_ready(name)
        recipe, folder, source = read_recipe(path), path.absolute().parent, f"recipe:{path.name}"
    kept = (
        file.with_suffix(LOCK_SUFFIX) if file else settings.images.root / "recipes" / (encode_name(name) + LOCK_SUFFIX)
    )
    choice = LockChoice(wish.path or kept, must_fit=wish.must_fit, is_renewed=wish.is_renewed)
    builder = RecipeBuilder(ImageStore(settings.images.root), settings.images, write_line)
    return builder.build(name, join(recipe, folder), choice, source).digest


def _parse_flags(flags: dict[str, Any]) -> Recipe:
    from pydantic import ValidationError
    from sandfleet_config.errors import ImageInvalid
    from sandfleet_config.faults import describe_faults

    from sandfleet_worker.sandbox.image.recipe.faults import describe
    from sandfleet_worker.sandbox.image.recipe.model import Recipe

    value = dict(flags)
    for key in ("entrypoint", "command"):
        if key in value:
            value[key] = shlex.split(value[key])
    if "files" in value:
        value["files"] = [dict(zip(("from", "to"), item.split(":", 1), strict=False)) for item in flags["files"]]
    faults = ["--env must be NAME=VALUE" for item in flags.get("env", ()) if "=" not in item]
    if "env" in value:
        value["env"] = dict(item.split("=", 1) for item in flags["env"] if "=" in item)
    try:
        recipe = Recipe.model_validate(value)
    except ValidationError as error:
        faults += [f"{_name_flag(fault['field'])} {fault['message']}" for fault, _ in describe_faults(error, Recipe)]
        raise ImageInvalid.of(describe("the command line", faults)) from error
    if faults:
        raise ImageInvalid.of(describe("the command line", faults))
    return recipe


def _name_flag(field: str) -> str:
    """Return the flag that a field of a recipe was given by."""
    name = field.split(".", maxsplit=1)[0]
    return "--copy" if name == "files" else f"--{name.replace('_', '-')}"


def list_recipes(name: str | None) -> None:
    """Print the ready recipes, or the text of one."""
    from sandfleet_worker.sandbox.image.recipe.whole import find_ready, list_ready

    if name is not None:
        print(find_ready(name).read_text(encoding="utf-8"), end="")  # noqa: T201
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "what it holds")
    for ready, recipe in list_ready().items():
        table.add_row(ready, recipe.description)
    Console().print(table)


def clean_cache(settings: WorkerSettings) -> int:
    """Remove the build cache; return its bytes."""
    from sandfleet_worker.sandbox.image.recipe.builder import new_cache

    return new_cache(settings.images).clear()


def _option(*names: str, text: str) -> Any:
    return typer.Option(*names, help=text)


File = Annotated[Path | None, _option("--file", "-f", text="The recipe; its lock is kept beside it.")]
Base = Annotated[str | None, _option(text="Without a file: what the image builds on.")]
Apt = Annotated[list[str] | None, _option(text="A package of Debian; may be repeated.")]
Pip = Annotated[list[str] | None, _option(text="A package of Python; may be repeated.")]
Copied = Annotated[list[str] | None, _option(text="SOURCE:TARGET, a file or folder; may be repeated.")]
Env = Annotated[list[str] | None, _option(text="NAME=VALUE; may be repeated.")]
WorkingDir = Annotated[str | None, _option(text="Where jobs start.")]
Entrypoint = Annotated[str | None, _option(text="The program before each job's command, quoted as one word.")]
Command = Annotated[str | None, _option(text="What runs if a job names no command, quoted as one word.")]
User = Annotated[str | None, _option(text="Who jobs run as.")]
LockFile = Annotated[Path | None, _option(text="Another file for the lock.")]
Locked = Annotated[bool, _option("--locked", text="Fail if the lock is missing or does not fit.")]
Update = Annotated[bool, _option("--update", text="Lock the newest packages again.")]


def register(images: typer.Typer, read_settings: Callable[[], WorkerSettings], guard: Guard) -> None:
    """Add the commands to `sandfleet-worker images`; `guard` prints errors that people can mend."""
    _register_build(images, read_settings, guard)

    @images.command("recipes")
    def show_recipes(name: Annotated[str | None, typer.Argument(help="Print this recipe.")] = None) -> None:
        """List the ready recipes, or print one."""
        with guard():
            list_recipes(name)

    @images.command("clean")
    def clean_images() -> None:
        """Remove the packages that builds keep between them; no image is touched."""
        with guard():
            freed = clean_cache(read_settings())
        print(f"removed {freed / 2**20:.1f} MiB of the build cache")  # noqa: T201


def _register_build(images: typer.Typer, read_settings: Callable[[], WorkerSettings], guard: Guard) -> None:
    @images.command("build")
    def build_image(  # noqa: PLR0917  typer reads the options from the parameters
        name: str,
        file: File = None,
        base: Base = None,
        apt: Apt = None,
        pip: Pip = None,
        copy: Copied = None,
        env: Env = None,
        working_dir: WorkingDir = None,
        entrypoint: Entrypoint = None,
        command: Command = None,
        user: User = None,
        lock: LockFile = None,
        locked: Locked = False,  # noqa: FBT002
        update: Update = False,  # noqa: FBT002
    ) -> None:
        """Build the image NAME from a recipe, from flags, or else from the ready recipe NAME."""
        given = {
            "base": base,
            "apt": apt,
            "pip": pip,
            "files": copy,
            "env": env,
            "working_dir": working_dir,
            "entrypoint": entrypoint,
            "command": command,
            "user": user,
        }
        flags = {key: value for key, value in given.items() if value is not None}
        with guard():
            digest = build_recipe(read_settings(), name, file, LockWish(lock, locked, update), flags)
        print(f"{name} {digest}")  # noqa: T201
