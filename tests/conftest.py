"""Fixtures for all kinds of tests: the release of runsc, a redis-server, clean-up."""

from __future__ import annotations

import logging
import signal
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis

if TYPE_CHECKING:
    from collections.abc import Iterator

from binaries import find_binary
from cgrouptree import CGROUP_PARENT, remove_parents
from releases import choose_release, describe_release
from waiting import wait_until

START_SECONDS = 10.0


def pytest_configure() -> None:
    """Choose the release of runsc, and let programs that tests start be interrupted."""
    choose_release()
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in the background of a shell; it would be inherited
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _log_level() -> Iterator[None]:
    """Reset the root logger's level: Celery's worker changes it, and later tests see no logs."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


def pytest_report_header() -> str:
    """Name the release of runsc."""
    return describe_release()


@dataclass(frozen=True)
class RedisServer:
    """The tests' own redis-server: its URL, and a client of it."""

    url: str
    client: redis.Redis
    process: subprocess.Popen[bytes]


@pytest.fixture(scope="session", autouse=True)
def _no_cgroup_parents() -> Iterator[None]:
    """Remove the parent cgroups of the session's workers; theirs are gone, or a test failed."""
    yield
    remove_parents(CGROUP_PARENT)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    """Run a private redis-server on a unix socket in a folder of its own."""
    binary = find_binary("redis-server")
    # Not pytest's tmp_path: a socket's path may have 107 characters only (unix(7)).
    with tempfile.TemporaryDirectory(prefix="sandfleet-test-") as folder:
        socket = Path(folder) / "redis.sock"
        options = ["--port", "0", "--unixsocket", str(socket), "--dir", folder]
        options += ["--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction"]
        with (Path(folder) / "redis.log").open("wb") as log:
            process = subprocess.Popen([binary, *options], stdout=log, stderr=log)
        try:
            wait_until(socket.exists, START_SECONDS, "redis-server has its socket")
            with redis.Redis(unix_socket_path=str(socket), protocol=2) as client:
                client.ping()
                yield RedisServer(f"unix://{socket}?db=0", client, process)
        finally:
            process.terminate()
            process.wait(START_SECONDS)
