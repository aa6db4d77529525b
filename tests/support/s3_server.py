"""A real S3 server on loopback: versitygw from `scripts/setup.sh`, or SeaweedFS without Go."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from pydantic import SecretStr
from sandfleet_config.store_settings import StoreSettings
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

WEED = os.environ.get("TEST_WEED", str(Path(sys.executable).parent / "weed"))
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
    is_tls: bool = False

    @property
    def endpoint(self) -> str:
        return f"{'https' if self.is_tls else 'http'}://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> Path:
        """The authority of the server's certificate."""
        return self.folder.parent / "ca.pem"

    def make_certificate(self) -> None:
        """Speak TLS from the next start on."""
        ca = trustme.CA()
        certificate = ca.issue_cert("127.0.0.1")
        ca.cert_pem.write_to_path(self.ca_file)
        certificate.private_key_and_cert_chain_pem.write_to_path(self.folder.parent / "server.pem")
        self.is_tls = True

    @property
    def objects(self) -> Path:
        """The folder of the prefix `PREFIX`."""
        return self.folder / BUCKET / PREFIX

    def start(self) -> None:
        environment = {"ROOT_ACCESS_KEY": ACCESS_KEY, "ROOT_SECRET_KEY": SECRET_KEY, "PATH": os.environ["PATH"]}
        options = ["--port", f"127.0.0.1:{self.port}", "--quiet"]
        if self.is_tls:
            options += [
                "--cert",
                str(self.folder.parent / "server.pem"),
                "--key",
                str(self.folder.parent / "server.pem"),
            ]
        options += ["posix", str(self.folder)]
        with (self.folder.parent / "server.log").open("ab") as log:
            self.process = subprocess.Popen([VERSITYGW, *options], env=environment, stdout=log, stderr=log)
        wait_until(self.answers, START_SECONDS, "versitygw answers")

    def answers(self) -> bool:
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


@dataclass
class WeedServer(S3Server):
    """SeaweedFS: its objects are no plain files; it leaves sockets in /tmp, named by its ports."""

    ports: tuple[int, ...] = ()

    def start(self) -> None:
        self.ports = self.ports or (self.port, *(weed_port() for _ in range(4)))
        names = ("s3", "master", "volume", "filer", "admin")
        options = [f"-{name}.port={port}" for name, port in zip(names, self.ports, strict=True)]
        options += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false", f"-dir={self.folder}"]
        environment = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "HOME": str(self.folder)}
        with (self.folder.parent / "server.log").open("ab") as log:
            command = [WEED, "mini", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", *options]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        wait_until(self.answers, START_SECONDS, "weed answers")
        wait_until(self._has_bucket, START_SECONDS, "weed has the bucket")

    def _has_bucket(self) -> bool:
        command = [WEED, "shell", f"-master=127.0.0.1:{self.ports[1]}", f"-filer=127.0.0.1:{self.ports[3]}"]
        words = f"s3.bucket.create -name {BUCKET}\ns3.bucket.list\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            done = subprocess.run(command, input=words, capture_output=True, text=True, timeout=10, check=False)
            return f"  {BUCKET}\t" in done.stdout
        return False

    def kill(self) -> None:
        super().kill()
        for port in self.ports:
            for socket_path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                socket_path.unlink(missing_ok=True)
            for socket_path in Path("/tmp").glob(f"seaweedfs-*-{port + 10000}.sock"):
                socket_path.unlink(missing_ok=True)


def weed_port() -> int:
    """Return a free port whose gRPC port, 10000 above it, exists."""
    return next(port for _ in range(1000) if (port := free_port()) < 50000)


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@contextlib.contextmanager
def run_s3_server(*, is_tls: bool = False) -> Iterator[S3Server]:
    """Run a server with an empty bucket; without one a test skips, or fails if CI is set."""
    is_weed = not VERSITYGW.exists()
    if is_weed and is_tls and Path(WEED).exists():
        pytest.skip("SeaweedFS is run without TLS: needs versitygw")
    if is_weed and not Path(WEED).exists():
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{VERSITYGW} does not exist: scripts/setup.sh makes it")
    with tempfile.TemporaryDirectory(prefix="sandfleet-test-s3-") as root:
        folder = Path(root) / "data"
        (folder / BUCKET).mkdir(parents=True)
        server = WeedServer(folder, weed_port()) if is_weed else S3Server(folder, free_port())
        if is_tls:
            server.make_certificate()
        try:
            server.start()
            yield server
        finally:
            server.kill()


def new_environment(server: S3Server) -> dict[str, str]:
    """Return the variables of a producer or worker whose store is in `server`."""
    return {
        "PATH": os.environ["PATH"],
        "SANDFLEET_STORE__URL": f"s3://{BUCKET}/{PREFIX}",
        "SANDFLEET_STORE__ENDPOINT": server.endpoint,
        "SANDFLEET_STORE__ACCESS_KEY_ID": ACCESS_KEY,
        "SANDFLEET_STORE__SECRET_ACCESS_KEY": SECRET_KEY,
    }
