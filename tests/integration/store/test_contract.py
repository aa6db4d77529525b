"""One contract for all kinds of stores."""

from __future__ import annotations

import os
import threading
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet_config.store.protocol import CHUNK_BYTES, ObjectDamaged, ObjectMissing
from store_kinds import sha_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from store_kinds import StoreKind

DATA = b"some bytes" * 1000
NAME = sha_of(DATA)
OTHER = sha_of(b"another object")
WRITERS = 8


def test_an_object_is_written_once_and_read_back(any_store: StoreKind, tmp_path: Path) -> None:
    store = any_store.store
    source = tmp_path / "source"
    source.write_bytes(DATA)
    assert store.put_file(NAME, source)
    assert not store.put_file(NAME, source)
    assert not store.put_bytes(NAME, DATA)
    assert b"".join(store.read(NAME)) == DATA
    assert store.size_of(NAME) == len(DATA)
    store.fetch(NAME, tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == DATA
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["source", "target"]


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES])
def test_objects_of_any_size_up_to_a_mebibyte(any_store: StoreKind, size: int) -> None:
    data = os.urandom(size)
    assert any_store.store.put_bytes(sha_of(data), data)
    assert b"".join(any_store.store.read(sha_of(data))) == data
    assert any_store.store.size_of(sha_of(data)) == size


def test_a_missing_object_is_said_to_be_missing(any_store: StoreKind, tmp_path: Path) -> None:
    store = any_store.store
    store.put_bytes(NAME, DATA)
    with pytest.raises(ObjectMissing, match=OTHER) as caught:
        list(store.read(OTHER))
    assert caught.value.missing == (OTHER,)
    with pytest.raises(ObjectMissing):
        store.fetch(OTHER, tmp_path / "target")
    assert not (tmp_path / "target").exists()
    assert store.size_of(OTHER) is None
    assert store.find_missing([NAME, OTHER]) == {OTHER}
    assert store.find_missing([]) == set()


def test_eight_writers_at_once_write_one_object(any_store: StoreKind) -> None:
    answers: list[bool] = []
    start = threading.Barrier(WRITERS)
    stores = [any_store.open() for _ in range(WRITERS)]

    def write(store: Any) -> None:
        start.wait()
        answers.append(store.put_bytes(NAME, DATA))

    threads = [threading.Thread(target=write, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [False] * (WRITERS - 1) + [True]
    assert b"".join(any_store.store.read(NAME)) == DATA
    assert any_store.count_files() == 1


def test_an_altered_object_is_refused(any_store: StoreKind, tmp_path: Path) -> None:
    store = any_store.store
    store.put_bytes(NAME, DATA)
    any_store.alter(NAME, b"X" + DATA[1:])
    target = tmp_path / "target"
    target.write_bytes(b"earlier")
    with pytest.raises(ObjectDamaged, match="was altered: delete it"):
        list(store.read(NAME))
    with pytest.raises(ObjectDamaged):
        store.fetch(NAME, target)
    assert target.read_bytes() == b"earlier"
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["target"]


def test_an_object_of_another_size_is_refused_at_upload(any_store: StoreKind) -> None:
    any_store.store.put_bytes(NAME, DATA)
    any_store.alter(NAME, DATA[:-1])
    with pytest.raises(ObjectDamaged, match=f"has {len(DATA) - 1} bytes instead of {len(DATA)}"):
        any_store.store.put_bytes(NAME, DATA)


def test_bytes_of_another_name_are_not_uploaded(any_store: StoreKind, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(DATA)
    with pytest.raises(ObjectDamaged, match="not uploaded"):
        any_store.store.put_file(OTHER, source)
    with pytest.raises(ObjectDamaged, match="not uploaded"):
        any_store.store.put_bytes(OTHER, DATA)
    assert any_store.count_files() == 0


def test_a_source_that_cannot_be_read_is_an_error_of_the_source(any_store: StoreKind, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        any_store.store.put_file(NAME, tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        any_store.store.put_file(NAME, tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "../../etc/passwd",
        "A" * 64,
        "a" * 63,
        "a" * 65,
        f"{'a' * 64}\n",
        f"..{'a' * 62}",
        "\x00" * 64,
        "é" * 64,
        None,
    ],
)
def test_a_hostile_name_is_refused_before_anything_is_done(any_store: StoreKind, name: Any, tmp_path: Path) -> None:
    store = any_store.store
    calls: list[Callable[[], object]] = [
        lambda: store.put_bytes(name, b"x"),
        lambda: store.put_file(name, tmp_path / "missing"),
        lambda: store.read(name),
        lambda: store.fetch(name, tmp_path / "target"),
        lambda: store.size_of(name),
        lambda: store.find_missing([NAME, name]),
        lambda: store.delete(name),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="64 digits"):
            call()
    assert any_store.count_files() == 0


def test_objects_are_listed_by_the_clock_of_the_store(any_store: StoreKind) -> None:
    store = any_store.store
    assert list(store.list_objects()) == []
    before = store.read_clock() - timedelta(seconds=2)
    store.put_bytes(NAME, DATA)
    store.put_bytes(OTHER, b"another object")
    listed = {item.sha256: item for item in store.list_objects()}
    assert {name: item.size for name, item in listed.items()} == {NAME: len(DATA), OTHER: 14}
    assert all(before <= item.modified <= store.read_clock() for item in listed.values())


def test_a_deleted_object_is_gone_and_may_come_again(any_store: StoreKind) -> None:
    store = any_store.store
    store.put_bytes(NAME, DATA)
    assert store.delete(NAME)
    assert store.size_of(NAME) is None
    store.delete(NAME)
    assert store.put_bytes(NAME, DATA)
    assert next(iter(store.list_objects())).sha256 == NAME


def test_a_store_shows_where_it_is(any_store: StoreKind) -> None:
    assert any_store.store.name.startswith("the store ")
    assert "Store(" in repr(any_store.store)


def test_a_store_has_one_owner(any_store: StoreKind) -> None:
    assert any_store.store.read_owner() == ""
    any_store.store.write_owner("a")
    any_store.store.write_owner("b")
    assert any_store.store.read_owner() == ("" if any_store.kind == "redis" else "b")
    assert list(any_store.store.list_objects()) == []
