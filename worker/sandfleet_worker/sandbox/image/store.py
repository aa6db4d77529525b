"""A host's images or datasets: a digest is one read-only EROFS file, names point to digests.

    blobs/sha256-<hex>/image.erofs   what sandboxes mount; never changed once it is there
    blobs/sha256-<hex>/image.json    the facts of the image: config, users, groups, sizes
    refs/<encoded name>.json         {"name": ..., "digest": ..., "source": ...}
    staging/                         adds under way; see staging.py
    locks/                           one lock file for each add, and one for changes of refs

Everything appears in one rename, as a whole and synced. A running job holds a shared flock on
image.erofs itself. `remove` needs an exclusive one, so an image in use stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet_config.errors import ImageInvalid, ImageNotFound

from sandfleet_worker.sandbox.image.build import build_image
from sandfleet_worker.sandbox.image.catalog import EROFS, FACTS, Catalog
from sandfleet_worker.sandbox.image.image import Image, damaged
from sandfleet_worker.sandbox.image.kind import Kind
from sandfleet_worker.sandbox.image.oci import OciImage, read_oci
from sandfleet_worker.sandbox.image.pack import hash_whole
from sandfleet_worker.sandbox.image.references import is_name
from sandfleet_worker.sandbox.image.removal import Removal
from sandfleet_worker.sandbox.image.staging import (
    host_faults,
    locked,
    staging_folder,
    sweep,
    sync_folder,
    write_json,
)
from sandfleet_worker.sandbox.image.tools import Limits, StagingFolder
from sandfleet_worker.sandbox.image.users import ResolvedUser, resolve_user
from sandfleet_worker.sandbox.start_hooks import NoHooks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sandfleet_worker.sandbox.start_hooks import StartHooks

__all__ = ["Image", "ImageStore", "Limits", "ResolvedUser", "resolve_user"]

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]
_NO_HOOKS = NoHooks()


class ImageStore:
    """Add, find, hold and remove images. Safe to use from any number of threads and processes."""

    def __init__(self, root: Path, limits: Limits | None = None, kind: Kind = Kind.IMAGE) -> None:
        """Use the store at `root`; nothing is read or made before it is needed."""
        self.root = root
        self._limits = limits or Limits()
        self.catalog = Catalog(root, kind)
        self._staging = root / "staging"
        self._locks = root / "locks"
        self._removal = Removal(self.catalog, self._staging, self._locks / "refs")

    def add(
        self, name: str, source: str | None = None, *, is_fresh: bool = False, on_progress: Progress = lambda _: None
    ) -> Image:
        """Make an image from `rootfs:FOLDER-OR-TAR`, `oci:LAYOUT[:TAG]`, or a starter's recipe.

        A name that existed points to the new image afterwards. A digest that is here already is not
        packed again unless it is outdated; `is_fresh` builds a starter again even if its name is
        here.

        Raises:
            ImageInvalid: the name, the source or its content is not usable; says why.
            ImageUnavailable: a tool or a right is missing on this host.
            HostResources: the disk is full. In every case nothing half-made is left.
        """
        if not is_name(name):
            raise ImageInvalid.of(f"{name[:200]!r} is no image name: use lower case, such as `python` or `team/app:v1`")
        name = name.removesuffix(":latest")
        source = source or f"starter:{name}"
        with contextlib.ExitStack() as stack:
            stack.enter_context(host_faults(self.root if self.root.exists() else Path("/")))
            oci = read_oci(source.removeprefix("oci:")) if source.startswith("oci:") else None
            key = hashlib.sha256((oci.digest if oci else source).encode()).hexdigest()[:32]
            stack.enter_context(
                locked(self._locks / f"add-{key}", "waiting for another add of the same image", on_progress)
            )
            image = self._find_added(name, source, oci, is_fresh=is_fresh)
            if image is None:
                image = self._build(name, source, oci, on_progress)
            else:
                on_progress("already here")
            return self.name_image(name, image)

    def _find_added(self, name: str, source: str, oci: OciImage | None, *, is_fresh: bool) -> Image | None:
        """Return the image that this add would make; None if that is not known beforehand.

        None also if a file of it is damaged.
        """
        with contextlib.suppress(ImageNotFound, ImageInvalid):
            if oci is not None:
                image = self.resolve(oci.digest)
            elif source.startswith("starter:") and not is_fresh:
                image = self.resolve(name)
            else:
                return None
            is_same = not image.is_outdated and (image.source == source or oci is not None)
            return image if is_same else None
        return None

    def _build(self, name: str, source: str, oci: OciImage | None, on_progress: Progress) -> Image:
        built = self.make(lambda staging: build_image(name, source, oci, staging, on_progress), self._limits)
        on_progress(f"added {name} as {built.digest}")
        return built

    def make(
        self, build: Callable[[StagingFolder], Image], limits: Limits, check: Callable[[], None] = lambda: None
    ) -> Image:
        """Publish the image that `build` makes in a staging folder; it has no name yet.

        `check` is called meanwhile, and ends the making if it raises.

        Raises:
            SandboxError: what `build` raises. Then nothing is left.
            HostResources: the disk is full.
        """
        with host_faults(self.root), staging_folder(self._staging) as (folder, lock):
            built = build(StagingFolder(folder, lock, limits, check))
            self._publish(built.erofs_path.parent, built.digest)
        return built.model_copy(update={"erofs_path": self.catalog.blob_path(built.digest) / EROFS})

    def _publish(self, blob: Path, digest: str) -> None:
        """Move a finished blob to its place.

        A whole one that is there already stays, unless it is outdated. Jobs that run from it have
        it open, and those that are about to start find the new one at the same path.
        """
        target = self.catalog.blob_path(digest)
        with locked(self._locks / "refs"):
            self.catalog.blobs.mkdir(parents=True, exist_ok=True)
            if target.exists():
                with contextlib.suppress(ImageInvalid, ImageNotFound):
                    found = self.catalog.read_image(digest, digest)
                    if self.catalog.kind is Kind.DATASET or not found.is_outdated:
                        return
                self._removal.discard(digest, blob)
            else:
                blob.rename(target)
            sync_folder(self.catalog.blobs)

    def name_image(self, name: str, image: Image) -> Image:
        """Let `name` mean `image` from now on; return the image by this name.

        Raises:
            ImageNotFound: the image was removed just before.
        """
        with locked(self._locks / "refs"):
            self._write_ref(name, image)
        return image.model_copy(update={"name": name})

    def rename_image(self, image: Image, successor: Image) -> str:
        """Let `image`'s name mean `successor`, unless it means another by now; return its digest.

        Raises:
            ImageNotFound: one of them was removed just before.
        """
        with locked(self._locks / "refs"):
            found = self.catalog.resolve(image.name).digest
            if found != image.digest:
                return found
            self._write_ref(image.name, successor)
        return successor.digest

    def _write_ref(self, name: str, image: Image) -> None:
        """Write what `name` means; the caller holds the lock of names."""
        kind = self.catalog.kind
        if not (self.catalog.blob_path(image.digest) / FACTS).exists():
            raise ImageNotFound.of(f"{kind} {name} was removed while it was being added: add it again")
        self.catalog.note_earlier_name(name)
        self.catalog.refs.mkdir(parents=True, exist_ok=True)
        self._staging.mkdir(parents=True, exist_ok=True)
        ref = {"name": name, "digest": image.digest, "source": image.source}
        write_json(self.catalog.ref_path(name), ref, self._staging / f"ref.{os.getpid()}.{time.monotonic_ns()}")
        logger.info("%s %s is %s", kind, name, image.digest, extra={"action": f"{kind}_added", kind: name})

    def resolve(self, reference: str) -> Image:
        """Return the image of a name, `name@sha256:...` or `sha256:...`.

        Cheap when asked again: some stat calls.

        Raises:
            ImageNotFound: there is none; the message has the command to run and similar names.
            ImageInvalid: it is here but damaged, or `name` is not the digest that was pinned.
        """
        return self.catalog.resolve(reference)

    @contextlib.contextmanager
    def hold(
        self, image: Image, hooks: StartHooks = _NO_HOOKS, check: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Keep an image from being removed for as long as a sandbox runs from it.

        `hooks` are told of a long wait. `check` is called meanwhile, and ends the wait if it
        raises.

        Raises:
            ImageNotFound: it was removed just before.
        """
        descriptor = self.catalog.open_held(image, hooks, check)
        try:
            yield
        finally:
            os.close(descriptor)

    def remove(self, reference: str) -> None:
        """Remove a name, and with its last name the image.

        A digest removes the image with all its names.

        Raises:
            ImageNotFound: there is no such image.
            ImageInvalid: a job is running from it now.
        """
        self._removal.remove(reference)

    def list(self) -> list[Image]:
        """Return every image by name, then those without a name under their digest."""
        images, damaged = self.list_with_damaged()
        for message in damaged:
            logger.warning("left out: %s", message, extra={"action": f"{self.catalog.kind}_damaged"})
        return [*images]

    def list_with_damaged(self) -> tuple[Sequence[Image], Sequence[str]]:
        """Return what `list` does, and what is wrong with those that it leaves out."""
        refs = sorted(self.catalog.list_refs())
        named = {digest for _, digest in refs}
        nameless = (
            f"sha256:{path.name.removeprefix('sha256-')}" for path in sorted(self.catalog.blobs.glob("sha256-*"))
        )
        images, damaged = [], [*self.catalog.find_damaged_refs()]
        for name, digest in [*refs, *((digest, digest) for digest in nameless if digest not in named)]:
            try:
                images.append(self.catalog.read_image(digest, name))
            except (ImageInvalid, ImageNotFound) as error:
                damaged.append(error.message)
        return images, damaged

    def read_identity(self) -> tuple[int, ...]:
        """Return a value that changes when an image is added, named or removed. Cheap."""
        return tuple(
            folder.stat().st_mtime_ns if folder.exists() else 0 for folder in (self.catalog.refs, self.catalog.blobs)
        )

    def list_references(self) -> set[str]:
        """Return the names and digests of the images that are here, whole or not."""
        blobs = {path.name.replace("-", ":", 1) for path in self.catalog.blobs.glob("sha256-*")}
        return blobs | {name for name, digest in self.catalog.list_refs() if digest in blobs}

    def find_resolved(self, name: str) -> tuple[str, float] | None:
        """Return the last known digest of a tag, and when it was asked (``time.time``), or None."""
        return self.catalog.find_resolved(name)

    def read_image(self, digest: str, name: str) -> Image:
        """Return the image with this digest, called `name` in messages. Raises as `resolve`."""
        return self.catalog.read_image(digest, name)

    def new_lock(self, kind: str, key: str) -> Path:
        """Return the lock file of one thing of a `kind`, such as the pull of one digest.

        Few things share one, so that their number is bounded.
        """
        return self._locks / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()[:3]}"

    def sweep(self) -> None:
        """Remove what killed pulls and adds have left."""
        if self._staging.is_dir():
            sweep(self._staging)

    def evict(self, digest: str) -> bool:
        """Remove a pulled image and its names; False if it is in use, or has a name of its own."""
        return self._removal.evict(digest)

    def verify(self, image: Image) -> None:
        """Read the whole image file and compare it with what was packed.

        Raises:
            ImageInvalid: it is not what was packed.
        """
        if hash_whole(image.erofs_path) != image.erofs_sha256:
            raise damaged(image.name, "its file was changed on disk", self.catalog.kind)
