"""Pull an image into a host's store: one pull per image and host at a time.

Nothing is left of a pull that was cut. The digest that counts is the source's: that of the index,
where there is one.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from sandfleet_config.errors import ImageInvalid, ImageNotFound, ImageUnavailable

from sandfleet_worker.sandbox.image.build import build_image
from sandfleet_worker.sandbox.image.oci import read_oci
from sandfleet_worker.sandbox.image.registry.reader import RegistryReader, new_late
from sandfleet_worker.sandbox.image.staging import locked_when_free
from sandfleet_worker.sandbox.image.tools import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_config.errors import SandboxError
    from sandfleet_config.image_names import RegistryName
    from sandfleet_config.settings import ImagesSettings

    from sandfleet_worker.sandbox.image.cache import ImageCache
    from sandfleet_worker.sandbox.image.image import Image
    from sandfleet_worker.sandbox.image.registry.manifest import Manifest
    from sandfleet_worker.sandbox.image.store import ImageStore
    from sandfleet_worker.sandbox.image.tools import StagingFolder

log = logging.getLogger(__name__)

MAX_FAILED = 1000
LIMITS = Limits(max_files=500_000)
"""The most that a pulled image may take when unpacked."""


class Puller:
    """Pulls images with skopeo. Safe for threads and beside other processes."""

    def __init__(self, store: ImageStore, cache: ImageCache, settings: ImagesSettings, limits: Limits = LIMITS) -> None:
        self._store, self._cache, self._settings, self._limits = store, cache, settings, limits
        self._reader = RegistryReader(settings)
        self._lock = threading.Lock()
        self._failed: dict[str, tuple[SandboxError, float]] = {}

    def pull(self, name: RegistryName, check: Callable[[], None], *, is_forced: bool = False) -> Image:
        """Return the image of `name`, which is pulled if it is not here.

        A tag is asked for at the registry if it was not within ``tag_ttl``, or if `is_forced`.
        `check` is called again and again, and ends the pull if it raises.

        Raises:
            NotInRegistry: the registry has no such image.
            ImageUnavailable: the registry cannot be reached or refuses, or the deadline is over.
            ImageInvalid: the image is hostile, too large, or for another platform.
            HostResources: the disk has no room.
        """
        began, asked = time.time(), time.monotonic()
        deadline = asked + self._settings.pull_deadline_seconds

        def check_all() -> None:
            check()
            if time.monotonic() > deadline:
                raise new_late(name, self._settings.pull_deadline_seconds)

        kind = "asked" if name.digest else "tag"
        with locked_when_free(self._store.new_lock(kind, str(name)), check_all):
            self._raise_if_failed_since(name, asked)
            try:
                if name.digest:
                    return self._pull_digest(name, deadline, check_all, None)
                since = began if is_forced else began - self._settings.tag_ttl
                return self._pull_tag(name, since, deadline, check_all)
            except (ImageNotFound, ImageUnavailable, ImageInvalid) as error:
                self._note_failure(name, error)
                raise

    def _pull_tag(self, name: RegistryName, since: float, deadline: float, check: Callable[[], None]) -> Image:
        manifest, digest = None, self._find_fresh(name, since)
        if not digest:
            try:
                manifest = self._reader.read_manifest(name, deadline, check)
            except ImageUnavailable as error:
                raise ImageUnavailable.of(error.message + self._describe_stale(name)) from error
            digest = manifest.digest
        image = self._pull_digest(replace(name, digest=digest), deadline, check, manifest)
        if manifest is not None:
            self._store.name_image(name.name, image)
        return image.model_copy(update={"name": name.name})

    def _describe_stale(self, name: RegistryName) -> str:
        """Say what a tag last meant, if it is here: it runs only if the job asks for it."""
        found = self._store.find_resolved(name.name)
        if not found:
            return ""
        digest, asked = found
        try:
            self._store.read_image(digest, name.name)
        except (ImageNotFound, ImageInvalid):
            return ""
        minutes = max(0, round((time.time() - asked) / 60))
        return (
            f"; this host has what the tag meant {minutes} minutes ago, and does not run it unasked: "
            f"name {replace(name, digest=digest)}, or raise SANDFLEET_IMAGES__TAG_TTL"
        )

    def _raise_if_failed_since(self, name: RegistryName, asked: float) -> None:
        """Fail as the pull that the job has waited for did.

        Else each job of a batch would try it again, in turn.
        """
        with self._lock:
            failed = self._failed.get(str(name))
        if failed and failed[1] > asked:
            raise type(failed[0]).of(failed[0].message)

    def _note_failure(self, name: RegistryName, error: SandboxError) -> None:
        with self._lock:
            self._failed.pop(str(name), None)
            while len(self._failed) >= MAX_FAILED:
                del self._failed[next(iter(self._failed))]
            self._failed[str(name)] = error, time.monotonic()

    def is_fresh(self, name: RegistryName) -> bool:
        """Whether the registry was asked for a tag within ``tag_ttl``."""
        return bool(self._find_fresh(name, time.time() - self._settings.tag_ttl))

    def _find_fresh(self, name: RegistryName, since: float) -> str:
        found = self._store.find_resolved(name.name)
        return found[0] if found and since <= found[1] <= time.time() else ""

    def _pull_digest(
        self, name: RegistryName, deadline: float, check: Callable[[], None], manifest: Manifest | None
    ) -> Image:
        with locked_when_free(self._store.new_lock("pull", name.digest), check):
            try:
                return self._store.read_image(name.digest, str(name))
            except (ImageNotFound, ImageInvalid):
                return self._make(name, deadline, check, manifest)

    def _make(self, name: RegistryName, deadline: float, check: Callable[[], None], manifest: Manifest | None) -> Image:
        began = time.monotonic()
        manifest = manifest or self._reader.read_manifest(name, deadline, check)
        if manifest.digest != name.digest:
            raise ImageInvalid.of(f"{name.registry} gave {manifest.digest} for {name}: it is broken, or it cheats")
        manifest.check(self._limits)
        if own := manifest.find_own():  # an index says nothing of sizes
            manifest = self._reader.read_manifest(replace(name, digest=own), deadline, check)
            manifest.check(self._limits)
        self._cache.free_space(str(name), manifest.count_bytes())
        image = self._store.make(lambda staging: self._build(name, staging, deadline, check), self._limits, check)
        self._cache.note_use(image)
        seconds = time.monotonic() - began
        extra = {"action": "image_pulled", "image": str(name), "seconds": round(seconds, 3)}
        log.info("image %s was pulled in %.1f s, %d bytes", name, seconds, image.size_bytes, extra=extra)
        self._cache.shrink(but=image.digest)  # whoever asked for it does not hold it yet
        return image

    def _build(self, name: RegistryName, staging: StagingFolder, deadline: float, check: Callable[[], None]) -> Image:
        layout = self._reader.copy(name, staging, deadline, check)
        image = build_image(str(name), str(name), read_oci(layout), staging, lambda _: None, digest=name.digest)
        self._cache.check_size(str(name), image.size_bytes)  # its layers were smaller than what they unpack to
        return image
