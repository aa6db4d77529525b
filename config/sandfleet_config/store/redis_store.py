"""A store of small objects in the fleet's own Redis, for a fleet without another one."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import redis

from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.scripts import read_script
from sandfleet_config.store.protocol import (
    UNUSED_SECONDS,
    ObjectInfo,
    ObjectTooLarge,
    StoreDown,
    StoreFull,
    check_sha256,
    is_sha256,
)
from sandfleet_config.store.verified import (
    check_bytes,
    fetch_checked,
    new_missing,
    new_wrong_size,
    read_checked,
    read_checked_file,
)
from sandfleet_config.units import format_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Iterator
    from pathlib import Path

MAX_OBJECT_BYTES: Final = 1 << 20
MILLI: Final = 1000
CHUNK_NAMES: Final = 500
WRITTEN: Final = 1
FULL: Final = -1


class RedisStore:
    """An `ObjectStore` in Redis: at most 1 MiB an object, and `max_bytes` in all.

    Each object has a TTL, which `References.keep` moves; so there is nothing to collect.
    """

    @property
    def max_object_bytes(self) -> int:
        """1 MiB."""
        return MAX_OBJECT_BYTES

    def __init__(self, client: redis.Redis, max_bytes: int, address: str = "") -> None:
        self._client: Any = client
        self._max_bytes = max_bytes
        self.name = f"the store in Redis at {address}" if address else "the store in Redis"

    def __repr__(self) -> str:
        """Return the kind and the bound; the client's own text would have its password."""
        return f"RedisStore(max_bytes={self._max_bytes})"

    def put_file(self, sha256: str, path: Path, check: Callable[[], None] | None = None) -> bool:  # noqa: ARG002  its files are small
        """Upload the file `path`; see `ObjectStore.put_file`."""
        check_sha256(sha256)
        with path.open("rb") as file:
            size = file.seek(0, 2)
            self._check_size(sha256, size)
            file.seek(0)
            return self._put(sha256, b"".join(read_checked_file(sha256, file, size)))

    def put_bytes(self, sha256: str, data: bytes) -> bool:
        """Upload `data`; see `ObjectStore.put_bytes`."""
        check_sha256(sha256)
        self._check_size(sha256, len(data))
        check_bytes(sha256, data)
        return self._put(sha256, data)

    def _check_size(self, sha256: str, size: int) -> None:
        if size > MAX_OBJECT_BYTES:
            msg = (
                f"{format_bytes(size)} is too large for {self.name}, which takes {format_bytes(MAX_OBJECT_BYTES)}"
                " an object: set SANDFLEET_STORE__URL to a folder that the hosts share, or to a bucket"
            )
            raise ObjectTooLarge(msg, sha256)

    def _put(self, sha256: str, data: bytes) -> bool:
        with self._guard():
            status, number = self._call("store_put", sha256, data, self._max_bytes, UNUSED_SECONDS * MILLI)
        if status == FULL:
            msg = (
                f"{self.name} has {format_bytes(number)} of {format_bytes(self._max_bytes)}"
                f" (SANDFLEET_STORE__REDIS_BYTES), and {format_bytes(len(data))} more do not fit: wait until objects"
                " have expired, raise the bound, or set SANDFLEET_STORE__URL to a folder or a bucket"
            )
            raise StoreFull(msg, sha256)
        if status != WRITTEN and number != len(data):
            raise new_wrong_size(sha256, self.name, number, len(data))
        return bool(status == WRITTEN)

    def read(self, sha256: str) -> Iterator[bytes]:
        """Yield the object; see `ObjectStore.read`."""
        check_sha256(sha256)
        return self._read(sha256)

    def _read(self, sha256: str) -> Iterator[bytes]:
        with self._guard():
            data: bytes | None = self._client.get(object_key(sha256))
        if data is None:
            raise new_missing(sha256, self.name)
        yield from read_checked(sha256, [data], self.name)

    def fetch(self, sha256: str, path: Path) -> None:
        """Write the object to `path`; see `ObjectStore.fetch`."""
        fetch_checked(self.read, sha256, path)

    def size_of(self, sha256: str) -> int | None:
        """Return the object's size in bytes, None if there is none."""
        check_sha256(sha256)
        with self._guard():
            pipe = self._client.pipeline(transaction=True)
            pipe.exists(object_key(sha256))
            pipe.strlen(object_key(sha256))
            is_there, size = pipe.execute()
        return int(size) if is_there else None

    def find_missing(self, names: Collection[str]) -> set[str]:
        """Return those of `names` that are not there; one call for each 500."""
        wanted = [check_sha256(name) for name in names]
        missing: set[str] = set()
        for at in range(0, len(wanted), CHUNK_NAMES):
            part = wanted[at : at + CHUNK_NAMES]
            with self._guard():
                pipe = self._client.pipeline(transaction=False)
                for name in part:
                    pipe.exists(object_key(name))
                found = pipe.execute()
            missing.update(name for name, is_there in zip(part, found, strict=True) if not is_there)
        return missing

    def delete(self, sha256: str) -> bool:
        """Delete the object; return False if there was none."""
        check_sha256(sha256)
        with self._guard():
            return bool(self._call("store_delete", sha256))

    def list_objects(self) -> Iterator[ObjectInfo]:
        """Yield all objects; `modified` is a day before the object expires."""
        lists = f"{KEY_PREFIX}store:expiring", f"{KEY_PREFIX}store:sizes"
        now = self.read_clock().timestamp() * MILLI
        with self._guard():
            expires_at: list[tuple[bytes, float]] = self._client.zrangebyscore(lists[0], now, "+inf", withscores=True)
        for at in range(0, len(expires_at), CHUNK_NAMES):
            part = expires_at[at : at + CHUNK_NAMES]
            with self._guard():
                sizes: list[bytes | None] = self._client.hmget(lists[1], [name for name, _ in part])
            for (raw, end), size in zip(part, sizes, strict=True):
                name = raw.decode(errors="replace")
                if is_sha256(name) and size is not None:
                    yield ObjectInfo(name, int(size), datetime.fromtimestamp(end / MILLI - UNUSED_SECONDS, UTC))

    def read_clock(self) -> datetime:
        """Return Redis's time."""
        with self._guard():
            seconds, micros = self._client.time()
        return datetime.fromtimestamp(seconds + micros / 1e6, UTC)

    def read_owner(self) -> str:
        """Return nothing: this store is the fleet's own."""
        return ""

    def write_owner(self, fleet: str) -> None:
        """Do nothing."""

    def remove_leftovers(self, before: datetime) -> int:  # noqa: ARG002  part of the interface
        """Do nothing: one call writes an object, so nothing can be left half done."""
        return 0

    def close(self) -> None:
        """Do nothing: the client belongs to who gave it."""

    def _call(self, script: str, *args: Any) -> Any:
        return self._client.register_script(read_script(script))(args=[KEY_PREFIX, *args])

    @contextmanager
    def _guard(self) -> Generator[None]:
        try:
            yield
        except redis.RedisError as error:
            msg = f"{self.name} is out of reach or refuses: {str(error) or type(error).__name__}"
            raise StoreDown(msg) from error


def object_key(sha256: str) -> str:
    """Return the key of an object."""
    return f"{KEY_PREFIX}store:object:{sha256}"
