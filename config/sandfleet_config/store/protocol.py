"""The interface of a store, its values and its errors.

An object is bytes under the SHA-256 of these bytes. It is written once and never changed. So "it is
there already" is a success, and each reader can check what it reads.

    StoreError
    ├── StoreDown        the store is out of reach or refuses: try again later
    ├── StoreForeign     another fleet's objects are in it: nothing is deleted
    ├── StoreFull        its bound on the sum is reached: try again when objects have expired
    ├── ObjectMissing    (also a LookupError)
    ├── ObjectDamaged    the bytes are not those of the name
    └── ObjectTooLarge   no object of that size fits this kind of store
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from datetime import datetime
    from pathlib import Path

CHUNK_BYTES: Final = 1 << 20
"""Size of what `ObjectStore.read` yields at most, and of what is read from a file at once."""
UPLOAD_BYTES: Final = 15 << 20
"""The most memory that the upload of one object takes.

Only an object of more than 44 GiB takes more: its parts in a bucket are larger.
"""

UNUSED_SECONDS: Final = 86400
"""How long an object is kept to which nothing refers any more, or nothing has referred yet."""

_SHA256: Final = re.compile(r"[0-9a-f]{64}\Z")


class StoreError(Exception):
    """An error of the store. The message names the store, and has no credentials.

    `sha256` is the object concerned, empty if it is the store itself.
    """

    def __init__(self, message: str, sha256: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.sha256 = sha256

    def __str__(self) -> str:
        """Return the message alone."""
        return self.message


class StoreDown(StoreError):
    """The store is unreachable, too slow, or refuses (credentials, bucket, folder, disk full).

    Nothing is known to be lost. Try again later: a retry repeats no harm, since objects are written
    once.
    """


class StoreForeign(StoreError):
    """The store belongs to another fleet, or this fleet's Redis was emptied.

    Nothing in the store is deleted.
    """


class StoreFull(StoreError):
    """The store's bound on all objects together is reached; try again when objects have expired."""


class ObjectMissing(StoreError, LookupError):
    """The store has no such object: it was never uploaded, or has expired. Upload it again.

    `missing` are all objects concerned.
    """

    def __init__(self, message: str, missing: Collection[str]) -> None:
        super().__init__(message, next(iter(missing), ""))
        self.missing = tuple(missing)


class ObjectDamaged(StoreError):
    """The bytes are not those of the object's name.

    The store's copy, or the file of an upload, was changed.
    """


class ObjectTooLarge(StoreError):
    """The object is larger than this kind of store takes (`ObjectStore.max_object_bytes`)."""


@dataclass(frozen=True)
class ObjectInfo:
    """An object as a store lists it: `size` in bytes; `modified`, aware, by the store's clock."""

    sha256: str
    size: int
    modified: datetime


class ObjectStore(Protocol):
    """A store of objects; every method may be called from several threads at once.

    Each `sha256` is 64 lower-case hexadecimal digits; any other raises `ValueError` before any I/O.
    Every method but the properties may raise `StoreDown`.
    """

    @property
    def name(self) -> str:
        """Where the store is, for messages; without credentials."""
        ...

    @property
    def max_object_bytes(self) -> int | None:
        """The size of the largest object that fits, in bytes; None if sandfleet sets no bound."""
        ...

    def put_file(self, sha256: str, path: Path, check: Callable[[], None] | None = None) -> bool:
        """Upload the file `path`; memory does not grow with its size.

        Returns True if this call wrote the object, False if it was there. The object is visible
        only when it is complete. `check` is called between the chunks of a large file; what it
        raises ends the upload.

        Raises:
            ObjectDamaged: the file has another SHA-256 (it changed meanwhile), and nothing was
                written; or the store has an object of another size under this name.
            ObjectTooLarge, StoreFull: it does not fit.
            OSError: the file cannot be read.
        """
        ...

    def put_bytes(self, sha256: str, data: bytes) -> bool:
        """Upload `data`; as `put_file`."""
        ...

    def read(self, sha256: str) -> Iterator[bytes]:
        """Yield the object in chunks of at most `CHUNK_BYTES`.

        Use what it yielded only after its end: the SHA-256 is known no earlier.

        Raises:
            ObjectMissing: there is none.
            ObjectDamaged: after the last chunk: it is not what its name says.
        """
        ...

    def fetch(self, sha256: str, path: Path) -> None:
        """Write the object to the file `path`, complete and verified, or not at all.

        An earlier file at `path` is replaced. The new one has mode 0600.

        Raises:
            ObjectMissing, ObjectDamaged: as `read`.
            OSError: the file cannot be written.
        """
        ...

    def size_of(self, sha256: str) -> int | None:
        """Return the object's size in bytes, None if there is none."""
        ...

    def find_missing(self, names: Collection[str]) -> set[str]:
        """Return those of `names` that the store does not have."""
        ...

    def delete(self, sha256: str) -> bool:
        """Delete the object; return False if the store said that there was none.

        For the garbage collector, which asks `References` first.
        """
        ...

    def list_objects(self) -> Iterator[ObjectInfo]:
        """Yield all objects; those that come and go meanwhile may be missed.

        Other files are left out.
        """
        ...

    def read_clock(self) -> datetime:
        """Return the time by the store's clock, aware: the one of `ObjectInfo.modified`."""
        ...

    def read_owner(self) -> str:
        """Return the id of the fleet that collects garbage here; empty if none has yet."""
        ...

    def write_owner(self, fleet: str) -> None:
        """Replace that id."""
        ...

    def remove_leftovers(self, before: datetime) -> int:
        """Delete what killed uploads left before that time; return their number.

        The time is by the store's clock.
        """
        ...

    def close(self) -> None:
        """Close connections; a later use opens new ones."""
        ...


def check_sha256(sha256: str) -> str:
    """Return `sha256` if it is the name of an object.

    Raises:
        ValueError: it is not; the message does not repeat it.
    """
    if not is_sha256(sha256):
        msg = "the name of an object is its SHA-256: 64 digits of 0-9 a-f"
        raise ValueError(msg)
    return sha256


def is_sha256(text: object) -> bool:
    """Whether `text` has the form of an object's name."""
    return isinstance(text, str) and _SHA256.match(text) is not None
