"""The lock of a recipe: exactly which files its packages are, by name, version and hash.

    recipe.lock         beside recipe.toml
    recipes/NAME.lock   in the image store, for ready recipes and flags

It names no host: apt's and pip's own settings say where the files come from.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sandfleet_config.errors import ImageInvalid

from sandfleet_worker.sandbox.image.staging import write_json

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.image.recipe.whole import WholeRecipe

LOCK_SUFFIX = ".lock"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# They become names of files, and parts of addresses.
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9+.~_-]*$", max_length=200)]
Version = Annotated[str, Field(pattern=r"^[A-Za-z0-9.+:~!_-]+$", max_length=200)]
PoolPath = Annotated[
    str, Field(pattern=r"^([A-Za-z0-9+~_%-][A-Za-z0-9.+~_%-]*/)*[A-Za-z0-9+~_%-][A-Za-z0-9.+~_%-]*\.deb$")
]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LockedDeb(_Part):
    """One package of Debian; `path` is where it is on a mirror."""

    name: Name
    version: Version
    architecture: Name
    path: PoolPath
    size: int = Field(ge=0)
    sha256: Sha256


class LockedWheel(_Part):
    """One package of Python: exactly one wheel of one version."""

    name: Name
    version: Version
    sha256: Sha256


class Lock(_Part):
    """All that a recipe's packages are made from."""

    format: Literal[1] = 1
    wanted: str = Field(description="The sha256 of what the recipe asked for when it was locked.")
    base: str = Field(
        default="",
        pattern=r"^(sha256:[0-9a-f]{64})?$",
        description="The digest that a registry gave for the base, of its index where there is one.",
    )
    python: str = Field(default="", description="The version that the wheels are for, such as 3.13.")
    apt: tuple[LockedDeb, ...] = ()
    pip: tuple[LockedWheel, ...] = ()


def hash_wanted(recipe: WholeRecipe, machine: str) -> str:
    """Return the sha256 of all of a recipe that decides which packages it gets."""
    wanted = [recipe.base, sorted(recipe.apt), sorted(recipe.pip), machine]
    return hashlib.sha256(json.dumps(wanted).encode()).hexdigest()


def read_lock(path: Path) -> Lock | None:
    """Return the lock at `path`, None if there is none.

    Raises:
        ImageInvalid: it is damaged.
    """
    try:
        return Lock.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"field {_locate(error)}"
        raise ImageInvalid.of(
            f"the lock {path} cannot be read ({reason}): restore it, or make it again with --update"
        ) from error


def _locate(error: ValidationError) -> str:
    return ".".join(str(part) for part in error.errors()[0]["loc"]) or "format"


def write_lock(path: Path, lock: Lock) -> None:
    """Write a lock as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_json(path, lock.model_dump(mode="json"), temporary)
    finally:
        temporary.unlink(missing_ok=True)
