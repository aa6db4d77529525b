"""A host's cache of objects: within its bound of bytes.

It has no name whose bytes could be lost with the host's power.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from sandfleet_config.errors import Cancelled, HostResources
from sandfleet_worker.files.cache import ObjectCache
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DATA = b"an input of many jobs"
NAME = hashlib.sha256(DATA).hexdigest()


class OneObject:
    """A store with one object. A reader of it waits for `may_go_on`."""

    def __init__(self) -> None:
        self.readers = 0
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def size_of(self, sha256: str) -> int:
        del sha256
        return len(DATA)

    def read(self, sha256: str) -> Iterator[bytes]:
        self.readers += 1
        assert self.may_go_on.wait(30)
        yield DATA[:5] if sha256 == NAME else b"other"
        yield DATA[5:]


def test_an_object_gets_its_name_when_its_bytes_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []

    def fsync(descriptor: int) -> None:
        assert cache.find(NAME) is None
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    cache = ObjectCache(tmp_path, cast("Any", OneObject()), 1 << 20)
    assert cache.fetch(NAME, lambda _: None) == len(DATA)
    assert synced == [len(DATA)]
    with cache.open(NAME, lambda _: None) as file:
        assert file.read() == DATA


def nothing(_: float) -> None:
    time.sleep(0.01)


def find_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def test_fetches_at_the_same_time_wait_for_room_and_stay_within_the_bound(tmp_path: Path) -> None:
    store = OneObject()
    store.may_go_on.clear()
    caches = [ObjectCache(tmp_path, cast("Any", store), len(DATA) + 5) for _ in range(2)]
    others = ("b" * 64, "c" * 64)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(cache.fetch, name, nothing) for cache, name in zip(caches, others, strict=True)]
        try:
            wait_until(lambda: store.readers, 10, "one of them is fetched")
            time.sleep(0.3)
            assert store.readers == 1
            assert find_bytes(tmp_path) == len(DATA)
        finally:
            store.may_go_on.set()
        assert [call.result() for call in calls] == [len(DATA)] * 2
    assert find_bytes(tmp_path) == len(DATA), "the second fetch has removed the first object"


def test_what_a_killed_worker_had_begun_to_fetch_is_removed_when_room_is_needed(tmp_path: Path) -> None:
    left = tmp_path / "dd/partial"
    left.parent.mkdir()
    left.write_bytes(bytes(1000))
    cache = ObjectCache(tmp_path, cast("Any", OneObject()), len(DATA))
    assert cache.fetch(NAME, nothing) == len(DATA)
    assert not left.exists()


def test_a_fetch_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def stop(seconds: float) -> None:
        del seconds
        raise Cancelled.of("cancelled")

    cache = ObjectCache(tmp_path, cast("Any", OneObject()), 1 << 20)
    with pytest.raises(Cancelled):
        cache.fetch(NAME, stop)
    assert find_bytes(tmp_path) == 0


def test_old_objects_go_if_the_disk_is_smaller_than_the_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = ObjectCache(tmp_path, cast("Any", OneObject()), 1 << 20)
    for number, name in enumerate(("b" * 64, "c" * 64)):
        cache.fetch(name, nothing)
        os.utime(tmp_path / name[:2] / name, (number, number))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=len(DATA) - 1))
    cache.fetch(NAME, nothing)
    assert [cache.find(name) for name in ("b" * 64, "c" * 64)] == [None, len(DATA)]
    monkeypatch.setattr(OneObject, "size_of", lambda *_: 1000)
    with pytest.raises(HostResources, match="is full: a file of the job does not fit"):
        cache.fetch("d" * 64, nothing)
    assert cache.find(NAME) is not None, "nothing is removed in vain"
