"""Local files that go to the fleet: find them, check them, hash them."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, NamedTuple

from sandfleet_config.errors import SpecInvalid
from sandfleet_config.files import DEFAULT_MODE, MAX_FILES
from sandfleet_config.wire import MAX_REPORTED_FAULTS

from sandfleet.files.reference import FileRef

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet.files.parallel import Check

CHUNK_BYTES: Final = 1 << 20
EXECUTABLE_MODE: Final = "0755"


class LocalFile(NamedTuple):
    """A local file, its path in the sandbox, its size in bytes and its mode there.

    The mode is 0755 if the owner may execute the file, else 0644.
    """

    source: Path
    path: str
    size: int
    mode: str


def open_regular(path: Path) -> BinaryIO:
    """Open a local file to read. Never waits, as a pipe would make it.

    Raises:
        OSError: it cannot be read.
        SpecInvalid: it is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        raise _refuse([f"{path}: {_describe_kind(mode)}"])
    return os.fdopen(descriptor, "rb")


def hash_file(path: Path, check: Check | None = None) -> FileRef:
    """Return SHA-256 and size of a local file; memory does not grow with its size.

    `check` is called before each chunk; what it raises ends the reading.

    Raises:
        OSError, SpecInvalid: as `open_regular`.
    """
    digest, size = hashlib.sha256(), 0
    with open_regular(path) as file:
        while chunk := file.read(CHUNK_BYTES):
            if check is not None:
                check()
            digest.update(chunk)
            size += len(chunk)
    return FileRef(digest.hexdigest(), size)


def find_file(source: Path, path: str) -> LocalFile:
    """Return the local file `source`, which is to be `path` in the sandbox.

    Raises:
        OSError, SpecInvalid: as `open_regular`.
    """
    with open_regular(source) as file:
        found = os.fstat(file.fileno())
    return LocalFile(source, path, found.st_size, _mode_of(found))


def find_files(folder: Path, path: str) -> list[LocalFile]:
    """Return all files below `folder`, sorted, each with its path below `path` in the sandbox.

    A link to a file inside the folder counts as that file. Empty folders are left out.

    Raises:
        OSError: the folder cannot be read.
        SpecInvalid: something else is in it (a link out of it or to a folder, a pipe, a device, a
            socket, a file that cannot be read), or more than `MAX_FILES` files; tells all faults.
    """
    root = folder.resolve(strict=True)
    found: list[LocalFile] = []
    faults: list[str] = []
    for source in _walk(folder, faults):
        name = source.relative_to(folder).as_posix()
        if reason := _find_fault(source, root):
            faults.append(f"{source}: {reason}")
            continue
        found.append(find_file(source, f"{path.rstrip('/')}/{name}"))
        if len(found) > MAX_FILES:
            raise _refuse([f"{folder}: has more than {MAX_FILES} files; pack them into one archive"])
    if faults:
        raise _refuse(faults)
    if not found:
        raise _refuse([f"{folder}: has no files"])
    return found


def _walk(folder: Path, faults: list[str]) -> Iterator[Path]:
    """Yield all below `folder` that is not a folder, sorted; what cannot be listed is a fault."""

    def add_fault(error: OSError) -> None:
        faults.append(f"{error.filename}: {error.strerror}")

    for parent, folders, names in os.walk(folder, onerror=add_fault):
        folders.sort()
        links = [name for name in folders if Path(parent, name).is_symlink()]
        yield from (Path(parent, name) for name in sorted([*names, *links]))


def _find_fault(source: Path, root: Path) -> str:
    """Return why `source` cannot be sent; empty if it can."""
    try:
        target = source.resolve(strict=True)
        mode = target.stat().st_mode
    except (OSError, RuntimeError):  # RuntimeError: a circle of links, up to Python 3.12
        return "is a link to nothing"
    if source.is_symlink() and not target.is_relative_to(root):
        return "is a link to what is outside the folder; put a copy there, or send it by its own name"
    if not stat.S_ISREG(mode):
        return _describe_kind(mode)
    return "" if os.access(target, os.R_OK) else "cannot be read (permission denied)"


def _describe_kind(mode: int) -> str:
    kinds = {stat.S_IFDIR: "a folder, or a link to one", stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket"}
    return f"is {kinds.get(stat.S_IFMT(mode), 'a device')}; only regular files can be sent"


def _mode_of(found: os.stat_result) -> str:
    return EXECUTABLE_MODE if found.st_mode & stat.S_IXUSR else DEFAULT_MODE


def _refuse(faults: list[str]) -> SpecInvalid:
    shown = faults[:MAX_REPORTED_FAULTS]
    more = f"; and {len(faults) - len(shown)} more" if len(faults) > len(shown) else ""
    errors = [{"field": "files", "message": fault} for fault in shown]
    return SpecInvalid.of("; ".join(shown) + more, errors=errors)
