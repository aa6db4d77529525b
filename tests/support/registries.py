"""A real registry on loopback with TLS and a password: Debian's docker-registry.

scripts/setup.sh unpacks it.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trustme
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

BINARY = Path("/usr/local/lib/sandfleet/registry/docker-registry")
USER, PASSWORD = "judge", "open sesame"
# bcrypt of PASSWORD with the least number of rounds.
HTPASSWD = f"{USER}:$2b$05$rar9GwjBp4HRNgV4C9k.wesiqSaZRQ/CJgf6pxCf2pVRTafh30Uga\n"
START_SECONDS = 15.0
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"

CONFIG = """\
version: 0.1
log: {{level: error}}
storage: {{filesystem: {{rootdirectory: {folder}/data}}, delete: {{enabled: true}}}}
http: {{addr: "127.0.0.1:{port}", tls: {{certificate: {folder}/server.pem, key: {folder}/server.key}}}}
auth: {{htpasswd: {{realm: tests, path: {folder}/htpasswd}}}}
"""


def find_registry() -> Path:
    """Return the binary; without it the test is skipped at home and fails where CI is set."""
    if BINARY.exists():
        return BINARY
    missing = "docker-registry is not here: scripts/setup.sh gets it"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@dataclass
class Registry:
    """One registry with its files in `folder`; clients need `ca_dir` and `auth_file`."""

    folder: Path
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def name(self) -> str:
        """The registry's name in references."""
        return f"localhost:{self.port}"

    @property
    def ca_dir(self) -> Path:
        """The folder with the certificate of its CA."""
        return self.folder / "ca"

    @property
    def auth_file(self) -> Path:
        """The file with its password."""
        return self.folder / "auth.json"

    def prepare(self) -> Registry:
        """Make certificates, password and configuration; choose a free port."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        ca = trustme.CA()
        server = ca.issue_cert("localhost", "127.0.0.1")
        self.ca_dir.mkdir(parents=True)
        ca.cert_pem.write_to_path(self.ca_dir / "ca.crt")
        server.private_key_pem.write_to_path(self.folder / "server.key")
        for number, pem in enumerate(server.cert_chain_pems):
            pem.write_to_path(self.folder / "server.pem", append=number > 0)
        (self.folder / "htpasswd").write_text(HTPASSWD)
        write_auth(self.auth_file, self.name)
        (self.folder / "config.yml").write_text(CONFIG.format(folder=self.folder, port=self.port))
        return self

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.folder / "registry.log").open("ab") as log:
            argv = [str(find_registry()), "serve", str(self.folder / "config.yml")]
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)
        wait_until(self._is_listening, START_SECONDS, "the registry listens")

    def _is_listening(self) -> bool:
        with socket.socket() as probe:
            # A connection to a free port may by chance come from that very port, and reach itself.
            return probe.connect_ex(("127.0.0.1", self.port)) == 0 and probe.getsockname() != probe.getpeername()

    def kill(self) -> None:
        """End it at once, whatever it serves."""
        if self.process:
            self.process.kill()
            self.process.wait()
            self.process = None

    def push(self, source: str, name: str, *options: str) -> str:
        """Copy `source` (as ``oci:FOLDER:TAG``) to the registry as `name`; return its digest."""
        digest = self.folder / "digest"
        self._skopeo(
            "copy", f"--digestfile={digest}", *self.dest_options, *options, source, f"docker://{self.name}/{name}"
        )
        return digest.read_text().strip()

    def put_index(self, path: str, tag: str, manifests: Mapping[str, str]) -> str:
        """Put an index of present manifests, by architecture, as `tag`; return its digest."""
        entries = [
            {"mediaType": MANIFEST, "digest": digest, "size": len(self._ask(f"{path}/manifests/{digest}")[0])}
            | {"platform": {"os": "linux", "architecture": architecture}}
            for architecture, digest in manifests.items()
        ]
        index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).encode()
        return self._ask(f"{path}/manifests/{tag}", index)[1]

    def _ask(self, path: str, data: bytes | None = None) -> tuple[bytes, str]:
        """Get a manifest, or put one; return its bytes and its digest."""
        word = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        headers = {"Authorization": f"Basic {word}", "Accept": MANIFEST, "Content-Type": INDEX}
        request = urllib.request.Request(
            f"https://{self.name}/v2/{path}", data, headers, method="PUT" if data else "GET"
        )
        context = ssl.create_default_context(cafile=str(self.ca_dir / "ca.crt"))
        with urllib.request.urlopen(request, context=context) as answer:  # noqa: S310  likewise
            return answer.read(), answer.headers["Docker-Content-Digest"]

    @property
    def dest_options(self) -> Sequence[str]:
        """The options of a copy to it."""
        return (f"--dest-cert-dir={self.ca_dir}", f"--dest-authfile={self.auth_file}")

    def _skopeo(self, *argv: str) -> None:
        subprocess.run(["skopeo", "--insecure-policy", *argv], check=True, capture_output=True)


def write_auth(path: Path, registry: str, password: str = PASSWORD) -> Path:
    """Write a file with the password of `registry`, as `skopeo login` would."""
    word = base64.b64encode(f"{USER}:{password}".encode()).decode()
    path.touch(mode=0o600)
    path.write_text(json.dumps({"auths": {registry: {"auth": word}}}))
    return path


@contextlib.contextmanager
def run_registry(folder: Path) -> Iterator[Registry]:
    """Run a registry with its files in `folder`."""
    registry = new_registry(folder)
    registry.start()
    try:
        yield registry
    finally:
        registry.kill()


def new_registry(folder: Path) -> Registry:
    """Return a prepared registry that has not started."""
    assert shutil.which("skopeo")
    folder.mkdir(parents=True, exist_ok=True)
    return Registry(folder).prepare()
