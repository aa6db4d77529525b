"""A host's cache of objects keeps no name whose bytes could be lost with the host's power."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any, cast

from sandfleet_worker.files.cache import ObjectCache

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import pytest

DATA = b"an input of many jobs"
NAME = hashlib.sha256(DATA).hexdigest()


class OneObject:
    def size_of(self, sha256: str) -> int:
        del sha256
        return len(DATA)

    def read(self, sha256: str) -> Iterator[bytes]:
        del sha256
        yield DATA


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
