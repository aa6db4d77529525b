"""Real redis-servers on loopback: with users, with TLS, with sentinels."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis_servers import Cluster, TlsFiles, UserServer

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def short_folder() -> Iterator[Path]:
    """A folder whose path is short: sockets of runsc live below it (unix(7): 107 characters)."""
    with tempfile.TemporaryDirectory(prefix="sft-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def tls(short_folder: Path) -> TlsFiles:
    """A CA of the test's own, and what it signed."""
    return TlsFiles.make(short_folder)


@pytest.fixture(scope="module")
def users(short_folder: Path) -> Iterator[UserServer]:
    """A Redis with the users of deploy/redis."""
    with UserServer(short_folder) as server:
        yield server


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """A primary, two replicas and three sentinels, with passwords and without TLS."""
    with Cluster(tmp_path) as cluster:
        yield cluster
