"""The three kinds of stores, as the tests of their common contract see them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import obstore
from sandfleet_config.queues import KEY_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_config.store.protocol import ObjectStore

KINDS = ("folder", "s3", "redis")


def sha_of(data: bytes) -> str:
    """Return the name of an object."""
    return hashlib.sha256(data).hexdigest()


@dataclass(frozen=True)
class StoreKind:
    """A store, and a look behind it."""

    kind: str
    store: ObjectStore
    open: Callable[[], ObjectStore]
    root: Path | None
    client: Any

    def alter(self, name: str, data: bytes) -> None:
        """Change the stored bytes of an object."""
        if self.kind == "redis":
            self.client.set(f"{KEY_PREFIX}store:object:{name}", data, keepttl=True)
        elif self.kind == "s3":
            store: Any = self.store
            obstore.put(store._client, f"objects/{name[:2]}/{name}", data, mode="overwrite")
        else:
            assert self.root is not None
            path = self.root / "objects" / name[:2] / name
            path.chmod(0o644)
            path.write_bytes(data)

    def count_files(self) -> int:
        """Return the number of objects and of unfinished ones."""
        if self.kind == "redis":
            return len(list(self.client.scan_iter(f"{KEY_PREFIX}store:object:*")))
        if self.kind == "s3":
            return len(list(self.store.list_objects()))
        assert self.root is not None
        return sum(path.is_file() for path in self.root.rglob("*"))
