"""Copy a recipe's own files into the image's tree."""

from __future__ import annotations

import os
import shutil
import stat
from typing import TYPE_CHECKING

from sandfleet_config.errors import ImageInvalid

from sandfleet_worker.sandbox.image.recipe.inside import make_folder, resolve_inside

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from sandfleet_worker.sandbox.image.recipe.model import CopiedPath
    from sandfleet_worker.sandbox.image.tools import Limits

_FILE_MODE, _PROGRAM_MODE = 0o644, 0o755


def find_missing(files: Iterable[tuple[Path, CopiedPath]]) -> list[str]:
    """Return what is wrong with each source that cannot be copied."""
    faults = []
    for folder, entry in files:
        source = folder / entry.source
        if not source.exists():
            faults.append(f"files: {entry.source} is not in {folder}")
        elif not source.resolve().is_relative_to(folder.resolve()):
            faults.append(f"files: {entry.source} is a link that leaves {folder}: copy what it points to")
    return faults


def copy_files(files: Sequence[tuple[Path, CopiedPath]], tree: Path, limits: Limits) -> None:
    """Copy files and folders; all belong to root, and everybody may read them.

    Links in a folder are copied as links. Sockets, pipes and devices are refused.

    Raises:
        ImageInvalid: a file cannot be read or placed, or they outgrow the limits.
    """
    copier = _Copier(tree, limits)
    for folder, entry in files:
        source = (folder / entry.source).resolve()
        mode = int(entry.mode, 8) if entry.mode else None
        try:
            if source.is_dir():
                copier.copy_folder(source, entry.target, mode)
            else:
                copier.copy_one(source, entry.target, mode)
        except PermissionError as error:
            raise ImageInvalid.of(f"cannot copy {entry.source}: {error.filename}: {error.strerror}") from error


class _Copier:
    def __init__(self, tree: Path, limits: Limits) -> None:
        self._tree, self._limits = tree, limits
        self._size = self._count = 0

    def copy_folder(self, source: Path, target: str, mode: int | None) -> None:
        make_folder(self._tree, target)
        with os.scandir(source) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            inner = f"{target}/{entry.name}"
            if entry.is_dir(follow_symlinks=False):
                self.copy_folder(source / entry.name, inner, mode)
            else:
                self.copy_one(source / entry.name, inner, mode)

    def copy_one(self, source: Path, target: str, mode: int | None) -> None:
        facts = source.lstat()
        self._size += facts.st_size
        self._count += 1
        self._limits.check(self._size, self._count)
        make_folder(self._tree, target.rpartition("/")[0])
        place = resolve_inside(self._tree, target)
        if place.is_dir() and not place.is_symlink():
            raise ImageInvalid.of(f"cannot copy {source} to {target}: the image has a folder there")
        place.unlink(missing_ok=True)
        if stat.S_ISLNK(facts.st_mode):
            place.symlink_to(source.readlink())
        elif stat.S_ISREG(facts.st_mode):
            shutil.copyfile(source, place)
            place.chmod(mode or (_PROGRAM_MODE if facts.st_mode & 0o111 else _FILE_MODE))
        else:
            raise ImageInvalid.of(f"cannot copy {source}: it is neither a file nor a folder nor a link")
