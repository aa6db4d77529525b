"""Take images that other hosts have pushed into the fleet's store.

One fetch per image and host at a time. A host takes what ``images.shared`` lists. Nothing of an
image is parsed, mounted or published before its SHA-256 is known to be right. An image is kept
under the digest of its facts, which covers all of it. So a forged one never takes the place of
another.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import time
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol

from sandfleet_config.errors import ImageInvalid, ImageNotFound, ImageUnavailable
from sandfleet_config.image_names import matches_shared
from sandfleet_config.units import format_bytes

from sandfleet_worker.sandbox.image.catalog import EROFS, FACTS
from sandfleet_worker.sandbox.image.recipe.cache import link_or_copy
from sandfleet_worker.sandbox.image.references import is_digest
from sandfleet_worker.sandbox.image.shared_facts import (
    MAX_FACTS_BYTES,
    SHARED_PREFIX,
    SharedFacts,
    digest_of,
    new_invalid,
    parse_facts,
)
from sandfleet_worker.sandbox.image.staging import host_faults, locked_when_free, write_json
from sandfleet_worker.sandbox.image.tools import Limits
from sandfleet_worker.system.detached import call_detached

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sandfleet_config.errors import SandboxError
    from sandfleet_config.settings import ImagesSettings

    from sandfleet_worker.sandbox.image.cache import ImageCache
    from sandfleet_worker.sandbox.image.image import Image
    from sandfleet_worker.sandbox.image.references import Reference
    from sandfleet_worker.sandbox.image.store import ImageStore
    from sandfleet_worker.sandbox.image.tools import StagingFolder
    from sandfleet_worker.sandbox.start_hooks import StartHooks

log = logging.getLogger(__name__)

LIMITS: Final = Limits()
_SHA256: Final = "sha256:"


class SharedImages(Protocol):
    """Where shared images come from: the fleet's names, and its store. Safe for threads."""

    def find(self, name: str) -> str:
        """Return the digest that is shared under `name`; empty if there is none.

        Raises:
            ImageUnavailable: nobody answers now.
        """
        ...

    def was_shared(self, name: str, digest: str) -> bool:
        """Whether this digest is shared under `name`, or was so within the last two days.

        Raises:
            ImageUnavailable: nobody answers now.
        """
        ...

    def read(self, sha256: str) -> Iterator[bytes]:
        """Yield an object of the store; the caller checks its SHA-256.

        Raises:
            ImageNotFound: the store does not have it.
            ImageInvalid: the store's copy was changed.
            ImageUnavailable: the store cannot be reached now.
        """
        ...


class NoSharedImages:
    """A fleet that shares no images."""

    def find(self, name: str) -> str:  # noqa: ARG002  there is none
        """Return nothing."""
        return ""

    def was_shared(self, name: str, digest: str) -> bool:  # noqa: ARG002  likewise
        """Return False."""
        return False

    def read(self, sha256: str) -> Iterator[bytes]:
        """Find nothing."""
        raise ImageNotFound.of(f"there is no store that could have {sha256}")


