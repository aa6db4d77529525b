"""A plain server of the history's JSON API, as the pages serve it."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from sandfleet.errors import HistoryUnavailable, QueryTooSlow
from sandfleet.history.remote_history import API_PATH
from sandfleet_web.history.answers import answer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet.history.questions import History


@contextmanager
def serve_history(history: History, token: str = "") -> Iterator[str]:
    """Serve it on a free port; yield the address. With a `token`, others are refused."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if token and self.headers.get("Authorization") != f"Bearer {token}":
                self._send(401, {"error": "unauthorized", "message": "no token"})
                return
            parts = urlsplit(self.path)
            try:
                self._send(200, answer(history, parts.path.removeprefix(f"{API_PATH}/"), dict(parse_qsl(parts.query))))
            except KeyError:
                self._send(404, {"error": "not_found", "message": "no such question"})
            except QueryTooSlow as error:
                self._send(503, {"error": "too_slow", "message": str(error)})
            except HistoryUnavailable as error:
                self._send(503, {"error": "history_unavailable", "message": str(error)})
            except ValueError as error:
                self._send(400, {"error": "bad_query", "message": str(error)})

        def _send(self, status: int, fields: dict[str, Any]) -> None:
            raw = json.dumps(fields).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: object) -> None:
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
