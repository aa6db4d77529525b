"""A claimed message in the form Celery's consumer takes.

It is built from bytes that a stranger may have written.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any

from kombu.message import Message

if TYPE_CHECKING:
    from sandfleet_worker.delivery.claim import Claim


class ClaimedMessage(Message):
    """A message without a kombu channel.

    `Intake.settle` settles its claim, so ack and reject do nothing.
    """

    is_json = True
    """False for a message that Python cannot read."""

    def ack(self, multiple: bool = False) -> None:  # noqa: FBT001, FBT002  kombu's signature
        """Do nothing."""

    def reject(self, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  kombu's signature
        """Do nothing."""

    def requeue(self) -> None:
        """Do nothing."""

    def ack_log_error(self, logger: Any, errors: Any, multiple: bool = False) -> None:  # noqa: FBT001, FBT002  kombu's
        """Do nothing."""

    def reject_log_error(self, logger: Any, errors: Any, requeue: bool = False) -> None:  # noqa: FBT001, FBT002  kombu's
        """Do nothing."""


def open_message(claim: Claim) -> ClaimedMessage:
    """Return the message of `claim`.

    Its properties and its id are ours; headers and body are the sender's, unchecked. The claim's
    script has read it as JSON with an object `headers`. Lua's cjson reads more than Python's `json`
    (0x10, invalid UTF-8, integers of 5,000 digits, 1,000 levels): such a message is not `is_json`,
    and the job is refused. A body that is not what it says becomes None.
    """
    parsed = _read_json(claim.message)
    raw = parsed or {}
    headers = raw.get("headers")
    properties = {"delivery_tag": claim.claim_id, "correlation_id": claim.job_id}
    message = ClaimedMessage(
        body=_read_body(raw),
        content_type=raw.get("content-type"),
        content_encoding=raw.get("content-encoding"),
        delivery_tag=claim.claim_id,
        delivery_info={"exchange": "", "routing_key": claim.queue, "redelivered": len(claim.attempts) > 1},
        properties=properties,
    )
    message.is_json = parsed is not None
    # Set afterwards: kombu would unpack a compressed body at once, and such bodies are refused.
    message.headers = (headers if isinstance(headers, dict) else {}) | {"id": claim.job_id}
    return message


def _read_json(text: bytes) -> dict[str, Any] | None:
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return raw if isinstance(raw, dict) else None


def _read_body(raw: dict[str, Any]) -> Any:
    body, properties = raw.get("body"), raw.get("properties")
    if isinstance(properties, dict) and properties.get("body_encoding") == "base64" and isinstance(body, str):
        try:
            return base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            return None
    return body
