"""A registry that lies, refuses or is slow: what no real one does on demand. TLS on loopback."""

from __future__ import annotations

import gzip
import hashlib
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import trustme
from sandfleet_worker.sandbox.image.oci import find_architecture

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
Answer = tuple[int, bytes, dict[str, str]]


class LyingRegistry:
    """Answers each path with what `answers` says for its end; `asked` are the paths so far."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.ca_dir = folder
        self.answers: dict[str, Callable[[], Answer]] = {}
        self.asked: list[str] = []
        ca = trustme.CA()
        ca.cert_pem.write_to_path(folder / "ca.crt")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("localhost").configure_cert(context)
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._new_handler())
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    @property
    def name(self) -> str:
        """The registry's name in references."""
        return f"localhost:{self._server.server_port}"

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def serve_image(self, path: str, layer: bytes) -> bytes:
        """Serve an image as tag `v1` of `path`; return its manifest."""
        diff_ids = [_digest(gzip.decompress(layer))]
        fields = {
            "os": "linux",
            "architecture": find_architecture(),
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        }
        config = json.dumps(fields).encode()
        blobs = {_digest(data): data for data in (config, layer)}
        for digest, data in blobs.items():
            self.answers[f"/{path}/blobs/{digest}"] = lambda data=data: (200, data, {})  # type: ignore[misc]
        layers = [
            {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": _digest(layer), "size": len(layer)}
        ]
        entry = {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": _digest(config),
            "size": len(config),
        }
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": entry, "layers": layers}
        raw = json.dumps(manifest).encode()
        for reference in ("v1", _digest(raw)):
            self.answers[f"/{path}/manifests/{reference}"] = lambda: (200, raw, {"Content-Type": MANIFEST})
        return raw

    def _new_handler(self) -> type[BaseHTTPRequestHandler]:
        registry = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                registry.asked.append(self.path)
                status, body, headers = registry._find(self.path)
                self.send_response(status)
                for key, value in {"Content-Length": str(len(body)), **headers}.items():
                    self.send_header(key, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_HEAD = do_GET  # noqa: N815  the library's name

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        return Handler

    def _find(self, path: str) -> Answer:
        for end, answer in self.answers.items():
            if path.endswith(end):
                return answer()
        return (200, b"{}", {}) if path == "/v2/" else (404, b"{}", {})


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