class SharedTaker:
    """Takes shared images into `store`. Safe for threads and beside other processes."""

    def __init__(self, store: ImageStore, cache: ImageCache, settings: ImagesSettings, shared: SharedImages) -> None:
        self._store, self._cache, self._settings, self._shared = store, cache, settings, shared
        self._lock = threading.Lock()
        self._failed: tuple[str, float, SandboxError] | None = None

    def take(self, wanted: Reference, missing: ImageNotFound, hooks: StartHooks, check: Callable[[], None]) -> Image:
        """Return a shared image that is not on this host under its name, fetched if needed.

        Raises:
            ImageNotFound: `missing`, if no such image is shared or this host does not take it.
            ImageUnavailable: the store or Redis is out of reach, or the deadline is over.
            ImageInvalid: it is not what its digest says, or cannot be used here.
            HostResources: the disk has no room.
        """
        if wanted.name is None:
            raise missing
        digest = self._find_digest(wanted.name, wanted.digest, missing)
        if image := self._find_here(wanted.name, digest):
            return image
        with hooks.waiting(f"shared image {wanted.name} to be fetched", is_remote=True), host_faults(self._store.root):
            try:
                return self._fetch(wanted.name, digest, check)
            except ImageNotFound as error:
                raise ImageNotFound.of(f"{missing.message}; {error.message}") from error

    def _find_digest(self, name: str, pinned: str | None, missing: ImageNotFound) -> str:
        digest = pinned or self._shared.find(name)
        if not digest:
            raise missing
        if not is_digest(digest):
            raise new_invalid(name, "Redis has no digest under its name")
        patterns = [pattern for pattern in self._settings.shared if matches_shared(name, digest, pattern)]
        # Every producer can put objects into the store and name their digest in a spec. So a
        # pattern of names alone lets a host take only what somebody has shared; see
        # docs/decisions/0014-digests-and-names.md.
        if any("@" in pattern for pattern in patterns):
            return digest
        if patterns and (not pinned or self._shared.was_shared(name, digest)):
            return digest
        if patterns:
            raise ImageNotFound.of(f"{missing.message}; and the fleet has not shared it in the last two days")
        if not pinned:
            raise ImageNotFound.of(
                f"{missing.message}; or let this host take the one that the fleet shares: add {name} or {name}@{digest} "
                "to SANDFLEET_IMAGES__SHARED"
            )
        raise missing

    def _fetch(self, name: str, digest: str, check: Callable[[], None]) -> Image:
        asked = time.monotonic()
        seconds = self._settings.pull_deadline_seconds

        def check_all() -> None:
            check()
            if time.monotonic() - asked > seconds:
                raise ImageUnavailable.of(
                    f"shared image {name} was not here after {seconds:g} s: raise "
                    "SANDFLEET_IMAGES__PULL_DEADLINE_SECONDS, or look at the store (`sandfleet-worker doctor`)"
                )

        with locked_when_free(self._store.new_lock("shared", digest), check_all):
            self._raise_if_failed_since(digest, asked)
            return self._find_here(name, digest) or self._make_noted(name, digest, check_all)

    def _find_here(self, name: str, digest: str) -> Image | None:
        """Return the shared image if it is here and whole; never another one with this digest."""
        try:
            image = self._store.read_image(digest, name)
        except (ImageNotFound, ImageInvalid):  # a fetch mends it
            return None
        is_shared = image.source.startswith(SHARED_PREFIX) or digest == digest_of(SharedFacts.of(image).encode())
        return image if is_shared else None

    def _raise_if_failed_since(self, digest: str, asked: float) -> None:
        """Fail as the fetch that the job has waited for did.

        Else each job of a batch would try it again, in turn.
        """
        with self._lock:
            failed = self._failed
        if failed and failed[0] == digest and failed[1] > asked:
            raise type(failed[2]).of(failed[2].message)

    def _make_noted(self, name: str, digest: str, check: Callable[[], None]) -> Image:
        try:
            return self._make(name, digest, check)
        except (ImageNotFound, ImageUnavailable, ImageInvalid) as error:
            with self._lock:
                self._failed = digest, time.monotonic(), error
            raise

    def _make(self, name: str, digest: str, check: Callable[[], None]) -> Image:
        began = time.monotonic()
        data = b"".join(self._read(name, digest.removeprefix(_SHA256), MAX_FACTS_BYTES, check))
        facts = parse_facts(data, name)
        LIMITS.check(facts.size_bytes, 0)
        self._cache.free_space(f"shared image {name}", facts.size_bytes, disk_per_byte=1)
        image = self._store.make(lambda staging: self._build(name, digest, facts, staging), LIMITS, check)
        image = image.model_copy(update={"name": name})
        self._cache.note_use(image)
        seconds = time.monotonic() - began
        extra = {"action": "image_fetched", "image": name, "seconds": round(seconds, 3)}
        log.info("shared image %s was fetched in %.1f s, %d bytes", name, seconds, image.size_bytes, extra=extra)
        self._cache.shrink(but=digest)  # whoever asked for it does not hold it yet
        return image

    def _build(self, name: str, digest: str, facts: SharedFacts, staging: StagingFolder) -> Image:
        image = facts.to_image(digest, f"{SHARED_PREFIX}{name}", _new_blob(staging) / EROFS)
        with image.erofs_path.open("wb") as file:
            for part in self._read(name, facts.erofs_sha256, facts.size_bytes, staging.check):
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        if size != facts.size_bytes:
            raise new_invalid(name, f"its file has {size} bytes, its facts say {facts.size_bytes}")
        _write_facts(image, staging)
        return image

    def _read(self, name: str, sha256: str, max_bytes: int, check: Callable[[], None]) -> Iterator[bytes]:
        """Yield an object; raise at the end if `sha256` differs, or once it is too long."""
        seen, left = hashlib.sha256(), max_bytes
        parts = self._shared.read(sha256)
        # A share that hangs (NFS whose server is away) ends by the deadline or a cancel, too.
        while (part := call_detached(partial(next, parts, None), lambda _: check())) is not None:
            check()
            seen.update(part)
            left -= len(part)
            if left < 0:
                raise new_invalid(name, f"object {sha256} has more than {format_bytes(max_bytes)}")
            yield part
        if seen.hexdigest() != sha256:
            why = f"object {sha256} was altered: delete it in the store, and push the image again"
            raise new_invalid(name, why, is_forged=False)


def publish(store: ImageStore, image: Image) -> str:
    """Let the image's name mean, on this host too, the digest that it is shared by; takes no disk.

    Return the digest that the name means then: another one if it means another image meanwhile.

    Raises:
        ImageNotFound: the image was removed just before.
        HostResources: the disk is full.
    """
    facts = SharedFacts.of(image)
    digest = digest_of(facts.encode())
    if image.digest == digest:
        return store.resolve(image.name).digest

    def build(staging: StagingFolder) -> Image:
        erofs = _new_blob(staging) / EROFS
        link_or_copy(image.erofs_path, erofs)
        built = image.model_copy(update={"digest": digest, "erofs_path": erofs})
        _write_facts(built, staging)
        return built

    with store.hold(image):
        return store.rename_image(image, store.make(build, LIMITS))


def _new_blob(staging: StagingFolder) -> Path:
    """Make the folder of an image's two files."""
    blob = staging.folder / "blob"
    blob.mkdir(mode=0o755)
    return blob


def _write_facts(image: Image, staging: StagingFolder) -> None:
    """Write image.json beside the image's file."""
    stored = image.model_dump(mode="json", exclude={"name", "erofs_path"})
    write_json(image.erofs_path.with_name(FACTS), stored, staging.folder / "image.json.new")
