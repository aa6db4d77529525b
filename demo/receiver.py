"""A receiver of webhooks on this machine, as small as one may be."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_BODY_BYTES = 64 << 10


class Receiver:
    """Keeps the webhooks whose signature is right, each id once, and counts the others."""

    def __init__(self, secret_file: Path) -> None:
        self._secret_file = secret_file
        self._webhooks: dict[str, Any] = {}
        self.refused = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                size = min(int(self.headers["Content-Length"]), MAX_BODY_BYTES)
                headers = {name.lower(): value for name, value in self.headers.items()}
                self.send_response(204 if receiver.take(self.rfile.read(size), headers) else 400)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Print nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"

    @property
    def received(self) -> list[dict[str, Any]]:
        """The data of the webhooks, in the order in which they came."""
        return [webhook["data"] for webhook in list(self._webhooks.values())]

    def take(self, body: bytes, headers: dict[str, str]) -> bool:
        """Keep a webhook; return False if its signature is wrong."""
        try:
            webhook = Webhook(self._secret_file.read_text().strip()).verify(body, headers)
        except WebhookVerificationError:
            self.refused += 1
            return False
        self._webhooks[headers["webhook-id"]] = webhook  # it may come again, with the same id
        return True


@contextmanager
def open_receiver(secret_file: Path) -> Iterator[Receiver]:
    """Run a receiver that verifies by the secret in `secret_file`."""
    receiver = Receiver(secret_file)
    thread = threading.Thread(target=receiver.server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        receiver.server.shutdown()
        receiver.server.server_close()
        thread.join(5)
