"""A store in a folder, which hosts may share (NFS).

    FOLDER/objects/ab/abcdef...   an object; "ab" are the first two digits of its name
    FOLDER/incoming/              uploads that are not complete
    FOLDER/fleet                  the id of the fleet that collects garbage here

Who may read and write is what the mode of FOLDER says: what is made in it gets the same mode, files
without the right to write or execute. Access rights are the folder's only protection.
"""

from __future__ import annotations

import contextlib
import os
import stat
import tempfile
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandfleet_config.store.protocol import CHUNK_BYTES, ObjectInfo, StoreDown, check_sha256, is_sha256
from sandfleet_config.store.verified import (
    fetch_checked,
    new_missing,
    new_wrong_size,
    read_checked,
    read_checked_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Iterator

FAN_OUT: Final = 2
"""Digits of a name that name its folder: 256 folders."""
OWNER: Final = "fleet"
MAX_OWNER_BYTES: Final = 256
_READ: Final = 0o444
_ACCESS: Final = 0o7777


class FolderStore:
    """An `ObjectStore` in the folder `root`, which must exist.

    It is not made here: a share that is not mounted would look like an empty store.
    """

    @property
    def max_object_bytes(self) -> None:
        """No bound."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._objects, self._incoming = root / "objects", root / "incoming"
        self.name = f"the store {root}"

    def __repr__(self) -> str:
        """Return the kind and the folder."""
        return f"FolderStore({str(self._root)!r})"

    def put_file(self, sha256: str, path: Path, check: Callable[[], None] | None = None) -> bool:
        """Copy the file `path`; see `ObjectStore.put_file`."""
        check_sha256(sha256)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return self._put(sha256, size, read_checked_file(sha256, file, size, check))

    def put_bytes(self, sha256: str, data: bytes) -> bool:
        """Write `data`; see `ObjectStore.put_bytes`."""
        check_sha256(sha256)
        return self._put(sha256, len(data), read_checked_file(sha256, _NamedBytes(data), len(data)))

    def _put(self, sha256: str, size: int, chunks: Iterable[bytes]) -> bool:
        found = self.size_of(sha256)
        if found is not None and found != size:
            raise new_wrong_size(sha256, self.name, found, size)
        if found is not None:
            return False
        mode = self._make_folder(self._incoming)
        self._make_folder(self._objects)
        target = self._path_of(sha256)
        self._make_folder(target.parent)
        with self._temporary_file() as (temporary, descriptor):
            for chunk in chunks:
                self._write(descriptor, chunk)
            with self._guard():
                os.fchmod(descriptor, mode & _READ)
                # Whoever refers to the object relies on it: it must outlive a power cut.
                os.fsync(descriptor)
                is_new = _link(temporary, target)
                _sync_folder(target.parent)
                return is_new

    @contextlib.contextmanager
    def _temporary_file(self) -> Generator[tuple[Path, int]]:
        with self._guard():
            descriptor, name = tempfile.mkstemp(dir=self._incoming)
        try:
            yield Path(name), descriptor
        finally:
            os.close(descriptor)
            with contextlib.suppress(OSError):  # `_link` may have moved it; else `remove_leftovers` deletes it
                Path(name).unlink(missing_ok=True)

    def _write(self, descriptor: int, chunk: bytes) -> None:
        view = memoryview(chunk)
        with self._guard():
            while view:
                view = view[os.write(descriptor, view) :]

    def read(self, sha256: str) -> Iterator[bytes]:
        """Yield the object; see `ObjectStore.read`."""
        check_sha256(sha256)
        return read_checked(sha256, self._read(sha256), self.name)

    def _read(self, sha256: str) -> Iterator[bytes]:
        with self._guard(), contextlib.ExitStack() as stack:
            try:
                file = stack.enter_context(open(self._path_of(sha256), "rb", buffering=0, opener=_open_planted))
            except FileNotFoundError:
                self._check_root()
                raise new_missing(sha256, self.name) from None
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    def fetch(self, sha256: str, path: Path) -> None:
        """Write the object to `path`; see `ObjectStore.fetch`."""
        fetch_checked(self.read, sha256, path)

    def size_of(self, sha256: str) -> int | None:
        """Return the object's size in bytes, None if there is none."""
        check_sha256(sha256)
        with self._guard():
            try:
                return self._path_of(sha256).stat(follow_symlinks=False).st_size
            except FileNotFoundError:
                self._check_root()
                return None

    def find_missing(self, names: Collection[str]) -> set[str]:
        """Return those of `names` that are not there."""
        return {name for name in names if self.size_of(name) is None}

    def delete(self, sha256: str) -> bool:
        """Delete the object; return False if there was none."""
        check_sha256(sha256)
        with self._guard():
            try:
                self._path_of(sha256).unlink()
            except FileNotFoundError:
                self._check_root()
                return False
            return True

    def list_objects(self) -> Iterator[ObjectInfo]:
        """Yield all objects, folder by folder."""
        with self._guard():
            self._check_root()
            for folder in _list_folder(self._objects):
                for entry in _list_folder(Path(folder.path)):
                    with contextlib.suppress(FileNotFoundError):
                        found = entry.stat(follow_symlinks=False)
                        if is_sha256(entry.name) and stat.S_ISREG(found.st_mode):
                            yield ObjectInfo(entry.name, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))

    def read_clock(self) -> datetime:
        """Return the time that a file made now has: that of the file server."""
        self._make_folder(self._incoming)
        with self._temporary_file() as (_, descriptor), self._guard():
            return datetime.fromtimestamp(os.fstat(descriptor).st_mtime, UTC)

    def read_owner(self) -> str:
        """Return the id in the file ``fleet``, empty if there is none."""
        with self._guard():
            self._check_root()
            with contextlib.suppress(FileNotFoundError), open(self._root / OWNER, "rb", opener=_open_planted) as file:
                return file.read(MAX_OWNER_BYTES).decode(errors="replace")
        return ""

    def write_owner(self, fleet: str) -> None:
        """Write the id to the file ``fleet``."""
        mode = self._make_folder(self._incoming)
        with self._temporary_file() as (temporary, descriptor):
            self._write(descriptor, fleet.encode())
            with self._guard():
                os.fchmod(descriptor, mode & _READ)
                temporary.replace(self._root / OWNER)

    def remove_leftovers(self, before: datetime) -> int:
        """Delete uploads that were last written before that time."""
        count = 0
        with self._guard():
            self._check_root()
            for entry in _list_folder(self._incoming):
                with contextlib.suppress(FileNotFoundError):
                    if datetime.fromtimestamp(entry.stat(follow_symlinks=False).st_mtime, UTC) < before:
                        Path(entry.path).unlink()
                        count += 1
        return count

    def close(self) -> None:
        """Do nothing: no file is kept open."""

    def _path_of(self, sha256: str) -> Path:
        return self._objects / sha256[:FAN_OUT] / sha256

    def _make_folder(self, folder: Path) -> int:
        """Make a folder below the root with the root's mode, and return that mode."""
        with self._guard():
            mode = stat.S_IMODE(self._check_root().st_mode)
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o700)
                folder.chmod(mode & _ACCESS)
            return mode

    def _check_root(self) -> os.stat_result:
        try:
            return self._root.stat()
        except FileNotFoundError:
            msg = f"{self.name} is out of reach: the folder does not exist; make it, or mount what it is on"
            raise StoreDown(msg) from None

    @contextlib.contextmanager
    def _guard(self) -> Generator[None]:
        """Turn an `OSError` of the store's own files into `StoreDown`."""
        try:
            yield
        except OSError as error:
            msg = f"{self.name} is out of reach: {error.strerror or error}"
            raise StoreDown(msg) from error


class _NamedBytes(BytesIO):
    """Bytes as a file, with a name for messages."""

    name = "what was given"


def _open_planted(path: str, flags: int) -> int:
    """Open a file that anybody with access to the folder may have put there.

    Follow no link, and wait for no pipe.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _link(temporary: Path, target: Path) -> bool:
    """Give the complete file its name if nobody else has; return whether it was this call."""
    try:
        target.hardlink_to(temporary)
    except FileExistsError:
        return False
    except OSError:
        # A file system without hard links. Replacing is no harm: the same name has the same bytes.
        temporary.rename(target)
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _list_folder(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
