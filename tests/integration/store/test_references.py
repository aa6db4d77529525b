"""References keep objects; the collector deletes others, but none that a submit has just found."""

from __future__ import annotations

import os
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from s3_server import WeedServer
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.store import ObjectMissing, References, StoreDown, StoreForeign, references
from sandfleet_config.store.bucket import BucketStore
from sandfleet_config.store.folder import FolderStore
from sandfleet_config.store.garbage import collect_garbage
from store_kinds import sha_of
from waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

DAY = 86400
REFS = f"{KEY_PREFIX}store:refs"
DATA = b"an object"
NAME = sha_of(DATA)


class SlowStore(FolderStore):
    """A folder whose deletions wait for `go`, once they have begun."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.root = root
        self.has_begun, self.go = threading.Event(), threading.Event()
        self.go.set()

    def delete(self, sha256: str) -> bool:
        self.has_begun.set()
        self.go.wait(30)
        return super().delete(sha256)

    def put_old(self, data: bytes, days: float = 2) -> str:
        """Upload an object, as if that had been days ago."""
        name = sha_of(data)
        self.put_bytes(name, data)
        then = time.time() - days * DAY
        os.utime(self.root / "objects" / name[:2] / name, (then, then))
        return name


@pytest.fixture
def store(tmp_path: Path) -> SlowStore:
    root = tmp_path / "store"
    root.mkdir()
    return SlowStore(root)


def refer(client: Any, name: str, seconds: float) -> None:
    """Set a reference that ends so many seconds from now, or before now."""
    client.zadd(REFS, {name: (time.time() + seconds) * 1000})
    client.expire(REFS, DAY)


def test_only_what_nothing_has_referred_to_for_a_day_is_deleted(client: Any, store: SlowStore) -> None:
    kept = [store.put_old(b"referred"), store.put_old(b"ended an hour ago"), store.put_old(b"new", days=0.9)]
    gone = [store.put_old(b"ended two days ago"), store.put_old(b"never referred"), store.put_old(b"")]
    for name, seconds in zip([*kept[:2], gone[0]], (DAY, -3600, -2 * DAY), strict=True):
        refer(client, name, seconds)
    told = collect_garbage(client, store, is_dry_run=True)
    assert (told.objects, told.bytes, told.kept_objects) == (3, 32, 3)
    assert store.find_missing([*kept, *gone]) == set(), "a dry run deletes nothing"
    assert not client.exists(f"{KEY_PREFIX}store:deleting")
    assert collect_garbage(client, store) == told
    assert store.find_missing([*kept, *gone]) == set(gone)
    assert client.zscore(REFS, gone[0]) is None
    assert client.zscore(REFS, kept[1]) is not None
    assert collect_garbage(client, store).objects == 0


def test_an_object_uploaded_again_under_an_old_reference_is_young(client: Any, store: SlowStore) -> None:
    store.put_bytes(NAME, DATA)
    refer(client, NAME, -2 * DAY)
    assert collect_garbage(client, store).objects == 0


def test_a_reference_only_moves_later(client: Any, store: SlowStore) -> None:
    found = References(client, store)
    store.put_bytes(NAME, DATA)
    found.require([NAME], 1000)
    far = client.zscore(REFS, NAME)
    found.require([NAME, NAME], 10)
    assert client.zscore(REFS, NAME) == far
    assert far / 1000 - time.time() == pytest.approx(1000, abs=5)
    assert 1000 + DAY - 10 < client.ttl(REFS) <= 1000 + DAY + 1
    found.require([NAME], 2000)
    assert client.zscore(REFS, NAME) > far


def test_the_set_of_references_does_not_keep_what_has_ended(client: Any, store: SlowStore) -> None:
    for number in range(100):
        refer(client, sha_of(str(number).encode()), -2 * DAY)
    for number in range(60):
        References(client, store).keep([sha_of(str(number + 1000).encode())], 10)
    assert client.zcard(REFS) == 60


def test_a_submit_names_what_is_missing(client: Any, store: SlowStore) -> None:
    store.put_bytes(NAME, DATA)
    others = [sha_of(str(number).encode()) for number in range(5)]
    with pytest.raises(ObjectMissing, match=f"{others[0]}, {others[1]}, {others[2]} and 2 more") as caught:
        References(client, store).require([NAME, *others], 10)
    assert caught.value.missing == tuple(others)
    with pytest.raises(ValueError, match="64 digits"):
        References(client, store).require(["../x"], 10)


def test_a_pin_keeps_an_object_until_it_is_taken_away(client: Any, store: SlowStore) -> None:
    found = References(client, store)
    name = store.put_old(DATA)
    found.pin(name, "image:python")
    found.pin(name, "dataset:a")
    refer(client, name, -2 * DAY)
    assert collect_garbage(client, store).objects == 0
    found.unpin(name, "image:python")
    refer(client, name, -2 * DAY)
    assert collect_garbage(client, store).objects == 0, "the other pin holds it"
    found.unpin(name, "dataset:a")
    assert collect_garbage(client, store).objects == 0, "for a day more"
    refer(client, name, -2 * DAY)
    assert collect_garbage(client, store).objects == 1


def test_a_submit_during_a_deletion_waits_and_then_finds_nothing(client: Any, store: SlowStore) -> None:
    name = store.put_old(DATA)
    store.go.clear()
    collector = threading.Thread(target=collect_garbage, args=(client, store))
    collector.start()
    store.has_begun.wait(10)
    assert store.size_of(name) is not None, "it is there still, and doomed"
    errors: list[Exception] = []

    def submit() -> None:
        try:
            References(client, store).require([name], DAY)
        except ObjectMissing as error:
            errors.append(error)

    submitter = threading.Thread(target=submit)
    submitter.start()
    time.sleep(0.3)
    assert submitter.is_alive(), "it must not believe what it sees"
    store.go.set()
    collector.join(10)
    submitter.join(10)
    assert len(errors) == 1
    References(client, store).keep([name], DAY)
    store.put_bytes(name, DATA)
    References(client, store).require([name], DAY)


def test_a_collector_that_died_blocks_its_objects_only_for_a_while(
    client: Any, store: SlowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(references, "WAIT_SECONDS", 0.2)
    name, other = store.put_old(DATA), store.put_old(b"another")
    client.zadd(f"{KEY_PREFIX}store:deleting", {name: (time.time() + 1.0) * 1000})
    client.expire(f"{KEY_PREFIX}store:deleting", 10)
    References(client, store).require([other], DAY)
    with pytest.raises(StoreDown, match="is being deleted"):
        References(client, store).require([name], DAY)
    time.sleep(1.0)
    References(client, store).require([name], DAY)


def test_marks_of_a_collection_that_fails_are_taken_back(
    client: Any, store: SlowStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [store.put_old(str(number).encode()) for number in range(30)]

    def fail(*_: object) -> bool:
        raise StoreDown("it is down")

    monkeypatch.setattr(SlowStore, "delete", fail)
    with pytest.raises(StoreDown):
        collect_garbage(client, store)
    marked = {name.decode() for name in client.zrange(f"{KEY_PREFIX}store:deleting", 0, -1)}
    assert 0 < len(marked) < len(names), "only deletions that may still happen are marked"
    assert set(names) >= marked


@pytest.mark.parametrize("number", range(int(os.environ.get("TEST_STORE_ROUNDS", "1"))))
def test_a_submit_that_succeeded_has_its_objects_whatever_collects_beside_it(
    client: Any, store: SlowStore, number: int
) -> None:
    """Submits and collections of the same old objects at the same moments, hundreds of times."""
    names = [store.put_old(f"{number} {item}".encode()) for item in range(600)]
    lost: list[str] = []
    counts = {"found": 0, "missing": 0}

    def submit(part: list[str]) -> None:
        found = References(client, store)
        for name in part:
            try:
                found.require([name], DAY)
            except ObjectMissing:
                counts["missing"] += 1
                continue
            counts["found"] += 1
            if store.size_of(name) is None:
                lost.append(name)

    threads = [threading.Thread(target=submit, args=(names[at::3],)) for at in range(3)]
    threads += [threading.Thread(target=collect_garbage, args=(client, store)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    later = [name for name in names if client.zscore(REFS, name) is None and store.size_of(name) is not None]
    assert later == [], "what nothing refers to is deleted"
    assert lost == []
    assert min(counts.values()) > 5, f"too seldom at the same moment to show anything: {counts}"
    collect_garbage(client, store)
    assert len(store.find_missing(names)) == counts["missing"], "what a submit has found stays"


def test_leftovers_of_killed_uploads_are_deleted_after_a_day(client: Any, store: SlowStore) -> None:
    store.put_bytes(NAME, DATA)
    for name, days in (("old", 1.1), ("new", 0.5)):
        path = store.root / "incoming" / name
        path.write_bytes(b"half")
        os.utime(path, (time.time() - days * DAY,) * 2)
    assert collect_garbage(client, store, is_dry_run=True).leftovers == 0
    assert collect_garbage(client, store).leftovers == 1
    assert [path.name for path in (store.root / "incoming").iterdir()] == ["new"]


def test_the_collector_of_a_bucket_deletes_old_objects_only(client: Any, s3_server: Any) -> None:
    if isinstance(s3_server, WeedServer):
        pytest.skip("times of SeaweedFS's objects cannot be set: needs versitygw")
    store = BucketStore(s3_server.settings())
    for data in (b"old", b"new", b"kept"):
        store.put_bytes(sha_of(data), data)
    for data in (b"old", b"kept"):
        then = time.time() - 2 * DAY
        os.utime(s3_server.objects / "objects" / sha_of(data)[:2] / sha_of(data), (then, then))
    refer(client, sha_of(b"kept"), DAY)
    found = collect_garbage(client, store)
    assert (found.objects, found.kept_objects) == (1, 2)
    assert {item.sha256 for item in store.list_objects()} == {sha_of(b"new"), sha_of(b"kept")}
    assert store.read_clock() - timedelta(minutes=1) < max(item.modified for item in store.list_objects())


def test_no_mark_is_left_after_a_collection(client: Any, store: SlowStore) -> None:
    store.put_old(DATA)
    collect_garbage(client, store)
    wait_until(lambda: not client.exists(f"{KEY_PREFIX}store:deleting"), 1, "the mark is gone")


def test_a_fleet_deletes_nothing_in_the_store_of_another(client: Any, store: SlowStore) -> None:
    name = store.put_old(DATA)
    store.write_owner("another")
    with pytest.raises(StoreForeign, match=r"nothing was deleted.*sandfleet store gc --adopt"):
        collect_garbage(client, store)
    assert collect_garbage(client, store, is_dry_run=True).objects == 1
    assert store.size_of(name) is not None
    assert collect_garbage(client, store, is_adopting=True).objects == 1
    assert collect_garbage(client, store).objects == 0, "it is this fleet's now"
    client.delete(f"{KEY_PREFIX}store:fleet")  # as if Redis had been emptied
    with pytest.raises(StoreForeign):
        collect_garbage(client, store)
