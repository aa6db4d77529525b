"""References of jobs to objects, in Redis: they decide how long the store keeps an object.

The order excludes a race with the garbage collector:

- Whoever needs an object first calls `References.keep`, then looks whether it is there, or uploads
  it.
- The collector first marks an object as being deleted, in the same script that finds it without a
  reference, then deletes it.

Redis runs one script at a time. If the mark comes first, `keep` sees it and waits until the object
is deleted, so the check after it does not find the object. If the reference comes first, nothing is
marked.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.scripts import read_script
from sandfleet_config.store.protocol import UNUSED_SECONDS, ObjectMissing, StoreDown, check_sha256

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    import redis

    from sandfleet_config.store.protocol import ObjectStore

MARK_SECONDS: Final = 600
"""How long an object counts as being deleted if the collector dies.

No deletion in a bucket takes so long. One on an NFS server that is away may: then a job that was
submitted meanwhile does not find its object, and says so.
"""
WAIT_SECONDS: Final = 30.0
PAUSE_SECONDS: Final = 0.05
CHUNK_NAMES: Final = 500
MILLI: Final = 1000
MAX_NAMED: Final = 3


class References:
    """The references to the objects of `store`, in the fleet's Redis.

    Every method may raise `redis.RedisError`.
    """

    def __init__(self, client: redis.Redis, store: ObjectStore) -> None:
        self._client: Any = client
        self._store = store

    def keep(self, names: Collection[str], seconds: float) -> None:
        """Let the store keep these objects for at least `seconds` from now.

        Call it before an upload. A reference only ever moves later. Waits while the garbage
        collector is deleting one of them, for half a minute at most; then it is gone, and can be
        uploaded.

        Raises:
            StoreDown: one was still being deleted after that time.
        """
        waiting = _unique(names)
        deadline = time.monotonic() + WAIT_SECONDS
        while waiting := self._refer(waiting, seconds):
            if time.monotonic() > deadline:
                msg = f"{self._store.name}: object {waiting[0]} is being deleted: try again in a few minutes"
                raise StoreDown(msg, waiting[0])
            time.sleep(PAUSE_SECONDS)

    def _refer(self, names: Sequence[str], seconds: float) -> list[str]:
        """Set references; return the names of objects that are being deleted."""
        deleting: list[str] = []
        for part in chunked(names):
            answer: list[bytes] = self.call("store_keep", round(seconds * MILLI), UNUSED_SECONDS * MILLI, *part)
            deleting += [name.decode() for name in answer]
        return deleting

    def require(self, names: Collection[str], seconds: float) -> None:
        """Return if all these objects are in the store; they stay there for `seconds` at least.

        For submit: `seconds` is the job's queue TTL and the result TTL together.

        Raises:
            ObjectMissing: some are not there; ``missing`` has all of them.
            StoreDown: the store cannot tell.
        """
        wanted = _unique(names)
        self.keep(wanted, seconds)
        missing = self._store.find_missing(wanted)
        if missing:
            ordered = [name for name in wanted if name in missing]
            shown = ", ".join(ordered[:MAX_NAMED])
            more = f" and {len(ordered) - MAX_NAMED} more" if len(ordered) > MAX_NAMED else ""
            msg = f"{self._store.name} does not have {shown}{more}: upload what has expired or never was there"
            raise ObjectMissing(msg, ordered)

    def pin(self, sha256: str, owner: str) -> None:
        """Let the store keep the object until `unpin` with the same `owner`.

        An owner is, for example, ``image:python``. Call it before the upload, as `keep`.
        """
        check_sha256(sha256)
        self._client.zadd(f"{KEY_PREFIX}store:pins", {_pin(sha256, owner): 0})
        self.keep([sha256], UNUSED_SECONDS)

    def unpin(self, sha256: str, owner: str) -> None:
        """End a pin; the object stays for a day, and as long as jobs refer to it."""
        check_sha256(sha256)
        self.keep([sha256], 0)
        self._client.zrem(f"{KEY_PREFIX}store:pins", _pin(sha256, owner))

    def call(self, script: str, *args: Any) -> Any:
        """Call a script of the store."""
        return self._client.register_script(read_script(script))(args=[KEY_PREFIX, *args])


def chunked(names: Sequence[str]) -> Iterable[Sequence[str]]:
    """Yield `names` in parts that one script takes without holding up Redis."""
    return (names[at : at + CHUNK_NAMES] for at in range(0, len(names), CHUNK_NAMES))


def _unique(names: Collection[str]) -> list[str]:
    return [check_sha256(name) for name in dict.fromkeys(names)]


def _pin(sha256: str, owner: str) -> str:
    if not owner.isprintable():
        msg = "the owner of a pin must not contain control characters"
        raise ValueError(msg)
    return f"{sha256} {owner}"
