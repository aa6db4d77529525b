"""A real S3 server on loopback: versitygw, which `scripts/setup.sh` builds, or SeaweedFS where there is no Go."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sandfleet_config.store_settings import StoreSettings
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

VERSITYGW = Path(os.environ.get("TEST_VERSITYGW", "/usr/local/lib/sandfleet/versitygw/versitygw"))
ACCESS_KEY = "PLANTEDACCESSKEY"
SECRET_KEY = "planted/secret+key=0123456789abcdef"
BUCKET = "fleet"
PREFIX = "some/prefix"
START_SECONDS = 60.0


@dataclass
class S3Server:
    """A server with the bucket `BUCKET`; `folder` is where versitygw keeps its objects as files."""

    folder: Path
    port: int
    process: subprocess.Popen[bytes] | None = field(default=None)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def objects(self) -> Path:
        """The folder of the prefix `PREFIX`."""
        return self.folder / BUCKET / PREFIX

    def start(self) -> None:
        environment = {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY, "PATH": os.environ["PATH"]}
        options = ["--port", f"127.0.0.1:{self.port}", "--quiet", "posix", str(self.folder)]
        with (self.folder.parent / "server.log").open("ab") as log:
            self.process = subprocess.Popen([VERSITYGW, *options], env=environment, stdout=log, stderr=log)
        wait_until(self._answers, START_SECONDS, "versitygw answers")

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
            return True
        return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def settings(self, **fields: Any) -> StoreSettings:
        """Return settings of a store in this server."""
        known = {
            "url": f"s3://{BUCKET}/{PREFIX}",
            "endpoint": self.endpoint,
            "access_key_id": SecretStr(ACCESS_KEY),
            "secret_access_key": SecretStr(SECRET_KEY),
        }
        return StoreSettings.model_validate(known | fields)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def run_s3_server() -> Iterator[S3Server]:
    """Run versitygw with an empty bucket; without it a test is skipped at home and fails where CI is set."""
    if not VERSITYGW.exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{VERSITYGW} does not exist: scripts/setup.sh makes it")
    with tempfile.TemporaryDirectory(prefix="sandfleet-test-s3-") as root:
        folder = Path(root) / "data"
        (folder / BUCKET).mkdir(parents=True)
        server = S3Server(folder, free_port())
        try:
            server.start()
            yield server
        finally:
            server.kill()
