"""Objects of the store on this host's disk: each is fetched once, and all its workers read it.

An object is a file under the first two digits of its name. A reader opens it and needs no lock: a
file that is removed meanwhile stays readable to those that have it open. Whoever fetches holds the
lock of these two digits, so an object is fetched once. The file that it writes has its full size
from the beginning, so that all fetches together stay within the bound. Room is made by the holder
of the lock of the whole cache; it clears what killed workers have left.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from sandfleet_config.errors import HostResources
from sandfleet_config.units import format_bytes

from sandfleet_worker.delivery.lock_files import lock_now
from sandfleet_worker.system.detached import call_detached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandfleet_config.store.protocol import ObjectStore

log = logging.getLogger(__name__)

FANOUT: Final = 2
"""Digits of an object's name that name its folder."""
LOCK_POLL_SECONDS: Final = 0.05
CAPACITY_POLL_SECONDS: Final = 0.5
PARTIAL: Final = "partial"
LOCK: Final = "lock"


class ObjectCache:
    """Files of `store` below `root`, at most `max_bytes`; safe for threads and processes."""

    def __init__(self, root: Path, store: ObjectStore, max_bytes: int) -> None:
        self._root, self._store, self._max_bytes = root, store, max_bytes

    def find(self, sha256: str) -> int | None:
        """Return a cached object's size in bytes, and mark it as used; None if it is not here."""
        path = self._path(sha256)
        try:
            os.utime(path)
            return path.stat().st_size
        except FileNotFoundError:
            return None

    def open(self, sha256: str, pause: Callable[[float], None]) -> BinaryIO:
        """Return the object's bytes; fetch them if they are not here."""
        while True:
            try:
                return self._path(sha256).open("rb")
            except FileNotFoundError:
                self.fetch(sha256, pause)

    def fetch(self, sha256: str, pause: Callable[[float], None]) -> int:
        """Have the object here; return its size in bytes.

        `pause` waits for so many seconds and raises to end the wait, in any thread. It is called
        with 0 between two parts, also while none comes, and while another process fetches the same
        object.

        Raises:
            StoreError: the store does not have it, has other bytes, or cannot be reached.
            HostResources: it does not fit here.
        """
        return call_detached(lambda: self._fetch(sha256, pause), pause)

    def _fetch(self, sha256: str, pause: Callable[[float], None]) -> int:
        folder = self._path(sha256).parent
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked(folder, pause):
            size = self.find(sha256)
            return self._download(sha256, pause) if size is None else size

    def _download(self, sha256: str, pause: Callable[[float], None]) -> int:
        path = self._path(sha256)
        partial = path.parent / PARTIAL
        partial.unlink(missing_ok=True)
        try:
            self._reserve(partial, self._store.size_of(sha256) or 0, pause)
            with partial.open("r+b") as file:
                for part in self._store.read(sha256):
                    file.write(part)
                    pause(0)
                size = file.tell()
                # Else a host that loses its power may keep the name, and not the bytes.
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            if error.errno in {errno.ENOSPC, errno.EDQUOT}:
                msg = f"the disk of {self._root} is full: a file of the job does not fit"
                raise HostResources.of(msg) from error
            raise
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        log.info("fetched %s, %s", sha256, format_bytes(size), extra={"action": "object_fetched"})
        return size

    def _reserve(self, partial: Path, size: int, pause: Callable[[float], None]) -> None:
        """Make the file `partial` of `size` bytes; wait while other fetches leave no room."""
        if size > self._max_bytes:
            msg = (
                f"a file of the job has {format_bytes(size)}, the cache of this host takes"
                f" {format_bytes(self._max_bytes)} (SANDFLEET_FILES__CACHE_BYTES)"
            )
            raise HostResources.of(msg)
        while True:
            with self._locked(self._root, pause):
                if self._evict_for(size):
                    with partial.open("wb") as file:
                        file.truncate(size)
                    return
            pause(CAPACITY_POLL_SECONDS)

    def _evict_for(self, size: int) -> bool:
        """Remove the objects that were not used for the longest time, until `size` more bytes fit.

        They fit into the bound, and onto the disk, which may be smaller than the bound. Return
        False if what others fetch now takes the room.
        """
        total = sum(self._list_fetches())  # first: one that ends meanwhile counts twice rather than not at all
        found = sorted(self._list())
        cached, free = sum(kept for _, kept, _ in found), shutil.disk_usage(self._root).free
        if size > free + cached:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # and nothing is removed in vain
        total += cached
        for _, kept, path in found:
            if total + size <= self._max_bytes and size <= free:
                break
            path.unlink(missing_ok=True)
            total, free = total - kept, free + kept
        return total + size <= self._max_bytes

    def _list_fetches(self) -> Iterator[int]:
        """Yield the size of each object being fetched; remove the files of killed workers."""
        for path in self._root.glob(f"??/{PARTIAL}"):
            with contextlib.suppress(FileNotFoundError):
                if (lock := lock_now(path.parent / LOCK)) is None:
                    yield path.stat().st_size
                else:
                    path.unlink(missing_ok=True)
                    os.close(lock)

    def _list(self) -> Iterator[tuple[float, int, Path]]:
        """Yield last use, size and path of each object."""
        for path in self._root.glob("??/" + "?" * 64):
            with contextlib.suppress(FileNotFoundError):
                facts = path.stat()
                yield facts.st_mtime, facts.st_size, path

    def _path(self, sha256: str) -> Path:
        return self._root / sha256[:FANOUT] / sha256

    @contextlib.contextmanager
    def _locked(self, folder: Path, pause: Callable[[float], None]) -> Iterator[None]:
        with (folder / LOCK).open("wb") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    pause(LOCK_POLL_SECONDS)
            yield
