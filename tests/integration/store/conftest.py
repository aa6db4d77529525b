"""Stores of each kind, empty at the start of each test."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any

import pytest
from s3_server import run_s3_server
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.store.bucket import BucketStore
from sandfleet_config.store.folder import FolderStore
from sandfleet_config.store.redis_store import RedisStore
from store_kinds import KINDS, StoreKind

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from s3_server import S3Server


@pytest.fixture(scope="session")
def _server() -> Iterator[S3Server]:
    with run_s3_server() as server:
        yield server


@pytest.fixture
def s3_server(_server: S3Server) -> Iterator[S3Server]:
    """The session's S3 server, with an empty bucket."""
    yield _server
    if _server.process is None:
        _server.start()
    shutil.rmtree(_server.objects, ignore_errors=True)
    store = BucketStore(_server.settings())
    for item in store.list_objects():
        store.delete(item.sha256)


@pytest.fixture
def client(redis_server: Any) -> Iterator[Any]:
    """Redis; the store's keys are deleted afterwards, and have a TTL."""
    yield redis_server.client
    keys = list(redis_server.client.scan_iter(f"{KEY_PREFIX}store:*"))
    lasting = [key for key in keys if redis_server.client.ttl(key) == -1 and not key.endswith(b":pins")]
    for key in keys:
        redis_server.client.delete(key)
    assert lasting == [], "these keys have no TTL"


@pytest.fixture(params=KINDS)
def any_store(request: pytest.FixtureRequest, client: Any, tmp_path: Path) -> StoreKind:
    """A store of each kind in turn."""
    if request.param == "folder":
        root = tmp_path / "store"
        root.mkdir(mode=0o750)
        return StoreKind("folder", FolderStore(root), lambda: FolderStore(root), root, client)
    if request.param == "s3":
        server: S3Server = request.getfixturevalue("s3_server")
        settings = server.settings()
        return StoreKind("s3", BucketStore(settings), lambda: BucketStore(settings), None, client)
    store = RedisStore(client, 8 << 20)
    return StoreKind("redis", store, lambda: store, None, client)
