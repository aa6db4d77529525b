"""Real workers on a real Redis; checks that neither Redis nor the host keeps a test's things."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from havoc import Havoc, new_havoc
from lasting import lasting_keys
from placing_hosts import HostOfTest
from pydantic import SecretStr
from sandfleet import Fleet, Settings
from sandfleet_config.contract import CONTRACT_VERSIONS
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.sandbox.image.store import ImageStore
from stage import Stage, Stock
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def images_root() -> Iterator[Path]:
    """A store with the image `busybox`."""
    for name in ("runsc", "mkfs.erofs", "busybox"):
        require(name)
    kept = os.environ.get("TEST_IMAGES_ROOT")
    with tempfile.TemporaryDirectory(prefix="sandfleet-images-") as folder:
        root = Path(kept or folder)
        ImageStore(root).add("busybox")
        yield root


def require(name: str) -> None:
    """Skip at home, fail where CI is set, if `name` is not installed."""
    if shutil.which(name) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{name} is not installed: scripts/setup.sh installs it")


def _new_stage(redis_server: Any, images_root: Path) -> Iterator[Stage]:
    # A short path: runsc's sockets live below it (unix(7): 107 characters).
    with tempfile.TemporaryDirectory(prefix="sft-") as folder:
        stage = Stage(Path(folder), images_root, redis_server.url, redis_server.client)
        try:
            yield stage
        finally:
            stage.close()
            _forget_jobs(stage.redis)
        assert stage.find_leftovers() == [], "something is left on the host"


def _forget_jobs(client: redis.Redis) -> None:
    """Delete jobs that a test left queued or claimed on purpose; ended jobs must have a TTL."""
    for key in ("sandfleet", "unacked", "unacked_index", "owners", "queues", "delayed", "expiring"):
        client.delete(f"{KEY_PREFIX}{key}")
    for name in client.scan_iter(f"{KEY_PREFIX}claims:*"):
        client.delete(name)
    for name in client.scan_iter(f"{KEY_PREFIX}job:*"):
        if client.hget(name, "state") != b"ended":
            client.delete(name)


@pytest.fixture
def stage(redis_server: Any, images_root: Path) -> Iterator[Stage]:
    """A host of the test's own, workers not started."""
    yield from _new_stage(redis_server, images_root)


@pytest.fixture(scope="module")
def module_stage(redis_server: Any, images_root: Path) -> Iterator[Stage]:
    """A host for all tests of a module, with one worker."""
    for stage in _new_stage(redis_server, images_root):
        stage.start(concurrency=4).wait_ready()
        yield stage


@pytest.fixture(scope="module")
def module_stage_folder(redis_server: Any, images_root: Path) -> Iterator[Stage]:
    """A host for all tests of a module, workers not started."""
    yield from _new_stage(redis_server, images_root)


@pytest.fixture
def url(redis_server: Any) -> str:
    """A database of the test's own, for tests that need no worker."""
    return str(redis_server.url).replace("db=0", "db=7")


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    """A client of that database, which is empty before and after."""
    with redis.Redis.from_url(url, protocol=2) as client:
        client.flushdb()
        yield client
        client.flushdb(asynchronous=True)  # the largest batch fills it


@pytest.fixture
def fleet(url: str, client: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """A fleet on that database; the commands use it, too."""
    monkeypatch.setenv("SANDFLEET_REDIS_URL", url)
    with Fleet(Settings(redis_url=SecretStr(url))) as fleet:
        yield fleet


@pytest.fixture
def ledger(client: Any) -> Ledger:
    """One worker as Redis sees it, with a lease that nobody needs to renew."""
    found = Ledger(client, Identity("host", "one", "host:one:one"), 3600)
    found.register(7200)
    return found


@pytest.fixture
def havoc(images_root: Path) -> Iterator[Havoc]:
    """A fleet to break, workers not started."""
    with new_havoc(images_root) as havoc:
        yield havoc


@pytest.fixture
def one(client: Any) -> HostOfTest:
    """A host named `one`, of this release."""
    return HostOfTest(client, "one", contract=CONTRACT_VERSIONS[-1])


@pytest.fixture(autouse=True)
def _no_key_leak(request: pytest.FixtureRequest) -> Iterator[None]:
    """Every key a test leaves in Redis has a TTL, but for Celery's own lasting names."""
    yield
    if "redis_server" not in request.fixturenames:
        return
    client = request.getfixturevalue("redis_server").client
    with contextlib.suppress(AssertionError):  # the keys say more
        wait_until(lambda: not lasting_keys(client), 5, "keys without a TTL are gone")
    if left := lasting_keys(client):
        client.delete(*left)  # this test fails, and not each one after it
    assert left == []


@pytest.fixture(scope="session")
def stock(redis_server: Any) -> Iterator[Stock]:
    """A stock Celery client."""
    client = Stock(redis_server.url, redis_server.client)
    yield client
    client.app.close()
