"""A job as a message in Redis: what Celery's own ``send_task`` would write, so that Flower and stock consumers read it."""

from __future__ import annotations

import base64
import binascii
import json
import os
import socket
import uuid
from typing import TYPE_CHECKING, Any, cast

from sandfleet_config.queues import RECORDED_HEADER, SUBMITTED_HEADER, TASK_NAME
from sandfleet_config.wire import MAX_SPEC_BYTES, decode_job

if TYPE_CHECKING:
    from sandfleet_config.wire import JobRequest

    from sandfleet.channel import Ticket

EMBED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
REPLY_TO = str(uuid.uuid4())
"""Where a stock worker of Celery's ``rpc`` backend would answer; nobody listens."""


def new_message(ticket: Ticket, queue: str) -> str:
    """Return the list item that kombu's Redis transport would push for the job (task protocol 2, JSON body in base64)."""
    spec, record = ticket.request.spec, ticket.record
    body = json.dumps([[ticket.text], {}, EMBED]).encode()
    headers: dict[str, Any] = {
        "lang": "py",
        "task": TASK_NAME,
        "id": ticket.job_id,
        "shadow": None,
        "eta": None,
        # Redis' clock decides about `queue_ttl`, by the record; an expiry here would end a retry that comes later.
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [spec.timeout_seconds + spec.grace, spec.timeout_seconds],
        "root_id": ticket.job_id,
        "parent_id": None,
        # Workers' logs and Flower show these instead of the arguments.
        "argsrepr": record.line,
        "kwargsrepr": "",
        "origin": f"gen{os.getpid()}@{socket.gethostname()}",
        "ignore_result": None,
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
        SUBMITTED_HEADER: record.submitted,
        RECORDED_HEADER: True,
    }
    properties = {
        "correlation_id": ticket.job_id,
        "reply_to": REPLY_TO,
        "delivery_mode": 2,
        "delivery_info": {"exchange": "", "routing_key": queue},
        "priority": spec.priority,
        "body_encoding": "base64",
        "delivery_tag": ticket.tag,
    }
    return json.dumps(
        {
            "body": base64.b64encode(body).decode("ascii"),
            "content-encoding": "utf-8",
            "content-type": "application/json",
            "headers": headers,
            "properties": properties,
        }
    )


def read_request(message: bytes) -> JobRequest | None:
    """Return the job of a message in Redis, None where it holds none that can be read."""
    from sandfleet_config.errors import SandboxError

    try:
        outer = cast("dict[str, Any]", json.loads(message))
        (text,), _, _ = json.loads(base64.b64decode(outer["body"]))
        return decode_job(text, max(len(message), MAX_SPEC_BYTES))
    except (SandboxError, ValueError, TypeError, KeyError, RecursionError, binascii.Error):
        return None
