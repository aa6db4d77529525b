"""The images of this host: each digest is one read-only EROFS file, names point to digests.

    blobs/sha256-<hex>/image.erofs   what sandboxes mount; never changed once it is there
    blobs/sha256-<hex>/image.json    what the image says about running it
    refs/<encoded name>.json         {"name": ..., "digest": ..., "source": ...}
    staging/                         adds under way; see staging.py
    locks/                           who adds what, and who changes refs

Everything appears in one rename, whole and synced. Whoever runs a job holds a shared flock on image.erofs itself;
`remove` needs it exclusively, so an image in use stays.
"""

import contextlib
import difflib
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from sandfleet_config.errors import ImageInvalid, ImageNotFound

from sandfleet_worker.sandbox.image.image import Image, damaged, describe, read_image
from sandfleet_worker.sandbox.image.oci import ImageConfig, OciImage, read_oci
from sandfleet_worker.sandbox.image.pack import add_hosts, add_mount_points, hash_whole, settle, write_erofs
from sandfleet_worker.sandbox.image.references import Reference, encode_name, is_digest, is_name
from sandfleet_worker.sandbox.image.staging import (
    host_faults,
    lock_shared,
    locked,
    remove_tree,
    staging_folder,
    sync_folder,
    write_json,
)
from sandfleet_worker.sandbox.image.starter import STARTERS
from sandfleet_worker.sandbox.image.tools import Limits, Workshop
from sandfleet_worker.sandbox.image.unpack import unpack_oci, unpack_rootfs
from sandfleet_worker.sandbox.image.users import ResolvedUser, resolve_user
from sandfleet_worker.sandbox.start_hooks import NoHooks, StartHooks
from sandfleet_worker.system.supervised_thread import is_resource_error

__all__ = ["Image", "ImageStore", "Limits", "ResolvedUser", "resolve_user"]

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]
_NO_HOOKS = NoHooks()

COPIED_KINDS = frozenset({"containers-storage", "docker", "docker-archive", "docker-daemon", "oci-archive"})
"""Sources that skopeo(1) can copy into an OCI layout."""


