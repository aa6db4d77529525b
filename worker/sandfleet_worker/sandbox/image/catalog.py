"""Read an image store: the digests of names, and the facts of images."""

from __future__ import annotations

import contextlib
import difflib
import functools
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

from sandfleet_config.errors import ImageInvalid, ImageNotFound
from sandfleet_config.image_names import REGISTRY_PREFIX

from sandfleet_worker.sandbox.image.image import Image, damaged, read_image
from sandfleet_worker.sandbox.image.kind import Kind
from sandfleet_worker.sandbox.image.references import Reference, encode_name, is_digest, is_name, is_registry_name
from sandfleet_worker.sandbox.image.staging import host_faults, lock_shared
from sandfleet_worker.sandbox.image.starter import STARTERS, list_ready_recipes
from sandfleet_worker.system.supervised_thread import is_resource_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandfleet_worker.sandbox.start_hooks import StartHooks

EROFS, FACTS = "image.erofs", "image.json"
EARLIER = "was-"
"""The beginning of the name of an empty file beside these two, for each name that the image had."""
_parse = functools.lru_cache(maxsize=1024)(Reference.parse)


class Catalog:
    """Reads the store at `root`; safe for threads and beside processes that change the store."""

    def __init__(self, root: Path, kind: Kind = Kind.IMAGE) -> None:
        self.root, self.blobs, self.refs = root, root / "blobs", root / "refs"
        self.kind = kind
        # Valid for as long as the identities of the files are.
        self._images: dict[str, tuple[tuple[int, ...], Image]] = {}
        self._digests: dict[str, tuple[tuple[int, ...], str]] = {}

    def blob_path(self, digest: str) -> Path:
        """Return the folder of an image."""
        return Path(self._blob_text(digest))

    def _blob_text(self, digest: str) -> str:
        return f"{self.blobs}/{digest.replace(':', '-')}"

    def ref_path(self, name: str) -> Path:
        """Return the file that says which digest a name means."""
        return Path(self._ref_text(name))

    def _ref_text(self, name: str) -> str:
        return f"{self.refs}/{encode_name(name)}.json"

    def resolve(self, reference: str) -> Image:
        """Return the image of a name, `name@sha256:...` or `sha256:...`.

        Raises as `ImageStore.resolve`.
        """
        wanted = _parse(reference)
        if wanted.name is None:
            return self.read_image(str(wanted.digest), reference)
        if wanted.in_registry and wanted.digest:
            return self.read_image(wanted.digest, str(wanted.in_registry))
        digest = self._read_ref(wanted.name)
        if wanted.digest is None:
            return self.read_image(digest, wanted.name)
        if digest != wanted.digest and not self.blob_path(wanted.digest).exists():
            raise ImageNotFound.of(
                f"{self.kind} {wanted.name} is {digest} on this host, and the pinned {wanted.digest} is not here: "
                f"add it with `sandfleet-worker {self.kind}s add {wanted.name} SOURCE`, or pin what is here"
            )
        return self.read_image(wanted.digest, wanted.name)

    def _read_ref(self, name: str) -> str:
        """Return the digest of a name.

        Cheap when asked again: one stat call, since a rename replaces each reference.
        """
        try:
            facts = os.stat(self._ref_text(name))  # noqa: PTH116
            identity = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
            known = self._digests.get(name)
            if known is not None and known[0] == identity:
                return known[1]
            digest = json.loads(self.ref_path(name).read_bytes())["digest"]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self.new_not_found(name) from error
        except PermissionError as error:
            with host_faults(self.root):
                raise error from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            if is_resource_error(error):
                raise
            raise damaged(name, "its reference cannot be read", self.kind) from error
        if not isinstance(digest, str) or not is_digest(digest):
            raise damaged(name, "its reference holds no digest", self.kind)
        self._digests[name] = (identity, digest)
        return digest

    def find_resolved(self, name: str) -> tuple[str, float] | None:
        """Return the last known digest of a tag, and when it was asked (``time.time``), or None."""
        try:
            digest = self._read_ref(name)
        except (ImageNotFound, ImageInvalid):
            return None
        return digest, self._digests[name][0][1] / 1e9

    def read_image(self, digest: str, name: str) -> Image:
        """Return the image with this digest, called `name` in messages.

        Cheap when asked again: two stat calls.

        Raises:
            ImageNotFound: it is not here.
            ImageInvalid: it is here but damaged.
        """
        # Text paths here and in `open_blob`: done for each job, and pathlib costs several times as
        # much.
        blob = self._blob_text(digest)
        try:
            facts, erofs = os.stat(f"{blob}/{FACTS}"), os.stat(f"{blob}/{EROFS}")  # noqa: PTH116
        except (FileNotFoundError, NotADirectoryError) as error:
            if self.blob_path(digest).exists():
                raise damaged(name, "a file of it is missing", self.kind) from error
            raise self.new_not_found(name) from error
        identity = (facts.st_ino, facts.st_mtime_ns, facts.st_size, erofs.st_ino, erofs.st_mtime_ns, erofs.st_size)
        known = self._images.get(digest)
        if known is None or known[0] != identity:
            known = (identity, read_image(self.blob_path(digest) / FACTS, digest, name, erofs.st_size, self.kind))
            self._images[digest] = known
        image = known[1]
        return image if image.name == name else image.model_copy(update={"name": name})

    def forget(self, digest: str) -> None:
        """Free the memory of an image that is removed."""
        self._images.pop(digest, None)

    def list_refs(self) -> Sequence[tuple[str, str]]:
        """Return each name with its digest; a damaged reference is left out."""
        return [ref for path in self.refs.glob("*.json") if (ref := _parse_ref(path))]

    def find_damaged_refs(self) -> Sequence[str]:
        """Return what is wrong with the references that `list_refs` leaves out."""
        paths = [path for path in sorted(self.refs.glob("*.json")) if not _parse_ref(path) and path.exists()]
        return [damaged(unquote(path.stem), "its reference cannot be read", self.kind).message for path in paths]

    def note_earlier_name(self, name: str) -> None:
        """Note the earlier name at the image that `name` means now.

        Called before another image gets the name.
        """
        with contextlib.suppress(ImageNotFound, ImageInvalid):
            blob = self.blob_path(self._read_ref(name))
            with contextlib.suppress(FileNotFoundError):  # its image was removed
                (blob / f"{EARLIER}{encode_name(name)}").touch()

    def had_name(self, digest: str, name: str) -> bool:
        """Whether the image has this name, or had it before another image got it.

        Cheap if it has.
        """
        with contextlib.suppress(ImageNotFound, ImageInvalid):
            if self._read_ref(name) == digest:
                return True
        return (self.blob_path(digest) / f"{EARLIER}{encode_name(name)}").exists()

    def list_names(self, digest: str) -> set[str]:
        """Return the names that the image has, and had before others got them."""
        earlier = self.blob_path(digest).glob(f"{EARLIER}*")
        names = {unquote(path.name.removeprefix(EARLIER)) for path in earlier}
        return names | {name for name, other in self.list_refs() if other == digest}

    def open_blob(self, digest: str, name: str) -> int:
        """Open the EROFS file of an image for reading; return its descriptor.

        Raises:
            ImageNotFound: it is not here.
            ImageInvalid: it is here but damaged.
        """
        try:
            return os.open(f"{self._blob_text(digest)}/{EROFS}", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            is_here = self.blob_path(digest).exists()
            why = damaged(name, "its file is missing", self.kind) if is_here else self.new_not_found(name)
            raise why from error

    def open_held(self, image: Image, hooks: StartHooks, check: Callable[[], None]) -> int:
        """Return a descriptor that keeps an image until it is closed; as `ImageStore.hold`."""
        descriptor = self.open_blob(image.digest, image.name)
        try:
            lock_shared(descriptor, self.kind, hooks, check)
            # A removal that had the lock before has moved the file away.
            if self.is_current(descriptor, image.digest):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        raise self.new_not_found(image.name)

    def is_current(self, descriptor: int, digest: str) -> bool:
        """Whether `descriptor` is the EROFS file of the image; False after its removal."""
        try:
            here = os.stat(f"{self._blob_text(digest)}/{EROFS}")  # noqa: PTH116
        except OSError:
            return False
        opened = os.fstat(descriptor)
        return (here.st_dev, here.st_ino) == (opened.st_dev, opened.st_ino)

    def new_not_found(self, name: str) -> ImageNotFound:
        """Return the error of a missing image or dataset, with the command that adds it."""
        here = self._name_near(name)
        if name.startswith(REGISTRY_PREFIX):
            return ImageNotFound.of(f"no image {name} here ({here}): run `sandfleet-worker images pull {name}`")
        how = f"images add {name}" if name in STARTERS else f"images add {name} SOURCE"
        if name not in STARTERS and name in list_ready_recipes():
            how = f"images build {name}"
        if self.kind is Kind.DATASET:
            how = f"datasets add {name} FOLDER"
        if is_digest(name):
            how = f"{self.kind}s add NAME SOURCE"
        return ImageNotFound.of(f"no {self.kind} {name} here ({here}): run `sandfleet-worker {how}`")

    def new_nothing_to_remove(self, name: str) -> ImageNotFound:
        """Return the error of an image that cannot be removed because it is not here."""
        more = f": `sandfleet-worker {self.kind}s list` shows them all" if self.list_refs() else ""
        return ImageNotFound.of(f"no {self.kind} {name} here ({self._name_near(name)}){more}")

    def _name_near(self, name: str) -> str:
        names = [image_name for image_name, _ in self.list_refs()]
        if not names:
            return f"this host has no {self.kind} at all"
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or sorted(names)[:5]
        more = f" and {len(names) - len(near)} more" if len(near) < len(names) else ""
        return f"this host has: {', '.join(near)}{more}"


def _parse_ref(path: Path) -> tuple[str, str] | None:
    """Return the name and the digest that a file of `refs` holds; None if it is damaged."""
    try:
        ref = json.loads(path.read_bytes())
        name, digest = str(ref["name"]), str(ref["digest"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        # Without this name in the list, a removal of another name could remove its files.
        if is_resource_error(error):
            raise
        return None
    return (name, digest) if (is_name(name) or is_registry_name(name)) and is_digest(digest) else None
