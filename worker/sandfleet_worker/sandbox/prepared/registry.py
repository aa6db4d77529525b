"""The preparations of this host: those that its operator made, and those of its settings.

    preparations.json    under the images' root, mode 0600: the list that `images prepare` writes

One rename replaces the file as a whole. All workers of the host read it again when it changes. A
preparation belongs to an image's name: it stays when the name gets another image, and goes with it.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sandfleet_config.errors import ImageInvalid, ImageNotFound
from sandfleet_config.image_names import normalize_image
from sandfleet_config.prepared import MAX_MODULES, NEVER_PREPARED, is_module, is_preparation_name
from sandfleet_config.prepared_settings import parse_imports

from sandfleet_worker.sandbox.image.staging import host_faults, locked, write_json
from sandfleet_worker.sandbox.prepared.preparation import BARE, Preparation
from sandfleet_worker.system.supervised_thread import is_resource_error

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence
    from pathlib import Path

    from sandfleet_config.prepared_settings import PreparedSettings

logger = logging.getLogger(__name__)

FILE: Final = "preparations.json"
MAX_PREPARATIONS: Final = 1000
_FORMAT: Final = 1
_NO_FILE: Final[tuple[int, ...]] = ()


class Registered(BaseModel):
    """One preparation of an image of this host, as the file holds it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: str
    name: str
    modules: tuple[str, ...] = ()
    digest: str = Field(default="", description="Of the image that it was tried with; empty if it is of the settings.")
    created: datetime | None = None
    seconds: float = Field(default=0.0, description="How long the imports took when it was tried.")
    memory_bytes: int = Field(default=0, description="Memory of a spare with them when it was tried.")

    @property
    def preparation(self) -> Preparation:
        """Its name and modules, without the facts of its trial."""
        return Preparation(self.name, self.modules, self.created.isoformat() if self.created else "")


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    preparations: tuple[Registered, ...]


