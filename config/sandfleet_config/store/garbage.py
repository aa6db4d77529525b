"""Delete the objects that nothing refers to any more."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from typing import TYPE_CHECKING, Final, cast
from uuid import uuid4

from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.store.protocol import UNUSED_SECONDS, StoreDown, StoreForeign
from sandfleet_config.store.references import MARK_SECONDS, MILLI, References

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import redis

    from sandfleet_config.store.protocol import ObjectInfo, ObjectStore

CHUNK_NAMES: Final = 200
THREADS: Final = 8


@dataclass
class Garbage:
    """The objects that a collection deleted, or would delete, and those that it kept.

    Sizes in bytes. `leftovers` is the number of files that killed uploads had left.
    """

    objects: int = 0
    bytes: int = 0
    kept_objects: int = 0
    kept_bytes: int = 0
    leftovers: int = 0


def collect_garbage(
    client: redis.Redis,
    store: ObjectStore,
    *,
    is_dry_run: bool = False,
    is_adopting: bool = False,
    on_object: Callable[[ObjectInfo], object] | None = None,
) -> Garbage:
    """Delete each object whose last reference ended a day ago, or never was and it is a day old.

    Several collections may run at once, beside uploads and submits: see
    `sandfleet_config.store.references`. `is_adopting` makes this fleet the store's owner, whoever
    was it before. `on_object` is called with each object that was deleted, or would be.

    Raises:
        StoreForeign: another fleet collects here, so its objects may be in the store.
        StoreDown: the store is out of reach; what was deleted until then is deleted.
        redis.RedisError: Redis is; likewise.
    """
    if not is_dry_run:
        _own(client, store, is_adopting=is_adopting)
    references, found = References(client, store), Garbage()
    old = store.read_clock() - timedelta(seconds=UNUSED_SECONDS)
    objects = store.list_objects()
    while part := list(islice(objects, CHUNK_NAMES)):
        candidates = {item.sha256: item for item in part if item.modified < old}
        chosen = _choose(references, list(candidates), 0 if is_dry_run else MARK_SECONDS * MILLI)
        if not is_dry_run:
            _delete(references, store, chosen)
        if on_object is not None:
            for name in chosen:
                on_object(candidates[name])
        found.objects += len(chosen)
        found.bytes += sum(candidates[name].size for name in chosen)
        found.kept_objects += len(part) - len(chosen)
        found.kept_bytes += sum(item.size for item in part if item.sha256 not in chosen)
    if not is_dry_run:
        found.leftovers = store.remove_leftovers(old)
    return found


def check_owner(client: redis.Redis, store: ObjectStore) -> None:
    """Return if no other fleet collects garbage in the store.

    Two fleets in one store would delete each other's objects; so would a fleet whose Redis was
    emptied delete its own.

    Raises:
        StoreForeign: another fleet does.
    """
    if store.read_owner() not in {"", _read_fleet(client)}:
        msg = (
            f"nothing was deleted: {store.name} belongs to another fleet, or this fleet's Redis was emptied. Give each"
            " fleet a folder or a prefix of its own; if no other fleet uses this one: sandfleet store gc --adopt"
        )
        raise StoreForeign(msg)


def _own(client: redis.Redis, store: ObjectStore, *, is_adopting: bool) -> None:
    if not is_adopting:
        check_owner(client, store)
    if store.read_owner() != (fleet := _read_fleet(client)):
        store.write_owner(fleet)


def _read_fleet(client: redis.Redis) -> str:
    """Return this fleet's id; make one if it has none."""
    key = f"{KEY_PREFIX}store:fleet"
    client.set(key, uuid4().hex, nx=True)
    return cast("bytes", client.get(key)).decode(errors="replace")


def _choose(references: References, names: Sequence[str], mark_ms: int) -> list[str]:
    """Return those of `names` to which nothing refers; mark them as being deleted for `mark_ms`."""
    answer: list[bytes] = references.call("store_condemn", mark_ms, UNUSED_SECONDS * MILLI, *names) if names else []
    return [name.decode() for name in answer]


def _delete(references: References, store: ObjectStore, names: Sequence[str]) -> None:
    """Delete marked objects; unmark those whose deletion is certain or was not begun."""
    # Invariant: no deletion begins later than half the life of its mark, and one takes less than
    # the other half.
    deadline = time.monotonic() + MARK_SECONDS / 2
    uncertain: set[str] = set()

    def delete(name: str) -> None:
        if time.monotonic() > deadline:
            msg = f"{store.name} takes too long to delete: the rest is left for the next time"
            raise StoreDown(msg, name)
        uncertain.add(name)
        store.delete(name)
        uncertain.discard(name)

    pool = ThreadPoolExecutor(THREADS)
    try:
        for done in [pool.submit(delete, name) for name in names]:
            done.result()
    finally:
        pool.shutdown(cancel_futures=True)
        if certain := [name for name in names if name not in uncertain]:
            references.call("store_deleted", UNUSED_SECONDS * MILLI, *certain)
