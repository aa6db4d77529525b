"""Read a recipe with the recipes that it builds on, and join them to one."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError
from sandfleet_config.errors import ImageInvalid

from sandfleet_worker.sandbox.image.recipe.faults import new_recipe_invalid
from sandfleet_worker.sandbox.image.recipe.model import DEBIAN, LAYOUT, REGISTRY, CopiedPath, Recipe
from sandfleet_worker.sandbox.image.starter import READY_RECIPES, RECIPE_SUFFIX, list_ready_recipes

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_BASES = 8
MAX_RECIPE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class WholeRecipe:
    """A recipe joined with its bases; `base` is none of a recipe.

    `files` have the folder that their sources are in.
    """

    base: str
    apt: tuple[str, ...]
    pip: tuple[str, ...]
    files: tuple[tuple[Path, CopiedPath], ...]
    env: Mapping[str, str]
    working_dir: str
    entrypoint: tuple[str, ...] | None
    command: tuple[str, ...] | None
    user: str

    @property
    def suite(self) -> str:
        """The release of a Debian base; "" for any other base."""
        return self.base.removeprefix(DEBIAN) if self.base.startswith(DEBIAN) else ""


def list_ready() -> dict[str, Recipe]:
    """Return the recipes that come with the worker, by name."""
    return {name: read_recipe(READY_RECIPES / f"{name}{RECIPE_SUFFIX}") for name in list_ready_recipes()}


def find_ready(name: str) -> Path:
    """Return the file of a ready recipe.

    Raises:
        ImageInvalid: there is none of that name.
    """
    path = READY_RECIPES / f"{name}{RECIPE_SUFFIX}"
    if name not in list_ready():
        raise ImageInvalid.of(
            f"there is no ready recipe {name[:200]!r}, only {', '.join(list_ready())}: "
            "give a recipe with -f recipe.toml, or say what the image shall hold by flags such as --pip and --apt"
        )
    return path


def read_recipe(path: Path) -> Recipe:
    """Read one recipe.

    Raises:
        ImageInvalid: the file is missing, too large, no TOML, or no recipe; it tells all faults.
    """
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise ImageInvalid.of(f"{path} is no recipe: it is larger than {MAX_RECIPE_BYTES >> 20} MiB")
        text = path.read_text(encoding="utf-8")
        value = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ImageInvalid.of(f"{path} is not TOML: {error}") from error
    except OSError as error:
        raise ImageInvalid.of(f"cannot read the recipe {path}: {error.strerror}") from error
    try:
        return Recipe.model_validate(value)
    except ValidationError as error:
        raise new_recipe_invalid(path, text, value, error) from error


def join(recipe: Recipe, folder: Path) -> WholeRecipe:
    """Join `recipe`, whose paths are relative to `folder`, with its bases.

    Raises:
        ImageInvalid: a base is missing or faulty, or recipes build on each other in a circle.
    """
    chain = [(recipe, folder)]
    while True:
        base, folder = chain[-1][0].base, chain[-1][1]
        if base.startswith((DEBIAN, LAYOUT, REGISTRY)):
            return _join_chain(chain[::-1])
        if len(chain) > MAX_BASES:
            raise ImageInvalid.of(f"more than {MAX_BASES} recipes build on each other, or they do so in a circle")
        path = folder / base if base.endswith(RECIPE_SUFFIX) else find_ready(base)
        chain.append((read_recipe(path), path.parent))


def _join_chain(chain: list[tuple[Recipe, Path]]) -> WholeRecipe:
    """Join recipes, the base first: add up lists; of other fields the last that is set counts."""
    root, folder = chain[0]
    base = root.base
    if base.startswith(LAYOUT):
        base = f"{LAYOUT}{folder / base.removeprefix(LAYOUT)}"
    apt = tuple(dict.fromkeys(package for recipe, _ in chain for package in recipe.apt))
    if apt and not base.startswith(DEBIAN):
        raise ImageInvalid.of(f"`apt` needs a Debian base, and the recipe builds on {base}")
    entrypoint: tuple[str, ...] | None = None
    command: tuple[str, ...] | None = None
    for recipe, _ in chain:
        if recipe.entrypoint is not None:
            # As in Docker: the base's command belongs to the base's entrypoint.
            entrypoint, command = tuple(recipe.entrypoint), ()
        if recipe.command is not None:
            command = tuple(recipe.command)
    return WholeRecipe(
        base=base,
        apt=apt,
        pip=tuple(dict.fromkeys(requirement for recipe, _ in chain for requirement in recipe.pip)),
        files=tuple((where, entry) for recipe, where in chain for entry in recipe.files),
        env={name: text for recipe, _ in chain for name, text in recipe.env.items()},
        working_dir=next((recipe.working_dir for recipe, _ in chain[::-1] if recipe.working_dir is not None), ""),
        entrypoint=entrypoint,
        command=command,
        user=next((recipe.user for recipe, _ in chain[::-1] if recipe.user is not None), ""),
    )
