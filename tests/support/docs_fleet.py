"""A Redis and a worker for the pages, found without settings, as of `sandfleet-worker local`."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import redis
from stage import Stage
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SHOWN_ADDRESS = "127.0.0.1:6379"
"""Of the Redis that the pages name."""


@dataclass
class DocsFleet:
    """The pages' `sandfleet-worker local`: a Redis that is found without settings, and a worker."""

    stage: Stage
    port: int

    @property
    def env(self) -> dict[str, str]:
        """The environment in which a page's commands run."""
        env = self.stage.env | {
            "SANDFLEET_LOCAL_DIR": str(self.stage.folder / "local"),
            "SANDFLEET_LOCAL_STATE_DIR": str(self.stage.folder / "state"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "COLUMNS": "120",
        }
        del env["SANDFLEET_REDIS_URL"]
        return env

    def adapt(self, text: str) -> str:
        """Return what a page shows with the address of this Redis."""
        return text.replace(SHOWN_ADDRESS, f"127.0.0.1:{self.port}")


@contextmanager
def run_docs_fleet(folder: Path) -> Iterator[DocsFleet]:
    """Run a Redis and a worker with the images `python` and `busybox`; leave nothing of them."""
    (folder / "local").mkdir()
    port = _find_free_port()
    socket_path = folder / "local/redis.sock"
    options = ["--port", str(port), "--bind", "127.0.0.1", "--unixsocket", str(socket_path), "--dir", str(folder)]
    with (folder / "redis.log").open("wb") as log:
        server = subprocess.Popen(["redis-server", *options, "--save", ""], stdout=log, stderr=log)
    try:
        wait_until(socket_path.exists, 10, "redis-server has its socket")
        with redis.Redis(unix_socket_path=str(socket_path), protocol=2) as client:
            fleet = DocsFleet(Stage(folder, folder / "images", f"unix://{socket_path}?db=0", client), port)
            _add_images(fleet)
            fleet.stage.start(concurrency=2).wait_ready()
            yield fleet
            fleet.stage.close()
        assert fleet.stage.find_leftovers() == []
    finally:
        server.terminate()
        server.wait(10)


def _find_free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _add_images(fleet: DocsFleet) -> None:
    """Make a store of the pages' own.

    It is linked from the store that all tests share: `python` takes half a minute.
    """
    kept = os.environ.get("TEST_IMAGES_ROOT")
    for name in ("busybox", "python"):
        command = [sys.executable, "-m", "sandfleet_worker.cli", "images", "add", name]
        env = fleet.env | {"SANDFLEET_IMAGES__ROOT": kept or fleet.env["SANDFLEET_IMAGES__ROOT"]}
        subprocess.run(command, env=env, check=True, capture_output=True, timeout=300)
    if kept:
        shutil.copytree(kept, fleet.stage.images, symlinks=True, copy_function=_link)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
