"""Paths of an unpacked image as a program in it sees them: no link leads to the host."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from sandfleet_config.errors import ImageInvalid

if TYPE_CHECKING:
    from pathlib import Path

MAX_LINKS = 40


def resolve_inside(tree: Path, path: str) -> Path:
    """Return the host's path of an image's `path`; follow links of its folders inside the tree.

    The last part itself is not followed.

    Raises:
        ImageInvalid: the links lead in a circle.
    """
    folder, _, name = path.strip("/").rpartition("/")
    return _resolve(tree, folder) / name


def make_folder(tree: Path, path: str) -> Path:
    """Return the host's path of a folder of the image; make what is missing, with mode 0755.

    Raises:
        ImageInvalid: something else is there.
    """
    folder = _resolve(tree, path)
    current = tree
    for part in folder.relative_to(tree).parts:
        current = current / part
        if not os.path.lexists(current):
            current.mkdir()
            current.chmod(0o755)
        elif not current.is_dir():
            raise ImageInvalid.of(f"/{current.relative_to(tree)} of the image is no folder")
    return folder


def _resolve(tree: Path, path: str) -> Path:
    """Return `path` with all of its links followed; what is missing is taken as it is written."""
    found: list[str] = []
    waiting = path.split("/")[::-1]
    links = 0
    while waiting:
        part = waiting.pop()
        if part == "..":
            del found[-1:]
            continue
        if part in {"", "."}:
            continue
        candidate = tree.joinpath(*found, part)
        if not candidate.is_symlink():
            found.append(part)
            continue
        links += 1
        if links > MAX_LINKS:
            raise ImageInvalid.of(f"the links of the image at /{path.strip('/')[:200]} lead in a circle")
        target = str(candidate.readlink())
        if target.startswith("/"):
            found.clear()
        waiting += target.split("/")[::-1]
    return tree.joinpath(*found)
