"""Remove images and names from a store; an image that a sandbox runs from stays."""

from __future__ import annotations

import fcntl
import logging
import os
import time
from typing import TYPE_CHECKING

from sandfleet_config.errors import ImageInvalid

from sandfleet_worker.sandbox.image.references import Reference, is_registry_name
from sandfleet_worker.sandbox.image.staging import host_faults, locked, remove_tree

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sandfleet_worker.sandbox.image.catalog import Catalog

logger = logging.getLogger(__name__)


class Removal:
    """Removes from the store of `catalog` through `staging`; `lock` is the lock file of names."""

    def __init__(self, catalog: Catalog, staging: Path, lock: Path) -> None:
        self._catalog, self._staging, self._lock = catalog, staging, lock

    def remove(self, reference: str) -> None:
        """See `ImageStore.remove`."""
        wanted = Reference.parse(reference)
        with host_faults(self._catalog.root), locked(self._lock):
            digest, names = self._choose_to_remove(wanted, reference)
            if digest and self._catalog.blob_path(digest).exists():
                self._discard_unless_held(digest, reference)
            for name in names:
                self._catalog.ref_path(name).unlink(missing_ok=True)
        kind = self._catalog.kind
        logger.info("%s %s removed", kind, reference, extra={"action": f"{kind}_removed", kind: reference})

    def _choose_to_remove(self, wanted: Reference, reference: str) -> tuple[str, Sequence[str]]:
        """Return the digest whose files to remove ("" for none), and the names to remove."""
        refs = dict(self._catalog.list_refs())
        if wanted.name is None:
            digest = str(wanted.digest)
            names = [name for name, other in refs.items() if other == digest]
            if not names and not self._catalog.blob_path(digest).exists():
                raise self._catalog.new_nothing_to_remove(reference)
            return digest, names
        if wanted.name not in refs and self._catalog.ref_path(wanted.name).exists():
            return "", [wanted.name]  # a damaged reference can be removed like any other
        if wanted.name not in refs or wanted.digest not in {None, refs[wanted.name]}:
            raise self._catalog.new_nothing_to_remove(reference)
        digest = refs.pop(wanted.name)
        return "" if digest in refs.values() else digest, [wanted.name]

    def _discard_unless_held(self, digest: str, reference: str) -> None:
        try:
            descriptor = self._catalog.open_blob(digest, reference)
        except ImageInvalid:
            self.discard(digest)
            return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.discard(digest)
        except BlockingIOError as error:
            raise ImageInvalid.of(
                f"{self._catalog.kind} {reference} is in use by a running job: remove it again when its jobs have ended"
            ) from error
        finally:
            os.close(descriptor)

    def discard(self, digest: str, successor: Path | None = None) -> None:
        """Remove an image's files, and put those of `successor` in their place if it is given.

        The caller holds the lock of names.
        """
        self._staging.mkdir(parents=True, exist_ok=True)
        trash = self._staging / f"gone-{os.getpid()}-{time.monotonic_ns()}"
        self._catalog.blob_path(digest).rename(trash)
        if successor is not None:
            successor.rename(self._catalog.blob_path(digest))
        self._catalog.forget(digest)
        remove_tree(trash)

    def evict(self, digest: str) -> bool:
        """See `ImageStore.evict`."""
        with host_faults(self._catalog.root), locked(self._lock):
            names = [name for name, other in self._catalog.list_refs() if other == digest]
            if not all(is_registry_name(name) for name in names) or not self._catalog.blob_path(digest).exists():
                return False
            try:
                self._discard_unless_held(digest, digest)
            except ImageInvalid:
                return False
            for name in names:
                self._catalog.ref_path(name).unlink(missing_ok=True)
        kind = self._catalog.kind
        logger.info("%s %s removed to make room", kind, digest, extra={"action": f"{kind}_evicted", kind: digest})
        return True
