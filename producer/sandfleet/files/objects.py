"""The fleet's store as a producer uses it: uploads, checks and verified reads."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import FIRST_EXCEPTION, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol, TypeAlias, TypeVar

from sandfleet_config.errors import SpecInvalid, SpecTooLarge
from sandfleet_config.store.protocol import (
    ObjectDamaged,
    ObjectMissing,
    ObjectTooLarge,
    StoreError,
)
from sandfleet_config.units import format_bytes

from sandfleet.errors import FileMissing, FleetUnavailable, safe_name
from sandfleet.files.local import hash_file
from sandfleet.files.parallel import open_pool
from sandfleet.files.reference import FileRef

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from sandfleet_config.store.protocol import ObjectStore

    from sandfleet.files.parallel import Check

Source: TypeAlias = str | os.PathLike[str] | bytes | bytearray | memoryview
"""A local path, or the bytes themselves."""
T = TypeVar("T")
R = TypeVar("R")

UNUSED_SECONDS: Final = 86400.0
"""How long an uploaded object is kept before the first job refers to it."""


class Keeper(Protocol):
    """Decides how long the store keeps an object. Implemented by `References` of the store."""

    def keep(self, names: Collection[str], seconds: float) -> None:
        """Let the store keep these objects for `seconds` from now at least."""
        ...

    def require(self, names: Collection[str], seconds: float) -> None:
        """Do what `keep` does, then raise `ObjectMissing` if the store lacks one."""
        ...


class Objects:
    """The objects of the fleet's store; safe for concurrent use.

    Each method raises `FleetUnavailable` if the store, or Redis, is down or full.
    """

    def __init__(self, store: ObjectStore, keeper: Keeper, guard: Callable[[], AbstractContextManager[None]]) -> None:
        """`guard` turns errors of the keeper's Redis into `FleetUnavailable`."""
        self._store = store
        self._keeper = keeper
        self._guard = guard

    @property
    def place(self) -> str:
        """The store's name for messages."""
        return self._store.name

    @property
    def max_bytes(self) -> int | None:
        """The largest object that the store takes, in bytes; None: any."""
        return self._store.max_object_bytes

    def upload_all(self, sources: Iterable[Source]) -> list[FileRef]:
        """Upload files and bytes, those that the store lacks, 8 at a time; return them in order.

        Raises:
            OSError: a file cannot be read.
            SpecInvalid: it is not a regular file, or it changed meanwhile.
            SpecTooLarge: it is larger than what the store takes.
        """
        wanted = list(sources)
        refs = _map(_hash, wanted)
        self.put_all(dict(zip(refs, wanted, strict=True)))
        return refs

    def put_all(self, sources: Mapping[FileRef, Source]) -> None:
        """Upload the `sources` that the store lacks; hashes are known; raises as `upload_all`."""
        for ref, source in sources.items():
            self.check_size(ref.size, _name_source(source))
        if sources:
            self.keep([ref.sha256 for ref in sources], UNUSED_SECONDS)
            _map(self._put, list(sources.items()))

    def check_size(self, size: int, name: str) -> None:
        """Return if the store takes an object of `size` bytes.

        Raises:
            SpecTooLarge: it does not.
        """
        most = self._store.max_object_bytes
        if most is not None and size > most:
            raise SpecTooLarge.of(
                f"{name} has {format_bytes(size)}, {self._store.name} takes {format_bytes(most)} at most:"
                " give the fleet a larger store (SANDFLEET_STORE__URL), or put the file into the image"
            )

    def _put(self, item: tuple[FileRef, Source], check: Check) -> None:
        ref, source = item
        with self._translate(_name_source(source)):
            if isinstance(source, bytes | bytearray | memoryview):
                self._store.put_bytes(ref.sha256, bytes(source))
            else:
                self._store.put_file(ref.sha256, Path(source), check)

    def keep(self, names: Collection[str], seconds: float) -> None:
        """Let the store keep these objects, if it has them, for at least `seconds` from now."""
        with self._translate(), self._guard():
            self._keeper.keep(names, seconds)

    def find_missing(self, names: Collection[str], seconds: float) -> Sequence[str]:
        """Return the `names` that the store lacks; it keeps the others for at least `seconds`."""
        with self._translate():
            try:
                with self._guard():
                    self._keeper.require(names, seconds)
            except ObjectMissing as error:
                return error.missing
        return ()

    def read(self, sha256: str, name: str) -> Iterator[bytes]:
        """Yield an object in chunks; use them only after the last one. `name` is for the message.

        Raises:
            FileMissing: the store does not have it, or what it has is altered.
        """
        with self._translate(name):
            try:
                yield from self._store.read(sha256)
            except (ObjectMissing, ObjectDamaged) as error:
                raise FileMissing(f"{safe_name(name)}: {error}") from None

    @contextmanager
    def _translate(self, name: str = "") -> Generator[None]:
        """Turn errors of the store into those of the producer; `name` is the file concerned."""
        try:
            yield
        except StoreError as error:
            message = f"{safe_name(name)}: {error}" if name else str(error)
            match error:
                case ObjectTooLarge():
                    raise SpecTooLarge.of(message) from None
                case ObjectDamaged():
                    raise SpecInvalid.of(message) from None
                case _:
                    raise FleetUnavailable(message) from error


def _hash(source: Source, check: Check) -> FileRef:
    if isinstance(source, bytes | bytearray | memoryview):
        return FileRef(hashlib.sha256(source).hexdigest(), memoryview(source).nbytes)
    return hash_file(Path(source), check)


def _name_source(source: Source) -> str:
    return "the content" if isinstance(source, bytes | bytearray | memoryview) else os.fspath(source)


def _map(function: Callable[[T, Check], R], items: Sequence[T]) -> list[R]:
    """Call `function` with each item, 8 at a time."""
    if not items:
        return []
    with open_pool(len(items), "sandfleet-upload") as (pool, check):
        calls = [pool.submit(function, item, check) for item in items]
        done, _ = wait(calls, return_when=FIRST_EXCEPTION)
        for call in done:
            call.result()  # raises the error of one, if any, without waiting for those before it
        return [call.result() for call in calls]
