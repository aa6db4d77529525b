"""Keep the pulled images of a host within their bounds: the least recently used goes first.

An image in use stays, and one that an operator has added, built or pulled by hand. A file beside
the image says when it was last used, another one that it is kept.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TYPE_CHECKING, NamedTuple

from sandfleet_config.errors import HostResources, ImageInvalid
from sandfleet_config.image_names import REGISTRY_PREFIX
from sandfleet_config.units import format_bytes

from sandfleet_worker.sandbox.image.shared_facts import SHARED_PREFIX

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandfleet_config.settings import ImagesSettings

    from sandfleet_worker.sandbox.image.image import Image
    from sandfleet_worker.sandbox.image.store import ImageStore

USED, KEPT = "used", "kept"
NOTE_EACH_SECONDS = 60.0
DISK_PER_PACKED_BYTE = 6
"""While an image is made, the disk has its packed layers, unpacked files and packed image."""


class CachedImage(NamedTuple):
    """A pulled image that may go."""

    digest: str
    size_bytes: int
    used: float


class ImageCache:
    """Bounds the pulled images of `store`; safe for threads and beside other processes."""

    def __init__(self, store: ImageStore, settings: ImagesSettings) -> None:
        self._store, self._settings = store, settings
        self._noted: dict[str, float] = {}

    def note_use(self, image: Image) -> None:
        """Note that a job uses an image now; cheap when told again."""
        now = time.monotonic()
        if now - self._noted.get(image.digest, -NOTE_EACH_SECONDS) >= NOTE_EACH_SECONDS:
            with contextlib.suppress(OSError):  # the store may be read-only; then nothing is removed either
                _touch(image.erofs_path.with_name(USED))
            self._noted[image.digest] = now

    def keep(self, image: Image) -> None:
        """Never remove this image to make room: somebody has pulled it by hand."""
        _touch(image.erofs_path.with_name(KEPT))

    def list_evictable(self) -> list[CachedImage]:
        """Return the images that may go, the least recently used first."""
        return sorted(self._find(), key=lambda image: image.used)

    def _find(self) -> Iterator[CachedImage]:
        named = {
            image.digest for image in self._store.list() if not image.name.startswith((REGISTRY_PREFIX, "sha256:"))
        }
        seen = set[str]()
        for image in self._store.list():
            is_old = image.digest in seen or image.digest in named
            seen.add(image.digest)
            if is_old or not is_pulled(image) or image.erofs_path.with_name(KEPT).exists():
                continue
            yield CachedImage(image.digest, image.size_bytes, read_use(image))

    def free_space(self, name: str, packed_bytes: int, disk_per_byte: int = DISK_PER_PACKED_BYTE) -> None:
        """Remove images until one of `packed_bytes` fits, by its packed layers or its file.

        `disk_per_byte` is what each of them needs on disk meanwhile.

        Raises:
            ImageInvalid: it is larger than all that the host may keep.
            HostResources: there is no room, since all that is here is in use or kept.
        """
        self.check_size(name, packed_bytes)
        wanted = packed_bytes * disk_per_byte
        self._shrink(packed_bytes, wanted)
        free = self._read_free()[0]
        if free < wanted:
            raise HostResources.of(
                f"no room to pull {name}: it needs some {format_bytes(wanted)}, {self._store.root} has "
                f"{format_bytes(free)} free, and no pulled image can go; `sandfleet-worker images rm` others"
            )

    def check_size(self, name: str, size_bytes: int) -> None:
        """Refuse an image that is larger than all that the host may keep.

        Raises:
            ImageInvalid: it is.
        """
        if size_bytes > self._settings.max_bytes:
            raise ImageInvalid.of(
                f"{name} has {format_bytes(size_bytes)}, this host keeps {format_bytes(self._settings.max_bytes)} of "
                "pulled images (SANDFLEET_IMAGES__MAX_BYTES): make it smaller, or raise that"
            )

    def shrink(self, but: str = "") -> list[str]:
        """Remove images past the bounds, except the digest `but`; return the removed digests."""
        return self._shrink(0, 0, but)

    def _shrink(self, more_bytes: int, wanted_disk: int, but: str = "") -> list[str]:
        found = self.list_evictable()
        total, gone = sum(image.size_bytes for image in found) + more_bytes, list[str]()
        for image in found:
            if image.digest == but:
                continue
            if total <= self._settings.max_bytes and not self._is_disk_high(wanted_disk):
                break
            if self._store.evict(image.digest):
                total -= image.size_bytes
                gone.append(image.digest)
                self._noted.pop(image.digest, None)
        return gone

    def clear(self) -> list[str]:
        """Remove every pulled image that is neither in use nor kept; return the digests."""
        return [image.digest for image in self.list_evictable() if self._store.evict(image.digest)]

    def _is_disk_high(self, wanted: int) -> bool:
        free, total = self._read_free()
        return (total - free + wanted) * 100 > total * self._settings.disk_high_percent

    def _read_free(self) -> tuple[int, int]:
        root = self._store.root
        facts = os.statvfs(root if root.exists() else "/")
        return facts.f_bavail * facts.f_frsize, facts.f_blocks * facts.f_frsize


def is_pulled(image: Image) -> bool:
    """Whether the image is from a registry or the fleet's store, so it can be fetched again."""
    return image.source.startswith((REGISTRY_PREFIX, SHARED_PREFIX))


def _touch(path: Path) -> None:
    path.touch()
    os.utime(path)


def read_use(image: Image) -> float:
    """Return when a job last used the image, or else when it came here, as unix time."""
    try:
        return image.erofs_path.with_name(USED).stat().st_mtime
    except OSError:
        return image.created.timestamp()
