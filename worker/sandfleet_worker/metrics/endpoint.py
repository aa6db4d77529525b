"""Serves a worker's metrics: ``GET /metrics``, with a bearer token where the settings have one."""

from __future__ import annotations

import contextlib
import hmac
import logging
import socket
import stat
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from sandfleet_config.settings import SettingsInvalid

from sandfleet_worker.metrics.families import WorkerCollector
from sandfleet_worker.system.supervised_thread import is_resource_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sandfleet_config.metrics_settings import MetricsSettings

    from sandfleet_worker.metrics.counts import JobCounts
    from sandfleet_worker.metrics.families import WorkerGauges

log = logging.getLogger(__name__)

PATH: Final = "/metrics"
MAX_REQUESTS: Final = 4
"""Requests at once; a further connection is closed."""
REQUEST_SECONDS: Final = 5.0
ACCEPT_PAUSE_SECONDS: Final = 0.5
MAX_TOKEN_BYTES: Final = 4096
LEAST_TOKEN_BYTES: Final = 16
BUSY: Final = b"HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n"


@contextlib.contextmanager
def open_endpoint(
    settings: MetricsSettings, counts: JobCounts, read_gauges: Callable[[], WorkerGauges]
) -> Iterator[None]:
    """Serve the metrics until the end of the context.

    Raises:
        SettingsInvalid: the token's file cannot be used.
        OSError: the address or the port cannot be used; `filename` names them.
    """
    token = b"" if settings.token_file is None else read_token(settings.token_file)
    registry = CollectorRegistry()
    registry.register(WorkerCollector(counts, read_gauges))
    server = _open_server(settings, lambda: generate_latest(registry), token)
    thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
    thread.start()
    log.info("metrics at http://%s:%d%s", settings.address, settings.port, PATH, extra={"action": "metrics_served"})
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def read_token(path: Path) -> bytes:
    """Return the token of a file.

    Raises:
        SettingsInvalid: it cannot be read, others may read it, or it has no usable token.
    """
    try:
        mode = path.stat().st_mode
        with path.open("rb") as file:
            token = file.read(MAX_TOKEN_BYTES + 1).strip()
    except OSError as error:
        msg = f"SANDFLEET_METRICS__TOKEN_FILE: {path}: {error.strerror}"
        raise SettingsInvalid(msg) from None
    if not stat.S_ISREG(mode) or mode & 0o077:
        msg = f"SANDFLEET_METRICS__TOKEN_FILE: {path} must be a file that only its owner can read: chmod 600 {path}"
        raise SettingsInvalid(msg)
    if not LEAST_TOKEN_BYTES <= len(token) <= MAX_TOKEN_BYTES or b"\n" in token:
        msg = f"SANDFLEET_METRICS__TOKEN_FILE: {path} must have one line of {LEAST_TOKEN_BYTES} characters or more"
        raise SettingsInvalid(msg)
    return token


def _open_server(settings: MetricsSettings, render: Callable[[], bytes], token: bytes) -> _Server:
    try:
        return _Server((settings.address, settings.port), render, token)
    except OSError as error:
        where = f"metrics at {settings.address}:{settings.port}"
        raise OSError(error.errno, error.strerror or str(error), where) from None


class _Server(ThreadingMixIn, HTTPServer):
    """A thread a request, `MAX_REQUESTS` at once."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 16

    def __init__(self, address: tuple[str, int], render: Callable[[], bytes], token: bytes) -> None:
        self.render, self.token = render, token
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self._places = threading.BoundedSemaphore(MAX_REQUESTS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind, without HTTPServer's look-up of the host's name, which may take seconds."""
        self.socket.bind(self.server_address)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]

    def get_request(self) -> Any:
        """Accept a connection; if no descriptor is left, pause: the loop asks again at once."""
        try:
            return super().get_request()
        except OSError as error:
            if is_resource_error(error):
                time.sleep(ACCEPT_PAUSE_SECONDS)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a request in a thread, if there is a place for it."""
        if not self._places.acquire(blocking=False):
            with contextlib.suppress(OSError):
                request.sendall(BUSY)
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread is left
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle it, and free its place."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002  socketserver's
        """Log what ended a request; a client that went away is no fault."""
        error = sys.exception()
        if not isinstance(error, OSError):
            log.error("cannot answer with metrics", exc_info=error, extra={"action": "metrics_failed"})


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_SECONDS
    server_version, sys_version = "sandfleet", ""

    def do_GET(self) -> None:
        """Answer the metrics."""
        if self.server.token and not self._has_token():
            self._answer(401, b"a bearer token is needed\n", ("WWW-Authenticate", "Bearer"))
        elif self.path.partition("?")[0] != PATH:
            self._answer(404, b"only /metrics is here\n")
        else:
            self._answer(200, self.server.render(), ("Content-Type", CONTENT_TYPE_LATEST))

    def _has_token(self) -> bool:
        kind, _, given = self.headers.get("Authorization", "").partition(" ")
        # Bytes: strings that are not ASCII cannot be compared so.
        return kind == "Bearer" and hmac.compare_digest(given.strip().encode(), self.server.token)

    def _answer(self, status: int, body: bytes, *headers: tuple[str, str]) -> None:
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing: Prometheus asks several times a minute."""
