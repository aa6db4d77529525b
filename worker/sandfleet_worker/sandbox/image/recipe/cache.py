"""The build cache: packages that were fetched once. It is bounded, and may be removed at any time.

cache/debs/<sha256>.deb   packages of Debian
cache/uv/                 uv's own cache of wheels
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from typing import TYPE_CHECKING

from sandfleet_config.errors import ImageUnavailable

from sandfleet_worker.sandbox.image.staging import remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class BuildCache:
    """The cache at `root`, of at most `max_bytes` between builds; safe for many builds at once."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._debs, self.uv, self._lock = root / "debs", root / "uv", root / "lock"
        self._root, self._max_bytes = root, max_bytes

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        self._root.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, how)
            yield
        finally:
            os.close(descriptor)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep what is in the cache for the time of a build, and trim it afterwards."""
        with self._locked(fcntl.LOCK_SH):
            yield
        with contextlib.suppress(BlockingIOError):  # another build uses it, and trims it at its end
            self.trim()

    def _path(self, sha256: str) -> Path:
        return self._debs / f"{sha256}.deb"

    def has_deb(self, sha256: str) -> bool:
        """Whether the package is here."""
        return self._path(sha256).is_file()

    def keep_deb(self, sha256: str, file: Path) -> None:
        """Move a whole and verified package into the cache."""
        self._debs.mkdir(parents=True, exist_ok=True)
        file.replace(self._path(sha256))

    def take_deb(self, sha256: str, target: Path) -> None:
        """Put the package to `target`. A trim meanwhile does not take it away from there."""
        path = self._path(sha256)
        # The least recently used one is removed first.
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
        link_or_copy(path, target)

    def trim(self) -> None:
        """Remove what was not used for longest, until the cache is within its bound.

        uv tells no such order: its part goes as a whole if it takes more than half of the bound.

        Raises:
            BlockingIOError: a build uses the cache now.
        """
        with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
            uv_bytes = measure(self.uv)
            if uv_bytes > self._max_bytes // 2:
                remove_tree(self.uv)
                uv_bytes = 0
            found = sorted(self._list_debs(), reverse=True)
            total = uv_bytes
            for _, size, path in found:
                total += size
                if total > self._max_bytes:
                    path.unlink(missing_ok=True)

    def _list_debs(self) -> list[tuple[float, int, Path]]:
        """Return time of last use, bytes and path of each package."""
        listed = []
        for path in self._debs.glob("*.deb"):
            with contextlib.suppress(FileNotFoundError):
                facts = path.stat()
                listed.append((facts.st_mtime, facts.st_size, path))
        return listed

    def clear(self) -> int:
        """Remove all of it; return how many bytes that were.

        Raises:
            ImageUnavailable: a build uses it now.
        """
        try:
            with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
                size = measure(self._debs) + measure(self.uv)
                remove_tree(self._debs)
                remove_tree(self.uv)
        except BlockingIOError as error:
            raise ImageUnavailable.of(
                "an image is being built from the build cache: try again when it is done"
            ) from error
        return size


def measure(folder: Path) -> int:
    """Return the bytes on disk below `folder`; what vanishes meanwhile is left out."""
    size = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                size += os.lstat(os.path.join(path, name)).st_blocks * 512  # noqa: PTH118
    return size


def link_or_copy(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, or a copy where links cannot be."""
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        shutil.copyfile(source, target)