class ImageStore:
    """Add, find, hold and remove images. Safe to use from any number of threads and processes."""

    def __init__(self, root: Path, limits: Limits | None = None) -> None:
        """Use the store at `root`; nothing is read or made before it is needed."""
        self.root = root
        self._limits = limits or Limits()
        self._blobs = root / "blobs"
        self._refs = root / "refs"
        self._staging = root / "staging"
        self._locks = root / "locks"
        # Facts by path, valid as long as the files' own identities are: see `_read_image`.
        self._cache: dict[Path, tuple[tuple[int, ...], Image]] = {}

    def add(
        self, name: str, source: str | None = None, *, is_fresh: bool = False, on_progress: Progress = lambda _: None
    ) -> Image:
        """Make an image out of `rootfs:FOLDER-OR-TAR`, `oci:LAYOUT[:TAG]` or, with no source, a starter's recipe.

        A name that existed points to the new image afterwards. A digest that is here already is not packed again;
        `is_fresh` builds a starter anew even if its name is here.

        Raises:
            ImageInvalid: the name, the source or what is in it is not usable; says why.
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
            return self._point(name, image)

    def _find_added(self, name: str, source: str, oci: OciImage | None, *, is_fresh: bool) -> Image | None:
        """Return the image that this add would make, where that is known beforehand and its file is whole."""
        with contextlib.suppress(ImageNotFound, ImageInvalid):
            if oci is not None:
                image = self.resolve(oci.digest)
            elif source.startswith("starter:") and not is_fresh:
                image = self.resolve(name)
            else:
                return None
            return image if image.source == source or oci is not None else None
        return None

    def _build(self, name: str, source: str, oci: OciImage | None, on_progress: Progress) -> Image:
        with staging_folder(self._staging) as (folder, lock):
            workshop = Workshop(folder, lock, self._limits)
            began = time.time()
            on_progress(f"unpacking {source}")
            config = _unpack(source, oci, workshop)
            add_mount_points(workshop.tree)
            add_hosts(workshop.tree)
            header = b"sandfleet tree 1\0" + repr(config).encode() + b"\0\n"
            content = settle(workshop.tree, began, self._limits, header=header, is_hashed=oci is None)
            blob = folder / "blob"
            blob.mkdir(mode=0o755)
            erofs = blob / "image.erofs"
            on_progress(f"packing {content.files} files, {content.size_bytes / 1e6:.1f} MB")
            write_erofs(workshop, erofs, content.latest)
            digest = oci.digest if oci else content.digest
            image = describe(workshop.tree, erofs, config).model_copy(
                update={"name": name, "digest": digest, "erofs_path": self._blob(digest) / erofs.name, "source": source}
            )
            # Where the blob ends up is the reader's to know: a store may be moved.
            stored = image.model_dump(mode="json", exclude={"name", "erofs_path"})
            write_json(blob / "image.json", stored, folder / "image.json.new")
            self._publish(blob, digest)
        on_progress(f"added {name} as {digest}")
        return image

    def _publish(self, blob: Path, digest: str) -> None:
        """Move a finished blob to its place; one that is already there, whole, stays: jobs may be running from it."""
        target = self._blob(digest)
        with locked(self._locks / "refs"):
            self._blobs.mkdir(parents=True, exist_ok=True)
            if target.exists():
                try:
                    self._read_image(digest, digest)
                except (ImageInvalid, ImageNotFound):
                    self._discard(target)
                else:
                    return
            blob.rename(target)
            sync_folder(self._blobs)

    def _point(self, name: str, image: Image) -> Image:
        with locked(self._locks / "refs"):
            if not (self._blob(image.digest) / "image.json").exists():
                raise ImageNotFound.of(f"image {name} was removed while it was being added: add it again")
            self._refs.mkdir(parents=True, exist_ok=True)
            self._staging.mkdir(parents=True, exist_ok=True)
            ref = {"name": name, "digest": image.digest, "source": image.source}
            write_json(self._ref(name), ref, self._staging / f"ref.{os.getpid()}.{time.monotonic_ns()}")
        logger.info("image %s is %s", name, image.digest, extra={"action": "image_added", "image": name})
        return image.model_copy(update={"name": name})

    def resolve(self, reference: str) -> Image:
        """Return the image of a name, `name@sha256:...` or `sha256:...`. Cheap when asked again: some stat calls.

        Raises:
            ImageNotFound: there is none; the message names what to run and what looks alike.
            ImageInvalid: it is here but damaged, or `name` is not the digest that was pinned.
        """
        wanted = Reference.parse(reference)
        if wanted.name is None:
            return self._read_image(str(wanted.digest), reference)
        digest = self._read_ref(wanted.name)
        if wanted.digest is None:
            return self._read_image(digest, wanted.name)
        if digest != wanted.digest and not self._blob(wanted.digest).exists():
            raise ImageNotFound.of(
                f"image {wanted.name} is {digest} on this host, and the pinned {wanted.digest} is not here: "
                f"add it with `sandfleet-worker images add {wanted.name} SOURCE`, or pin what is here"
            )
        return self._read_image(wanted.digest, wanted.name)

    def _read_ref(self, name: str) -> str:
        try:
            digest = json.loads(self._ref(name).read_bytes())["digest"]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self._not_found(name) from error
        except PermissionError as error:
            with host_faults(self.root):
                raise error from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            if is_resource_error(error):
                raise
            raise damaged(name, "its reference cannot be read") from error
        if not isinstance(digest, str) or not is_digest(digest):
            raise damaged(name, "its reference holds no digest")
        return digest

    def _read_image(self, digest: str, name: str) -> Image:
        blob = self._blob(digest)
        path = blob / "image.json"
        try:
            facts, erofs = path.stat(), (blob / "image.erofs").stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            if blob.exists():
                raise damaged(name, "a file of it is missing") from error
            raise self._not_found(name) from error
        identity = (facts.st_ino, facts.st_mtime_ns, facts.st_size, erofs.st_ino, erofs.st_mtime_ns, erofs.st_size)
        known = self._cache.get(blob)
        if known is None or known[0] != identity:
            known = (identity, read_image(path, digest, name, erofs.st_size))
            self._cache[blob] = known
        image = known[1]
        return image if image.name == name else image.model_copy(update={"name": name})

    def _not_found(self, name: str) -> ImageNotFound:
        here = self._name_near(name)
        how = f"images add {name}" if name in STARTERS else f"images add {name} SOURCE"
        if is_digest(name):
            how = "images add NAME SOURCE"
        return ImageNotFound.of(f"no image {name} here ({here}): run `sandfleet-worker {how}`")

    def _nothing_to_remove(self, name: str) -> ImageNotFound:
        more = ": `sandfleet-worker images list` shows them all" if self._list_refs() else ""
        return ImageNotFound.of(f"no image {name} here ({self._name_near(name)}){more}")

    def _name_near(self, name: str) -> str:
        names = [image_name for image_name, _ in self._list_refs()]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:5]
        return f"this host has: {', '.join(near)}" if near else "this host has no image at all"

    @contextlib.contextmanager
    def hold(
        self, image: Image, hooks: StartHooks = _NO_HOOKS, check: Callable[[], None] = lambda: None
    ) -> Iterator[None]:
        """Keep an image from being removed for as long as a sandbox runs from it.

        `hooks` hear where that takes time, and `check` is called meanwhile; it ends the wait by what it raises.

        Raises:
            ImageNotFound: it was removed just before.
        """
        descriptor = self._open_blob(image.digest, image.name)
        try:
            lock_shared(descriptor, hooks, check)
            # A removal that had the lock first has moved the file away meanwhile.
            if not _is_same_file(descriptor, self._blob(image.digest) / "image.erofs"):
                raise self._not_found(image.name)
            yield
        finally:
            os.close(descriptor)

    def remove(self, reference: str) -> None:
        """Remove a name, and with its last name the image; a digest removes the image with all its names.

        Raises:
            ImageNotFound: there is no such image.
            ImageInvalid: a job is running from it now.
        """
        wanted = Reference.parse(reference)
        with host_faults(self.root), locked(self._locks / "refs"):
            digest, going = self._choose_to_remove(wanted, reference)
            if digest and self._blob(digest).exists():
                self._discard_unless_held(digest, reference)
            for name in going:
                self._ref(name).unlink(missing_ok=True)
        logger.info("image %s removed", reference, extra={"action": "image_removed", "image": reference})

    def _choose_to_remove(self, wanted: Reference, reference: str) -> tuple[str, Sequence[str]]:
        """Return the digest whose files go ("" if none does), and the names that go."""
        refs = dict(self._list_refs())
        if wanted.name is None:
            digest = str(wanted.digest)
            names = [name for name, other in refs.items() if other == digest]
            if not names and not self._blob(digest).exists():
                raise self._nothing_to_remove(reference)
            return digest, names
        if wanted.name not in refs and self._ref(wanted.name).exists():
            return "", [wanted.name]  # a damaged reference can be removed like any other
        if wanted.name not in refs or wanted.digest not in {None, refs[wanted.name]}:
            raise self._nothing_to_remove(reference)
        digest = refs.pop(wanted.name)
        return "" if digest in refs.values() else digest, [wanted.name]

    def _discard_unless_held(self, digest: str, reference: str) -> None:
        try:
            descriptor = self._open_blob(digest, reference)
        except ImageInvalid:
            self._discard(self._blob(digest))
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._discard(self._blob(digest))
        except BlockingIOError as error:
            raise ImageInvalid.of(
                f"image {reference} is in use by a running job: remove it again when its jobs have ended"
            ) from error
        finally:
            os.close(descriptor)

    def _discard(self, blob: Path) -> None:
        self._staging.mkdir(parents=True, exist_ok=True)
        grave = self._staging / f"gone-{os.getpid()}-{time.monotonic_ns()}"
        blob.rename(grave)
        self._cache.pop(blob, None)
        remove_tree(grave)

    def list(self) -> list[Image]:
        """Return every image by name, then those that no name points to any more, under their digest."""
        refs = sorted(self._list_refs())
        named = {digest for _, digest in refs}
        nameless = (f"sha256:{path.name.removeprefix('sha256-')}" for path in sorted(self._blobs.glob("sha256-*")))
        images = []
        for name, digest in [*refs, *((digest, digest) for digest in nameless if digest not in named)]:
            try:
                images.append(self._read_image(digest, name))
            except (ImageInvalid, ImageNotFound) as error:
                logger.warning("image %s is left out: %s", name, error, extra={"action": "image_damaged"})
        return images

    def read_identity(self) -> tuple[int, ...]:
        """Return what changes with each image that is added, named or removed; cheap."""
        return tuple(folder.stat().st_mtime_ns if folder.exists() else 0 for folder in (self._refs, self._blobs))

    def list_references(self) -> set[str]:
        """Return the names of the images that are here, and their digests; whether they are whole is not looked at."""
        blobs = {path.name.replace("-", ":", 1) for path in self._blobs.glob("sha256-*")}
        return blobs | {name for name, digest in self._list_refs() if digest in blobs}

    def verify(self, image: Image) -> None:
        """Read the whole image file and compare it with what was packed.

        Raises:
            ImageInvalid: it is not what was packed.
        """
        if hash_whole(image.erofs_path) != image.erofs_sha256:
            raise damaged(image.name, "its file was changed on disk")

    def _list_refs(self) -> Sequence[tuple[str, str]]:
        found = []
        for path in self._refs.glob("*.json"):
            try:
                ref = json.loads(path.read_bytes())
                name, digest = str(ref["name"]), str(ref["digest"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                if is_resource_error(error):  # a name that is left out may lose its files to the removal of another
                    raise
                continue
            if is_name(name) and is_digest(digest):
                found.append((name, digest))
        return found

    def _open_blob(self, digest: str, name: str) -> int:
        blob = self._blob(digest)
        try:
            return os.open(blob / "image.erofs", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise (damaged(name, "its file is missing") if blob.exists() else self._not_found(name)) from error

    def _blob(self, digest: str) -> Path:
        return self._blobs / digest.replace(":", "-")

    def _ref(self, name: str) -> Path:
        return self._refs / f"{encode_name(name)}.json"


def _unpack(source: str, oci: OciImage | None, workshop: Workshop) -> ImageConfig:
    if oci is not None:
        unpack_oci(oci, workshop)
        return oci.config
    kind, _, rest = source.partition(":")
    if kind == "rootfs" and rest:
        unpack_rootfs(Path(rest), workshop)
        return ImageConfig()
    starter = STARTERS.get(rest) if kind == "starter" else None
    if starter is None:
        raise _no_source(source)
    starter.build(workshop)
    return starter.config


def _no_source(source: str) -> ImageInvalid:
    """Return the error of a source that no image can be made from, with what to give instead."""
    kind, _, rest = source.partition(":")
    shown = source[:200]
    forms = "rootfs:FOLDER, rootfs:FILE.tar[.gz|.xz|.zst] or oci:LAYOUT[:TAG]"
    starters = ", ".join(STARTERS)
    if kind == "starter":
        return ImageInvalid.of(f"there is no starter image {rest[:200]!r}, only {starters}: give a source, {forms}")
    if kind in COPIED_KINDS:
        copy = f"skopeo copy {shown} oci:FOLDER:NAME"
        return ImageInvalid.of(f"{kind}: is not read here: copy it first (`{copy}`), then give oci:FOLDER:NAME")
    hint = f", did you mean rootfs:{shown}?" if Path(source).exists() else f"; without a source there are: {starters}"
    return ImageInvalid.of(f"cannot make an image from {shown!r}: give {forms}{hint}")


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        here = path.stat()
    except OSError:
        return False
    return (here.st_dev, here.st_ino) == (os.fstat(descriptor).st_dev, os.fstat(descriptor).st_ino)
