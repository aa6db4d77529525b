"""Servers that stand before or instead of an S3 server, and misbehave."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

CONDITION = "If-None-Match"
SLOW_BYTES = 32 << 10


class OldServer(BaseHTTPRequestHandler):
    """Forwards each request to a real server, but does not know ``If-None-Match``."""

    protocol_version = "HTTP/1.1"
    upstream: int
    refused: list[str]
    passed: list[str]

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if CONDITION in self.headers:
            self.refused.append(self.path)
            self._answer(501, {}, b"<Error><Code>NotImplemented</Code></Error>")
            return
        self.passed.append(f"{self.command} {self.path}")
        self._forward(body)

    def _forward(self, body: bytes) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        self._answer(answer.status, dict(answer.headers), answer.read())
        connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in {"transfer-encoding", "connection", "content-length", "server", "date"}:
                self.send_header(name, value)
        length = headers.get("Content-Length", str(len(body))) if self.command == "HEAD" else str(len(body))
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any  # noqa: N815  http.server calls them so

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


class SlowServer(OldServer):
    """Forwards each request, and passes all but small bodies at `SLOW_BYTES` a second."""

    def handle_any(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if length > SLOW_BYTES:
            self.passed.append(f"slow {self.command}")
        with contextlib.suppress(OSError):  # the client has gone
            body = b"".join(pass_slowly(iter(partial(self.rfile.read, min(length, SLOW_BYTES) or 1), b""), length))
            if len(body) == length:
                self._forward(body)

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        if len(body) <= SLOW_BYTES:
            super()._answer(status, headers, body)
            return
        self.passed.append(f"slow {self.command}")
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        parts = (body[at : at + SLOW_BYTES] for at in range(0, len(body), SLOW_BYTES))
        for part in pass_slowly(parts, len(body)):
            self.wfile.write(part)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = handle_any  # noqa: N815  http.server calls them so


def pass_slowly(parts: Iterator[bytes], length: int) -> Iterator[bytes]:
    """Yield parts until they have `length` bytes, one a second if there are several."""
    left = length
    while left > 0 and (part := next(parts, b"")):
        left -= len(part)
        yield part
        if left > 0:
            time.sleep(1.0)


@contextlib.contextmanager
def run_old_server(upstream: int, kind: type[OldServer] = OldServer) -> Iterator[tuple[int, type[OldServer]]]:
    """Run such a server before the one at port `upstream`; return its port, and what it saw."""
    handler = type("Handler", (kind,), {"upstream": upstream, "refused": [], "passed": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server.server_address[1], handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextlib.contextmanager
def run_silent_server() -> Iterator[int]:
    """Accept connections and never answer; return the port."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server.getsockname()[1]
