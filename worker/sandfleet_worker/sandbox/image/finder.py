"""Find a job's image on this host, or pull or fetch it, and hold it while a sandbox uses it."""

from __future__ import annotations

import functools
import os
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from sandfleet_config.errors import ImageInvalid, ImageNotFound, SecurityViolation
from sandfleet_config.image_names import matches_pattern

from sandfleet_worker.sandbox.image.allowed import ALL, check_digest
from sandfleet_worker.sandbox.image.cache import ImageCache
from sandfleet_worker.sandbox.image.references import Reference
from sandfleet_worker.sandbox.image.registry.puller import Puller
from sandfleet_worker.sandbox.image.shared import NoSharedImages, SharedTaker
from sandfleet_worker.sandbox.image.staging import host_faults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sandfleet_config.image_names import RegistryName
    from sandfleet_config.settings import ImagesSettings

    from sandfleet_worker.sandbox.image.image import Image
    from sandfleet_worker.sandbox.image.shared import SharedImages
    from sandfleet_worker.sandbox.image.store import ImageStore
    from sandfleet_worker.sandbox.start_hooks import StartHooks

NO_SHARED_IMAGES: Final = NoSharedImages()
_parse = functools.lru_cache(maxsize=1024)(Reference.parse)
MAX_TRIES: Final = 3
"""An image that was just found may be removed before it is held: to make room, or by hand."""


class PullForbidden(SecurityViolation):
    """The image is not on this host, whose settings do not let a job have it pulled."""


class ImageFinder:
    """Finds the images of jobs; safe for threads."""

    def __init__(
        self,
        store: ImageStore,
        settings: ImagesSettings,
        shared: SharedImages = NO_SHARED_IMAGES,
        allowed: Sequence[str] = (ALL,),
    ) -> None:
        """`allowed` are the policy's patterns of images, for those that are named by a digest."""
        self._store, self._settings, self._allowed = store, settings, allowed
        self.cache = ImageCache(store, settings)
        self._puller = Puller(store, self.cache, settings)
        self._taker = SharedTaker(store, self.cache, settings, shared)

    @contextmanager
    def hold(self, reference: str, hooks: StartHooks, check: Callable[[], None]) -> Iterator[Image]:
        """Find the image, or pull or fetch it if the settings allow, and keep it from removal.

        `hooks` are told of a pull, say which digest a name means for the job, and record it.
        `check` ends a wait if it raises.

        Raises:
            ImageNotFound: there is no such image.
            PullForbidden: it would have to be pulled, and may not.
            SecurityViolation: the digest is that of an image which the policy does not allow.
            ImageUnavailable: it cannot be pulled or fetched now.
            ImageInvalid: it cannot be used.
        """
        image, descriptor = self._hold_found(_parse(reference), hooks, check)
        try:
            self.cache.note_use(image)
            yield image
        finally:
            os.close(descriptor)

    def _hold_found(self, wanted: Reference, hooks: StartHooks, check: Callable[[], None]) -> tuple[Image, int]:
        tries = 0
        while True:
            image, tries = self._find(wanted, hooks, check), tries + 1
            try:
                descriptor = self._store.catalog.open_held(image, hooks, check)
            except ImageNotFound:
                if tries == MAX_TRIES:
                    raise
            else:
                return image, descriptor

    def _find(self, wanted: Reference, hooks: StartHooks, check: Callable[[], None]) -> Image:
        if wanted.digest or wanted.name is None:
            return self._find_one(wanted, hooks, check)
        if digest := hooks.find_digest(wanted.name):
            return self._find_pinned(wanted, digest, hooks, check)
        image = self._find_one(wanted, hooks, check)
        digest = hooks.pin_digest(wanted.name, image.digest)
        return image if digest == image.digest else self._find_pinned(wanted, digest, hooks, check)

    def _find_pinned(self, wanted: Reference, digest: str, hooks: StartHooks, check: Callable[[], None]) -> Image:
        """Return the image that the job's batch runs by this name, or that its earlier run had."""
        name = str(wanted.name)
        if wanted.in_registry:
            pinned = replace(wanted, digest=digest, in_registry=replace(wanted.in_registry, digest=digest))
            return self._find_one(pinned, hooks, check).model_copy(update={"name": name})
        try:
            return self._check(self._store.read_image(digest, name), name)
        except ImageNotFound:
            missing = ImageNotFound.of(
                f"image {name} is {digest} for this job, as for its batch or its earlier run, and that is not on this host: "
                "add the same image here, submit with another batch name, or run it again with --resolve-images"
            )
            return self._taker.take(replace(wanted, digest=digest), missing, hooks, check)

    def _find_one(self, wanted: Reference, hooks: StartHooks, check: Callable[[], None]) -> Image:
        if wanted.in_registry is None:
            try:
                image = self._store.resolve("@".join(filter(None, (wanted.name, wanted.digest))))
                return self._check(image, wanted.name) if wanted.digest else image
            except ImageNotFound as error:
                return self._taker.take(wanted, error, hooks, check)
        name, is_allowed = wanted.in_registry, self.may_pull(wanted.in_registry)
        if name.digest or not is_allowed or self._puller.is_fresh(name):
            try:
                image = self._store.resolve(str(name))
                return self._check(image, name.name) if name.digest else image
            except ImageNotFound as error:
                if not is_allowed:
                    raise _forbidden(name) from error
            except ImageInvalid:  # a pull mends it
                if not is_allowed:
                    raise
        with hooks.waiting(f"image {name} to be pulled", is_remote=True), host_faults(self._store.root):
            return self._puller.pull(name, check)

    def _check(self, image: Image, name: str | None) -> Image:
        check_digest(self._store.catalog, image, name, self._allowed, "SANDFLEET_POLICY__IMAGES")
        return image

    def pull(self, reference: str) -> Image:
        """Pull an image by hand, whatever the settings allow to jobs.

        It is never removed to free space.

        Raises:
            ImageNotFound: it is no name in a registry, or the registry has no such image.
            SandboxError: as `Puller.pull`.
        """
        wanted = Reference.parse(reference)
        if wanted.in_registry is None:
            raise ImageNotFound.of(f"{reference[:200]!r} is no name in a registry: write docker://{reference[:200]}")
        with host_faults(self._store.root):
            image = self._puller.pull(wanted.in_registry, lambda: None, is_forced=True)
            self.cache.keep(image)
        return image

    def may_pull(self, name: RegistryName) -> bool:
        """Whether this host's settings let a job have the image pulled."""
        return any(matches_pattern(name, pattern) for pattern in self._settings.pull_from)


def _forbidden(name: RegistryName) -> PullForbidden:
    message = (
        f"{name} is not on this host, and may not be pulled (SANDFLEET_IMAGES__PULL_FROM): "
        f"add a pattern such as {name.repository} there, or run `sandfleet-worker images pull {name}`"
    )
    return PullForbidden.of(message, errors=[{"field": "image", "message": message}])
