"""One attempt to deliver a webhook: its body, its request, and what the answer means."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, NamedTuple

import httpcore2

from sandfleet_web.notify.addresses import AddressRefused, NameUnknown
from sandfleet_web.notify.connecting import CheckedBackend

if TYPE_CHECKING:
    from sandfleet_config.web_settings import WebhookSettings

    from sandfleet_web.notify.endpoint import Endpoint
    from sandfleet_web.notify.queue import TakenWebhook

MAX_ANSWER_BYTES: Final = 4096
"""So much of an answer's body is read at most; none of it is kept."""
SHOWN_CHARS: Final = 200
GONE: Final = 410
MILLI: Final = 1000


class Answer(NamedTuple):
    """How an attempt ended: the status of the answer, or 0 and the reason why there is none."""

    status: int
    reason: str = ""

    @property
    def is_delivered(self) -> bool:
        """Whether the receiver has taken the webhook: any 2xx."""
        return 200 <= self.status < 300  # noqa: PLR2004  the classes of HTTP

    @property
    def is_refused(self) -> bool:
        """Whether the receiver wants no more attempts."""
        return self.status == GONE

    def describe(self) -> str:
        """Return the ending for people."""
        if self.is_refused:
            return "the receiver answered 410 (Gone): it wants no more attempts"
        if 300 <= self.status < 400:  # noqa: PLR2004
            return f"the receiver answered {self.status}: redirects are not followed, put the new URL into the settings"
        return f"the receiver answered {self.status}" if self.status else self.reason


def encode_body(webhook: TakenWebhook) -> bytes:
    """Return the payload: the same bytes at each attempt."""
    at = datetime.fromtimestamp(webhook.at / MILLI, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    data = {"batch": webhook.batch, "total": webhook.total, "codes": dict(sorted(webhook.codes.items()))}
    return json.dumps({"type": "batch.done", "timestamp": at, "data": data}).encode()


def send(endpoint: Endpoint, webhook: TakenWebhook, settings: WebhookSettings) -> Answer:
    """Send a webhook once.

    Takes at most ``deadline_seconds``, and raises nothing that the network can cause.
    """
    deadline = time.monotonic() + settings.deadline_seconds
    backend = CheckedBackend(
        allow_private=endpoint.allow_private, connect_seconds=settings.connect_seconds, deadline=deadline
    )
    body, timestamp = encode_body(webhook), int(time.time())
    headers: dict[bytes | str, bytes | str] = {
        "Content-Type": "application/json",
        "User-Agent": f"sandfleet-web/{version('sandfleet-web')}",
        "Connection": "close",
        "webhook-id": webhook.webhook_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": endpoint.sign(webhook.webhook_id, timestamp, body),
    }
    try:
        with (
            httpcore2.ConnectionPool(endpoint.tls, max_connections=1, network_backend=backend) as pool,
            pool.stream("POST", endpoint.url, headers=headers, content=body) as response,
        ):
            status = response.status
            _skip_body(response)
            return Answer(status)
    except httpcore2.TimeoutException:
        return Answer(0, f"the receiver did not answer within the deadline of {settings.deadline_seconds:g} s")
    except (AddressRefused, NameUnknown) as error:
        return Answer(0, _shorten(error))
    except (httpcore2.NetworkError, httpcore2.ProtocolError, OSError) as error:
        return Answer(0, _shorten(error))


def _skip_body(response: httpcore2.Response) -> None:
    """Read a small body to its end, so that the receiver can end in order.

    The status has decided already.
    """
    try:
        size = 0
        for chunk in response.iter_stream():
            size += len(chunk)
            if size >= MAX_ANSWER_BYTES:
                return
    except (httpcore2.TimeoutException, httpcore2.NetworkError, httpcore2.ProtocolError):
        return


def _shorten(error: Exception) -> str:
    return ascii(str(error) or type(error).__name__)[1:-1][:SHOWN_CHARS]
