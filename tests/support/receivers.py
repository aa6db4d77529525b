"""Receivers of webhooks that answer as a test wants, and processes that send to them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwaaaaaaaaaaa="


@dataclass(frozen=True)
class Received:
    """One request: its headers in lower case, and its body."""

    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.monotonic)

    @property
    def webhook_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def payload(self) -> Any:
        return json.loads(self.body)


Behave = "Callable[[BaseHTTPRequestHandler], object]"


def answer(status: int, **headers: str) -> Callable[[BaseHTTPRequestHandler], None]:
    """Return a behaviour: answer with this status."""

    def behave(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in {"Content-Length": "0", **headers}.items():
            handler.send_header(name, value)
        handler.end_headers()

    return behave


def close_early(handler: BaseHTTPRequestHandler) -> None:
    """Close without an answer."""
    handler.connection.shutdown(socket.SHUT_RDWR)


def hang(handler: BaseHTTPRequestHandler) -> None:
    """Say nothing until the client has gone."""
    with contextlib.suppress(OSError):
        handler.connection.recv(1)


def drip(handler: BaseHTTPRequestHandler) -> None:
    """Send a header a byte at a time, without end."""
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nx-slow: ")
        while True:
            handler.wfile.write(b"a")
            handler.wfile.flush()
            time.sleep(0.05)


def send_endless_body(handler: BaseHTTPRequestHandler) -> None:
    """Answer 200 with a body that does not end."""
    with contextlib.suppress(OSError):
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
        while True:
            handler.wfile.write(b"x" * 65536)


class Receiver:
    """A server that keeps requests.

    `behave` answers, one behaviour a request, the last one for all others.
    """

    def __init__(self, *behaviours: Any, tls: ssl.SSLContext | None = None) -> None:
        self.received: list[Received] = []
        self.behaviours = list(behaviours) or [answer(204)]
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                receiver.received.append(Received(self.path, headers, body))
                self.close_connection = True
                number = min(len(receiver.received), len(receiver.behaviours)) - 1
                receiver.behaviours[number](self)

            def log_message(self, *_: Any) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)


@contextlib.contextmanager
def open_receiver(*behaviours: Any, tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """Run a receiver."""
    receiver = Receiver(*behaviours, tls=tls)
    try:
        yield receiver
    finally:
        receiver.close()


def write_secret(folder: Path) -> Path:
    """Write the secret of all endpoints of a test."""
    path = folder / "hook.secret"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    return path


def endpoint_env(url: str, endpoints: dict[str, dict[str, Any]], **settings: object) -> dict[str, str]:
    """Return the environment of a sender on the Redis `url`."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("SANDFLEET_")}
    env |= {f"SANDFLEET_WEB__{name.upper()}": str(value) for name, value in settings.items()}
    return env | {"SANDFLEET_REDIS_URL": url, "SANDFLEET_WEB__ENDPOINTS": json.dumps(endpoints)}


class SenderProcess:
    """`sandfleet-web notify` as a process; its log is a file. `step` is one of `dying_sender`."""

    def __init__(self, env: dict[str, str], log: Path, step: str = "") -> None:
        self.log_file = log
        with log.open("ab") as file:
            command = [sys.executable, "-m", "sandfleet_web.cli", "notify"]
            if step:
                command = [sys.executable, str(Path(__file__).with_name("dying_sender.py")), step]
            self.process = subprocess.Popen(command, env=env, stdout=file, stderr=file)

    @property
    def log(self) -> str:
        return self.log_file.read_text()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
