"""Servers that stand before or instead of an S3 server, and misbehave."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

CONDITION = "If-None-Match"


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


@contextlib.contextmanager
def run_old_server(upstream: int) -> Iterator[tuple[int, type[OldServer]]]:
    """Run an `OldServer` before the server at port `upstream`; return its port, and what it saw."""
    handler = type("Handler", (OldServer,), {"upstream": upstream, "refused": [], "passed": []})
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
