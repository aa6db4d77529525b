"""A store in a bucket of S3, or of what speaks its protocol, by obstore.

    PREFIX/objects/ab/abcdef...   an object; "ab" are the first two digits of its name
    PREFIX/clock                  written to read the server's clock
    PREFIX/fleet                  the id of the fleet that collects garbage here

Objects up to `SINGLE_BYTES` are written by one request with ``If-None-Match``. obstore sends that
header with no multipart upload (0.12.1 puts the whole file into memory instead). So a larger object
is written if it is not there; writers at the same moment write the same bytes, and the last one
counts.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, Literal

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PermissionDeniedError, UnauthenticatedError

from sandfleet_config.store.bucket_client import is_usable_process, new_client
from sandfleet_config.store.bucket_errors import find_code, find_status, new_down
from sandfleet_config.store.protocol import CHUNK_BYTES, UPLOAD_BYTES, ObjectInfo, StoreDown, check_sha256, is_sha256
from sandfleet_config.store.verified import (
    check_bytes,
    fetch_checked,
    new_missing,
    new_wrong_size,
    read_checked,
    read_checked_file,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
    from datetime import datetime
    from pathlib import Path

    from sandfleet_config.store_settings import StoreSettings

SINGLE_BYTES: Final = 8 << 20
MAX_PARTS: Final = 9000
"""S3 takes 10,000 parts an object."""
CONCURRENT_PARTS: Final = 2
"""Parts that are sent at once: the default of 12 takes gigabytes (developmentseed/obstore#540)."""
PART_BYTES: Final = UPLOAD_BYTES // (CONCURRENT_PARTS + 1)
"""S3 takes no smaller one but the last; one more than those that are sent is being filled."""
DIRECT_BYTES: Final = 256 << 10
"""Up to this size an object is sent without asking first whether it is there."""
THREADS: Final = 16
FORK: Final = "start processes by spawn, or fork before the first use"
LIST_PAGE: Final = 1000
OWNER: Final = "fleet"
NOT_IMPLEMENTED: Final = 501
NO_KEY: Final = frozenset(("NoSuchKey", "BlobNotFound", ""))
"""Codes of an answer 404 about the object; any other is about the bucket or the credentials."""


class BucketStore:
    """An `ObjectStore` in a bucket."""

    @property
    def max_object_bytes(self) -> None:
        """No bound."""

    def __init__(self, settings: StoreSettings) -> None:
        at = f" at {settings.endpoint}" if settings.endpoint else ""
        self.name = f"the store {settings.url}{at}"
        self._client: Any = new_client(settings)
        self._is_conditional = True
        self._is_bucket_seen = False

    def __repr__(self) -> str:
        """Return the kind and the place."""
        return f"BucketStore({self.name!r})"

    def put_file(self, sha256: str, path: Path, check: Callable[[], None] | None = None) -> bool:
        """Upload the file `path`; see `ObjectStore.put_file`."""
        check_sha256(sha256)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= SINGLE_BYTES:
                return self._put_single(sha256, b"".join(read_checked_file(sha256, file, size)))
            if self._has(sha256, size):
                return False
            part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
            return self._put_parts(sha256, read_checked_file(sha256, file, size, check), part_bytes)

    def put_bytes(self, sha256: str, data: bytes) -> bool:
        """Upload `data`; see `ObjectStore.put_bytes`."""
        check_sha256(sha256)
        check_bytes(sha256, data)
        if len(data) <= SINGLE_BYTES:
            return self._put_single(sha256, data)
        if self._has(sha256, len(data)):
            return False
        return self._put_parts(sha256, _split(data), max(PART_BYTES, -(-len(data) // MAX_PARTS)))

    def _has(self, sha256: str, size: int) -> bool:
        """Whether the object is there.

        Raises:
            ObjectDamaged: it is there with another size.
        """
        found = self.size_of(sha256)
        if found is not None and found != size:
            raise new_wrong_size(sha256, self.name, found, size)
        return found is not None

    def _put_single(self, sha256: str, data: bytes) -> bool:
        if (len(data) > DIRECT_BYTES or not self._is_conditional) and self._has(sha256, len(data)):
            return False
        try:
            with self._guard():
                self._send(sha256, data)
        except AlreadyExistsError:
            return not self._has(sha256, len(data))
        return True

    def _send(self, sha256: str, data: bytes) -> None:
        mode: Literal["create", "overwrite"] = "create" if self._is_conditional else "overwrite"
        try:
            obstore.put(self._client, _key_of(sha256), data, mode=mode, use_multipart=False)
        except (PermissionDeniedError, UnauthenticatedError, AlreadyExistsError):
            raise
        except BaseError as error:
            if self._is_conditional and find_status(error) == NOT_IMPLEMENTED:
                # A server without If-None-Match. Replacing is no harm: the same name has the same
                # bytes.
                self._is_conditional = False
                self._send(sha256, data)
                return
            # A server that refuses early resets the connection before its answer is read (versitygw
            # 1.8.0).
            if self.size_of(sha256) == len(data):
                raise AlreadyExistsError from error
            raise

    def _put_parts(self, sha256: str, chunks: Iterable[bytes], part_bytes: int) -> bool:
        source = _Source(chunks)
        try:
            with self._guard():
                obstore.put(
                    self._client,
                    _key_of(sha256),
                    source,
                    use_multipart=True,
                    chunk_size=part_bytes,
                    max_concurrency=CONCURRENT_PARTS,
                )
        finally:
            source.raise_error()
        return True

    def read(self, sha256: str) -> Iterator[bytes]:
        """Yield the object; see `ObjectStore.read`."""
        check_sha256(sha256)
        return read_checked(sha256, self._read(sha256), self.name)

    def _read(self, sha256: str) -> Iterator[bytes]:
        with self._guard(sha256):
            yield from obstore.get(self._client, _key_of(sha256)).stream(min_chunk_size=CHUNK_BYTES)

    def fetch(self, sha256: str, path: Path) -> None:
        """Write the object to `path`; see `ObjectStore.fetch`."""
        fetch_checked(self.read, sha256, path)

    def size_of(self, sha256: str) -> int | None:
        """Return the object's size in bytes, None if there is none."""
        check_sha256(sha256)
        with self._guard():
            try:
                return int(obstore.head(self._client, _key_of(sha256))["size"])
            except FileNotFoundError:
                self._check_bucket()
                return None

    def _check_bucket(self) -> None:
        """Return if the bucket exists: HEAD does not tell its absence from the object's."""
        if not self._is_bucket_seen:
            next(self._list("clock", 1), None)
            self._is_bucket_seen = True

    def find_missing(self, names: Collection[str]) -> set[str]:
        """Return those of `names` that are not there; asks for 16 at a time."""
        wanted = [check_sha256(name) for name in names]
        if len(wanted) == 1:
            return {name for name in wanted if self.size_of(name) is None}
        with ThreadPoolExecutor(THREADS) as pool:
            return {name for name, size in zip(wanted, pool.map(self.size_of, wanted), strict=True) if size is None}

    def delete(self, sha256: str) -> bool:
        """Delete the object; return True, since S3 does not say whether there was one."""
        check_sha256(sha256)
        with self._guard():
            try:
                obstore.delete(self._client, _key_of(sha256))
            except FileNotFoundError:
                self._check_bucket()
                return False
        return True

    def list_objects(self) -> Iterator[ObjectInfo]:
        """Yield all objects."""
        with self._guard():
            for item in self._list("objects", LIST_PAGE):
                name = item["path"].rpartition("/")[2]
                if is_sha256(name) and item["path"] == _key_of(name):
                    yield ObjectInfo(name, item["size"], item["last_modified"])

    def _list(self, prefix: str, page: int) -> Iterator[Mapping[str, Any]]:
        pages: Any = obstore.list(self._client, prefix, chunk_size=page)  # pyright: ignore[reportUnknownMemberType]
        return chain.from_iterable(pages)

    def read_clock(self) -> datetime:
        """Return the time that the server gives to an object written now."""
        with self._guard():
            obstore.put(self._client, "clock", b".", mode="overwrite", use_multipart=False)
            found: datetime = obstore.head(self._client, "clock")["last_modified"]
        return found

    def read_owner(self) -> str:
        """Return the id in the object ``fleet``, empty if there is none."""
        with self._guard():
            try:
                return bytes(obstore.get(self._client, OWNER).bytes()).decode(errors="replace")
            except FileNotFoundError:
                self._check_bucket()
                return ""

    def write_owner(self, fleet: str) -> None:
        """Write the id to the object ``fleet``."""
        with self._guard():
            obstore.put(self._client, OWNER, fleet.encode(), mode="overwrite", use_multipart=False)

    def remove_leftovers(self, before: datetime) -> int:  # noqa: ARG002  part of the interface
        """Do nothing: killed uploads' parts cannot be listed; a lifecycle rule deletes them."""
        return 0

    def close(self) -> None:
        """Do nothing: obstore closes idle connections by itself."""

    @contextmanager
    def _guard(self, sha256: str = "") -> Generator[None]:
        """Turn errors of obstore into ours.

        "Not found" is `ObjectMissing` only where `sha256` was read.
        """
        if not is_usable_process():
            msg = f"{self.name} cannot be used here: this process was forked after its parent had used a bucket; {FORK}"
            raise StoreDown(msg)
        try:
            yield
        except AlreadyExistsError:
            raise
        except FileNotFoundError as error:
            if sha256 and find_code(error) in NO_KEY:
                raise new_missing(sha256, self.name) from None
            raise new_down(error, self.name) from None
        except BaseError as error:
            raise new_down(error, self.name) from None


class _Source:
    """An iterator for obstore that remembers its error, which obstore may wrap."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        try:
            return next(self._chunks)
        except StopIteration:
            raise
        except BaseException as error:
            self._error = error
            raise

    def raise_error(self) -> None:
        if self._error is not None:
            raise self._error


def _key_of(sha256: str) -> str:
    return f"objects/{sha256[:2]}/{sha256}"


def _split(data: bytes) -> Iterator[bytes]:
    view = memoryview(data)
    return map(bytes, (view[at : at + CHUNK_BYTES] for at in range(0, len(view), CHUNK_BYTES)))