class Preparations:
    """The preparations of one host. Safe for threads and beside processes that change the file."""

    def __init__(self, root: Path, settings: PreparedSettings) -> None:
        """Read the file under `root` when it is asked for."""
        self._path, self._lock = root / FILE, root / "locks" / "preparations"
        self._staging = root / "staging"
        self._settings = settings
        self._of_settings = tuple(_list_of_settings(settings))
        self._known: tuple[tuple[int, ...], dict[tuple[str, str], Preparation]] = ((), self._index(()))

    def find(self, image_name: str, digest: str, wanted: str | None) -> Preparation | None:
        """Return the preparation for a job, or None if it starts without one.

        `wanted` is the spec's `prepared`. A name that this host does not know is None, too. Cheap:
        one stat call.
        """
        if self._settings.start == "off" or wanted == NEVER_PREPARED:
            return None
        if wanted is None:
            return BARE if self._settings.start == "python" else None
        known = self._read()
        return known.get((image_name.partition("@")[0], wanted)) or known.get((digest, wanted))

    def list_of(self, image_name: str, digest: str) -> list[Preparation]:
        """Return those of one image by their names, as `find` finds them."""
        found: dict[str, Preparation] = {}
        for wanted in (digest, image_name.partition("@")[0]):
            found |= {name: one for (image, name), one in self._read().items() if image == wanted}
        return [found[name] for name in sorted(found)]

    def list_all(self) -> Sequence[Registered]:
        """Return all by image and name; those of the settings outrank those of the file.

        Raises:
            ImageInvalid: the file cannot be used; says why and what to do.
        """
        found = {(entry.image, entry.name): entry for entry in (*self._load(), *self._of_settings)}
        return [found[key] for key in sorted(found)]

    def is_of_settings(self, image: str, name: str) -> bool:
        """Whether the settings name this preparation."""
        return any((entry.image, entry.name) == (image, name) for entry in self._of_settings)

    def add(self, entry: Registered) -> None:
        """Add a preparation, or replace the one of this image with this name.

        Raises:
            ImageInvalid: the name or a module cannot be one, or there are too many.
        """
        check(entry.name, entry.modules)
        entry = entry.model_copy(update={"created": entry.created or datetime.now(UTC)})

        def change(entries: list[Registered]) -> list[Registered]:
            kept = [one for one in entries if (one.image, one.name) != (entry.image, entry.name)]
            if len(kept) >= MAX_PREPARATIONS:
                raise ImageInvalid.of(f"this host has {MAX_PREPARATIONS} preparations: `images unprepare` some")
            return [*kept, entry]

        self._change(change)
        logger.info("%s is prepared: %s", entry.image, entry.preparation, extra={"action": "preparation_added"})

    def remove(self, image: str, name: str) -> None:
        """Remove one preparation of an image.

        Raises:
            ImageNotFound: there is none; the message names those that there are.
        """
        image = normalize_image(image)
        if self.is_of_settings(image, name):
            raise ImageInvalid.of(f"{name} of {image} is of SANDFLEET_PREPARED__IMPORTS: remove it there")

        def change(entries: list[Registered]) -> list[Registered]:
            kept = [one for one in entries if (one.image, one.name) != (image, name)]
            if len(kept) == len(entries):
                here = ", ".join(one.name for one in entries if one.image == image) or "none"
                raise ImageNotFound.of(f"{image} has no preparation {name} here (it has: {here})")
            return kept

        self._change(change)
        logger.info("%s is not prepared as %s any more", image, name, extra={"action": "preparation_removed"})

    def forget(self, images: Collection[str]) -> int:
        """Remove the preparations of images that were removed; return how many."""
        entries = self._load()
        gone = [entry for entry in entries if entry.image in images]
        if gone:
            self._change(lambda found: [entry for entry in found if entry.image not in images])
        return len(gone)

    def _change(self, change: Callable[[list[Registered]], list[Registered]]) -> None:
        with host_faults(self._path.parent), locked(self._lock):
            entries = sorted(change([*self._load()]), key=lambda entry: (entry.image, entry.name))
            self._staging.mkdir(parents=True, exist_ok=True)
            temporary = self._staging / f"{FILE}.{os.getpid()}.{time.monotonic_ns()}"
            temporary.touch(mode=0o600)
            value = {"format": _FORMAT, "preparations": [entry.model_dump(mode="json") for entry in entries]}
            write_json(self._path, value, temporary)

    def _read(self) -> dict[tuple[str, str], Preparation]:
        """Return what `find` looks up; a file that cannot be used counts as empty, and is logged."""
        try:
            facts = self._path.stat()
            identity: tuple[int, ...] = (facts.st_ino, facts.st_mtime_ns, facts.st_size, facts.st_mode, facts.st_uid)
        except OSError as error:
            if is_resource_error(error):
                raise
            identity = _NO_FILE
        known = self._known
        if known[0] != identity:
            try:
                known = (identity, self._index(self._load()))
            except ImageInvalid as error:
                logger.warning("no preparation is used: %s", error, extra={"action": "preparations_unusable"})
                known = (identity, self._index(()))
            self._known = known
        return known[1]

    def _index(self, entries: Sequence[Registered]) -> dict[tuple[str, str], Preparation]:
        return {(entry.image, entry.name): entry.preparation for entry in (*entries, *self._of_settings)}

    def _load(self) -> Sequence[Registered]:
        """Read the file; it must be its owner's alone, as what it lists is imported ahead of jobs."""
        try:
            with self._path.open("rb") as stream:
                facts = os.fstat(stream.fileno())
                if facts.st_uid not in (0, os.geteuid()) or stat.S_IMODE(facts.st_mode) & 0o022:
                    raise ImageInvalid.of(f"{self._path}: others may write it: chown root and chmod 600 it")
                found = _File.model_validate_json(stream.read())
        except FileNotFoundError:
            return ()
        except (ValidationError, json.JSONDecodeError) as error:
            raise ImageInvalid.of(f"{self._path} is damaged: remove it, and `images prepare` again") from error
        except PermissionError as error:
            raise ImageInvalid.of(f"{self._path}: permission denied: chown it to the worker's user") from error
        except OSError as error:  # it is a folder, or its disk has errors
            if is_resource_error(error):
                raise
            text = f"{self._path}: {error.strerror}: mend it, or remove it and `images prepare` again"
            raise ImageInvalid.of(text) from error
        if found.format != _FORMAT:
            raise ImageInvalid.of(f"{self._path} is of another release: remove it, and `images prepare` again")
        for entry in found.preparations:
            check(entry.name, entry.modules)
        return found.preparations


def _list_of_settings(settings: PreparedSettings) -> Iterator[Registered]:
    for text in settings.imports:
        image, name, modules = parse_imports(text)
        yield Registered(image=normalize_image(image), name=name, modules=modules)


def check(name: str, modules: Sequence[str]) -> None:
    """Refuse a name or modules that no preparation can have.

    Raises:
        ImageInvalid: says which, and what it must be.
    """
    if not is_preparation_name(name):
        raise ImageInvalid.of(
            f"{name[:80]!r} is no name for a preparation: use a-z 0-9 . _ and -, at most 64, such as sci; `off` is taken"
        )
    if faults := [module[:80] for module in modules if not is_module(module)]:
        raise ImageInvalid.of(f"{', '.join(map(repr, faults))}: no module's name, such as numpy or os.path")
    if len(modules) > MAX_MODULES:
        raise ImageInvalid.of(f"{len(modules)} modules: a preparation imports {MAX_MODULES} at most")
