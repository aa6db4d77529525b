"""Save artifacts in a local folder. Their names come from programs that nobody trusts.

- No name leaves the folder: each part is opened below its parent's descriptor, and no link is
  followed.
- A file gets its name when it is complete and verified.
- A file that is there is kept, unless the caller says otherwise.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
import unicodedata
from functools import partial
from typing import IO, TYPE_CHECKING, Final

from sandfleet.errors import FileMissing, safe_name

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from sandfleet_config.outcome import Artifact

    from sandfleet.files.objects import Objects
    from sandfleet.files.parallel import Check

MAX_PART_BYTES: Final = 255
CHUNK_BYTES: Final = 1 << 20
FILE_MODE: Final = 0o666
EXECUTE: Final = 0o111
_MODE: Final = re.compile("[0-7]{3,4}")
TEMPORARY_PREFIX: Final = ".sandfleet-"
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KNOWN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_REFUSED_CATEGORIES: Final = frozenset(("Cc", "Cs", "Zl", "Zp"))
_DIRECTIONS: Final = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that change the direction of later text: a name would look like another."""


class NotSaved(Exception):
    """One artifact cannot be saved; the message says why."""


def find_name_fault(path: str) -> str:
    """Return why no file is made with the name `path`; empty if it may be."""
    parts = path.split("/")
    if path.startswith("/"):
        return "the name is absolute"
    if ".." in parts:
        return "the name has .."
    if not path or "" in parts or "." in parts:
        return "the name has an empty part"
    if any(unicodedata.category(char) in _REFUSED_CATEGORIES or char in _DIRECTIONS for char in path):
        return "the name has control characters; read the artifact by open()"
    if any(len(part.encode()) > MAX_PART_BYTES for part in parts):
        return f"a part of the name has more than {MAX_PART_BYTES} bytes"
    return ""


def save_artifact(
    objects: Objects,
    artifact: Artifact,
    check: Check | None = None,
    *,
    folder: Path,
    below: str = "",
    overwrite: bool = False,
) -> Path:
    """Save one artifact in `folder`, which exists, or in its folder `below`; return its path.

    A file that is there with the same bytes is left as it is. `check` is called before each chunk;
    what it raises ends the transfer, and leaves nothing.

    Raises:
        NotSaved: its name is not safe, a link or a folder is in its way, or another file is there.
        FileMissing: the store does not have it, or it is altered.
        FleetUnavailable: the store is down.
        OSError: the file cannot be written.
    """
    if fault := find_name_fault(artifact.path):
        raise NotSaved(fault)
    path = f"{below}/{artifact.path}" if below else artifact.path
    write = partial(write_object, objects, artifact.sha256, artifact.size, name=artifact.path, check=check)
    return _save(folder, path, artifact, write, overwrite=overwrite)


def save_bytes(data: bytes, folder: Path, path: str, *, overwrite: bool = False) -> Path:
    """Save bytes in `folder`, which exists, as `path` below it; return its path.

    Raises:
        NotSaved: a link or a folder is in its way, or another file is there.
        OSError: the file cannot be written.
    """
    from sandfleet_config.outcome import Artifact

    as_artifact = Artifact(path, len(data), hashlib.sha256(data).hexdigest(), "0644")

    def write(file: IO[bytes]) -> None:
        file.write(data)
        file.flush()

    return _save(folder, path, as_artifact, write, overwrite=overwrite)


def _save(folder: Path, path: str, artifact: Artifact, write: Callable[[IO[bytes]], None], *, overwrite: bool) -> Path:
    """Save the output of `write` as `path` below `folder`, if absent: `artifact` has its hash."""
    *folders, name = path.split("/")
    with _open_folder(folder, folders) as parent:
        if not overwrite and _is_there(parent, name, artifact):
            return folder / path
        with _new_file(parent, _mode_of(artifact)) as (temporary, file):
            write(file)
            _publish(temporary, name, parent, overwrite=overwrite)
    return folder / path


@contextlib.contextmanager
def _open_folder(folder: Path, parts: list[str]) -> Generator[int]:
    """Open the folder `parts` below `folder`; make what is missing, follow no link."""
    current = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts:
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o777, dir_fd=current)
            try:
                below = os.open(part, _FOLDER, dir_fd=current)
            except OSError as error:
                if error.errno not in {errno.ELOOP, errno.ENOTDIR}:
                    raise
                raise NotSaved(f"{part} is a link or a file in the folder, not a folder") from None
            os.close(current)
            current = below
        yield current
    finally:
        os.close(current)


def _is_there(parent: int, name: str, artifact: Artifact) -> bool:
    """Whether the artifact's bytes are there under its name.

    Raises:
        NotSaved: something else is.
    """
    try:
        descriptor = os.open(name, _KNOWN, dir_fd=parent)
    except FileNotFoundError:
        return False
    except OSError:
        raise NotSaved("a link or something that cannot be read is there under this name") from None
    # Not a file object for a folder: `os.fdopen` refuses one, and leaves it open.
    try:
        found = os.fstat(descriptor)
        is_same = (
            stat.S_ISREG(found.st_mode) and found.st_size == artifact.size and _hash(descriptor) == artifact.sha256
        )
    finally:
        os.close(descriptor)
    if not is_same:
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "another file"
        raise NotSaved(f"{kind} is there under this name; it is kept")
    return True


def _hash(descriptor: int) -> str:
    digest = hashlib.sha256()
    while chunk := os.read(descriptor, CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()


@contextlib.contextmanager
def _new_file(parent: int, mode: int) -> Generator[tuple[str, IO[bytes]]]:
    """Yield a new file and its temporary name; if that is still there at the end, delete it."""
    name = f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}"
    descriptor = os.open(name, _NEW, mode, dir_fd=parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield name, file
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=parent)


def write_object(
    objects: Objects, sha256: str, size: int, file: IO[bytes], name: str, *, check: Check | None = None
) -> None:
    """Write an object of `size` bytes to `file`, flush and verify it; `name` is for messages.

    Raises:
        FileMissing: the store does not have it, or it is altered.
    """
    written = 0
    for chunk in objects.read(sha256, name):
        if check is not None:
            check()
        written += file.write(chunk)
        if written > size:
            break
    file.flush()
    if written != size:
        raise FileMissing(f"{safe_name(name)}: the store has another number of bytes than {size}")


def _mode_of(artifact: Artifact) -> int:
    """Return the mode of the saved file, before the umask.

    The program may make it executable. All other rights are what this user's files have.
    """
    given = int(artifact.mode, 8) if _MODE.fullmatch(artifact.mode) else 0
    return FILE_MODE | (given & EXECUTE)


def _publish(temporary: str, name: str, parent: int, *, overwrite: bool) -> None:
    """Give the complete file its name."""
    if overwrite:
        try:
            os.replace(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except IsADirectoryError:
            raise NotSaved("a folder is there under this name") from None
        return
    try:
        os.link(temporary, name, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
    except FileExistsError:
        raise NotSaved("a file of this name has appeared meanwhile") from None
    except OSError as error:
        if error.errno not in {errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS}:
            raise
        # A file system without hard links: reserve the name, then replace what was reserved.
        try:
            os.close(os.open(name, _NEW, 0o600, dir_fd=parent))
        except FileExistsError:
            raise NotSaved("a file of this name has appeared meanwhile") from None
        os.replace(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
