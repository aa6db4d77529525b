"""A store in memory: what tests upload, and the artifacts of their jobs."""

from __future__ import annotations

import hashlib
import threading
from contextlib import nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from sandfleet_config.store.protocol import CHUNK_BYTES, ObjectDamaged, ObjectInfo, ObjectMissing, check_sha256

from sandfleet.files.objects import Objects

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

NAME: Final = "the store in memory"


class FakeStore:
    """An `ObjectStore` in memory, and its own `Keeper`: nothing expires.

    ``fleet.store.delete(sha256)`` lets an object expire; `max_object_bytes` may be set.
    """

    name = NAME

    def __init__(self) -> None:
        self.max_object_bytes: int | None = None
        self._lock = threading.Lock()
        self._objects: dict[str, bytes] = {}
        self._owner = ""

    def new_objects(self) -> Objects:
        """Return the producer's view of this store."""
        return Objects(self, self, nullcontext)

    def put_file(self, sha256: str, path: Path, check: Callable[[], None] | None = None) -> bool:  # noqa: ARG002  as in `ObjectStore`
        """Keep the bytes of a file."""
        return self.put_bytes(sha256, path.read_bytes())

    def put_bytes(self, sha256: str, data: bytes) -> bool:
        """Keep `data`; return whether it is new."""
        if hashlib.sha256(data).hexdigest() != check_sha256(sha256):
            raise ObjectDamaged(f"not uploaded: the bytes are not those of object {sha256}", sha256)
        with self._lock:
            is_new = sha256 not in self._objects
            self._objects.setdefault(sha256, data)
        return is_new

    def read(self, sha256: str) -> Iterator[bytes]:
        """Yield an object in chunks."""
        data = self.get(sha256)
        yield from (data[at : at + CHUNK_BYTES] for at in range(0, len(data), CHUNK_BYTES))
        if hashlib.sha256(data).hexdigest() != sha256:
            raise ObjectDamaged(f"object {sha256} in {NAME} was altered", sha256)

    def get(self, sha256: str) -> bytes:
        """Return an object.

        Raises:
            ObjectMissing: there is none.
        """
        with self._lock:
            if sha256 not in self._objects:
                raise ObjectMissing(f"{NAME} has no object {sha256}", [sha256])
            return self._objects[sha256]

    def fetch(self, sha256: str, path: Path) -> None:
        """Write an object to a file."""
        path.write_bytes(self.get(sha256))

    def size_of(self, sha256: str) -> int | None:
        """Return an object's size, None if there is none."""
        with self._lock:
            found = self._objects.get(sha256)
        return None if found is None else len(found)

    def find_missing(self, names: Collection[str]) -> set[str]:
        """Return those of `names` that are not there."""
        with self._lock:
            return set(names) - self._objects.keys()

    def delete(self, sha256: str) -> bool:
        """Forget an object; return whether it was there."""
        with self._lock:
            return self._objects.pop(sha256, None) is not None

    def list_objects(self) -> Iterator[ObjectInfo]:
        """Yield all objects."""
        with self._lock:
            found = list(self._objects.items())
        now = self.read_clock()
        return (ObjectInfo(sha256, len(data), now) for sha256, data in found)

    def read_clock(self) -> datetime:
        """Return the time of now."""
        return datetime.now(UTC)

    def read_owner(self) -> str:
        """Return the fleet that collects garbage here; empty if none does."""
        return self._owner

    def write_owner(self, fleet: str) -> None:
        """Note that fleet."""
        self._owner = fleet

    def remove_leftovers(self, before: datetime) -> int:  # noqa: ARG002  as in `ObjectStore`
        """Return 0: nothing can be left half done."""
        return 0

    def close(self) -> None:
        """Do nothing."""

    def keep(self, names: Collection[str], seconds: float) -> None:
        """Do nothing: everything is kept."""

    def require(self, names: Collection[str], seconds: float) -> None:  # noqa: ARG002  as in `Keeper`
        """Raise `ObjectMissing` if one of them is not there."""
        if missing := self.find_missing(names):
            raise ObjectMissing(f"{NAME} lacks objects", [name for name in names if name in missing])
