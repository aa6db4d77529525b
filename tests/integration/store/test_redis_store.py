"""The store in Redis: bounds on one object and on all, and TTLs by the references."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.store import ObjectTooLarge, References, StoreDown, StoreFull
from sandfleet_config.store.garbage import collect_garbage
from sandfleet_config.store.redis_store import MAX_OBJECT_BYTES, RedisStore, object_key
from store_kinds import sha_of

if TYPE_CHECKING:
    from pathlib import Path

DAY = 86400
DATA = b"an object"
NAME = sha_of(DATA)
SIZES = f"{KEY_PREFIX}store:sizes"


def read_sum(client: Any) -> int:
    return int(client.hget(SIZES, "sum") or 0)


def test_an_object_of_more_than_a_mebibyte_is_refused_with_what_to_do(client: Any, tmp_path: Path) -> None:
    store = RedisStore(client, 8 << 20)
    data = os.urandom(MAX_OBJECT_BYTES + 1)
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(ObjectTooLarge, match="takes 1 MiB an object: set SANDFLEET_STORE__URL"):
        store.put_bytes(sha_of(data), data)
    with pytest.raises(ObjectTooLarge, match="takes 1 MiB an object: set SANDFLEET_STORE__URL"):
        store.put_file(sha_of(data), tmp_path / "file")
    assert store.max_object_bytes == MAX_OBJECT_BYTES


def test_all_objects_together_are_bounded_and_those_gone_make_room(client: Any) -> None:
    store = RedisStore(client, 100)
    for text in ("a", "b"):
        store.put_bytes(sha_of(text.encode() * 40), text.encode() * 40)
    with pytest.raises(StoreFull, match=r"has 80 bytes of 100 bytes \(SANDFLEET_STORE__REDIS_BYTES\), and 40 bytes"):
        store.put_bytes(sha_of(b"c" * 40), b"c" * 40)
    assert not store.put_bytes(sha_of(b"a" * 40), b"a" * 40), "what is there needs no room"
    store.delete(sha_of(b"a" * 40))
    assert store.put_bytes(sha_of(b"c" * 40), b"c" * 40)
    assert read_sum(client) == 80
    # Redis lets one expire.
    client.pexpire(object_key(sha_of(b"b" * 40)), 1)
    client.zadd(f"{KEY_PREFIX}store:expiring", {sha_of(b"b" * 40): time.time() * 1000 + 1})
    time.sleep(0.05)
    assert store.put_bytes(sha_of(b"d" * 40), b"d" * 40)
    assert read_sum(client) == 80
    assert {item.sha256 for item in store.list_objects()} == {sha_of(b"c" * 40), sha_of(b"d" * 40)}


def test_an_object_lives_a_day_longer_than_its_reference(client: Any) -> None:
    store = RedisStore(client, 1000)
    found = References(client, store)
    store.put_bytes(NAME, DATA)
    assert client.ttl(object_key(NAME)) == pytest.approx(DAY, abs=5)
    found.require([NAME], 500)
    assert client.ttl(object_key(NAME)) == pytest.approx(DAY + 500, abs=5)
    found.require([NAME], 10)
    assert client.ttl(object_key(NAME)) == pytest.approx(DAY + 500, abs=5), "never earlier"
    other = sha_of(b"later")
    found.keep([other], 900)
    store.put_bytes(other, b"later")
    assert client.ttl(object_key(other)) == pytest.approx(DAY + 900, abs=5), "the reference came first"
    assert client.ttl(SIZES) >= client.ttl(object_key(other))
    assert collect_garbage(client, store).objects == 0


def test_a_redis_that_is_down_or_full_is_a_store_that_is_down(redis_server: Any, client: Any) -> None:
    gone = redis.Redis(unix_socket_path="/nonexistent/redis.sock", password="s3cret")
    store = RedisStore(gone, 1000, "unix:///nonexistent/redis.sock")
    with pytest.raises(
        StoreDown, match=r"the store in Redis at unix:///nonexistent/redis.sock is out of reach"
    ) as caught:
        store.put_bytes(NAME, DATA)
    assert "s3cret" not in f"{caught.value!r}{store!r}"
    used = int(client.info("memory")["used_memory"])
    client.config_set("maxmemory", used // 2)
    try:
        with pytest.raises(StoreDown, match="maxmemory"):
            RedisStore(client, 1000).put_bytes(NAME, DATA)
    finally:
        client.config_set("maxmemory", 0)
