"""Read an image store: the digests of names, and the facts of images."""

from __future__ import annotations

import difflib
import json
import os
from typing import TYPE_CHECKING

from sandfleet_config.errors import ImageNotFound

from sandfleet_worker.sandbox.image.image import Image, damaged, read_image
from sandfleet_worker.sandbox.image.references import Reference, encode_name, is_digest, is_name
from sandfleet_worker.sandbox.image.staging import host_faults
from sandfleet_worker.sandbox.image.starter import STARTERS
from sandfleet_worker.system.supervised_thread import is_resource_error

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

EROFS, FACTS = "image.erofs", "image.json"


class Catalog:
    """Reads the store at `root`; safe for threads and beside processes that change the store."""

    def __init__(self, root: Path) -> None:
        self.root, self.blobs, self.refs = root, root / "blobs", root / "refs"
        # Images by folder, valid as long as the identities of their files are: see `read_image`.
        self._cache: dict[Path, tuple[tuple[int, ...], Image]] = {}

    def blob_path(self, digest: str) -> Path:
        """Return the folder of an image."""
        return self.blobs / digest.replace(":", "-")

    def ref_path(self, name: str) -> Path:
        """Return the file that says which digest a name means."""
        return self.refs / f"{encode_name(name)}.json"

    def resolve(self, reference: str) -> Image:
        """Return the image of a name, `name@sha256:...` or `sha256:...`; raises as `ImageStore.resolve`."""
        wanted = Reference.parse(reference)
        if wanted.name is None:
            return self.read_image(str(wanted.digest), reference)
        digest = self._read_ref(wanted.name)
        if wanted.digest is None:
            return self.read_image(digest, wanted.name)
        if digest != wanted.digest and not self.blob_path(wanted.digest).exists():
            raise ImageNotFound.of(
                f"image {wanted.name} is {digest} on this host, and the pinned {wanted.digest} is not here: "
                f"add it with `sandfleet-worker images add {wanted.name} SOURCE`, or pin what is here"
            )
        return self.read_image(wanted.digest, wanted.name)

    def _read_ref(self, name: str) -> str:
        try:
            digest = json.loads(self.ref_path(name).read_bytes())["digest"]
        except (FileNotFoundError, NotADirectoryError) as error:
            raise self.new_not_found(name) from error
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

    def read_image(self, digest: str, name: str) -> Image:
        """Return the image with this digest, called `name` in messages. Cheap when asked again: two stat calls.

        Raises:
            ImageNotFound: it is not here.
            ImageInvalid: it is here but damaged.
        """
        blob = self.blob_path(digest)
        path = blob / FACTS
        try:
            facts, erofs = path.stat(), (blob / EROFS).stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            if blob.exists():
                raise damaged(name, "a file of it is missing") from error
            raise self.new_not_found(name) from error
        identity = (facts.st_ino, facts.st_mtime_ns, facts.st_size, erofs.st_ino, erofs.st_mtime_ns, erofs.st_size)
        known = self._cache.get(blob)
        if known is None or known[0] != identity:
            known = (identity, read_image(path, digest, name, erofs.st_size))
            self._cache[blob] = known
        image = known[1]
        return image if image.name == name else image.model_copy(update={"name": name})

    def forget(self, blob: Path) -> None:
        """Read an image anew at the next call: its folder is gone."""
        self._cache.pop(blob, None)

    def list_refs(self) -> Sequence[tuple[str, str]]:
        """Return each name with its digest; a damaged reference is left out."""
        found = []
        for path in self.refs.glob("*.json"):
            try:
                ref = json.loads(path.read_bytes())
                name, digest = str(ref["name"]), str(ref["digest"])
            except (OSError, ValueError, KeyError, TypeError) as error:
                if is_resource_error(
                    error
                ):  # the removal of another name could remove the files of a name that is left out
                    raise
                continue
            if is_name(name) and is_digest(digest):
                found.append((name, digest))
        return found

    def open_blob(self, digest: str, name: str) -> int:
        """Open the EROFS file of an image for reading; return its descriptor.

        Raises:
            ImageNotFound: it is not here.
            ImageInvalid: it is here but damaged.
        """
        blob = self.blob_path(digest)
        try:
            return os.open(blob / EROFS, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise (damaged(name, "its file is missing") if blob.exists() else self.new_not_found(name)) from error

    def new_not_found(self, name: str) -> ImageNotFound:
        """Return the error of an image that is not here, with the command that adds it."""
        here = self._name_near(name)
        how = f"images add {name}" if name in STARTERS else f"images add {name} SOURCE"
        if is_digest(name):
            how = "images add NAME SOURCE"
        return ImageNotFound.of(f"no image {name} here ({here}): run `sandfleet-worker {how}`")

    def new_nothing_to_remove(self, name: str) -> ImageNotFound:
        """Return the error of an image that cannot be removed because it is not here."""
        more = ": `sandfleet-worker images list` shows them all" if self.list_refs() else ""
        return ImageNotFound.of(f"no image {name} here ({self._name_near(name)}){more}")

    def _name_near(self, name: str) -> str:
        names = [image_name for image_name, _ in self.list_refs()]
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:5]
        return f"this host has: {', '.join(near)}" if near else "this host has no image at all"
