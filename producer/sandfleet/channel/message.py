"""A job as a message in Redis: what Celery's own ``send_task`` would write, so that Flower and stock consumers read it."""

from __future__ import annotations

import base64
import binascii
import json
import os
import socket
import uuid
from functools import cache
from typing import TYPE_CHECKING, Any, Final, cast

from sandfleet_config.queues import RECORDED_HEADER, SUBMITTED_HEADER, TASK_NAME
from sandfleet_config.wire import MAX_SPEC_BYTES, decode_job

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandfleet_config.wire import JobRequest

    from sandfleet.channel.records import Ticket

REPLY_TO: Final = str(uuid.uuid4())
"""Where a stock worker of Celery's ``rpc`` backend would answer; nobody listens."""
_encode: Final = json.JSONEncoder().encode


def new_messages(tickets: Iterable[Ticket], queue: str) -> list[str]:
    """Return the list items that kombu's Redis transport would push for the jobs (task protocol 2, JSON body in base64)."""
    origin = _origin(os.getpid())
    return [_new_message(ticket, queue, origin) for ticket in tickets]


def _new_message(ticket: Ticket, queue: str, origin: str) -> str:
    """Return one job's.

    Put together by hand: a JSON encoder takes ten times as long, and every value here is an id, a number or encoded.
    """
    spec = ticket.spec
    body = f'[[{_encode(ticket.text)}], {{}}, {{"callbacks": null, "errbacks": null, "chain": null, "chord": null}}]'
    # `expires` stays null: Redis' clock decides about `queue_ttl`, by the record, and an expiry here would end a later retry.
    # Workers' logs and Flower show `argsrepr` instead of the arguments.
    headers = (
        f'{{"lang": "py", "task": "{TASK_NAME}", "id": "{ticket.job_id}", "shadow": null, "eta": null, "expires": null,'
        f' "group": null, "group_index": null, "retries": 0, "timelimit": [{spec.timeout_seconds + spec.grace!r},'
        f' {spec.timeout_seconds!r}], "root_id": "{ticket.job_id}", "parent_id": null, "argsrepr": {_encode(ticket.line)},'
        f' "kwargsrepr": "", "origin": {origin}, "ignore_result": null, "replaced_task_nesting": 0,'
        f' "stamped_headers": null, "stamps": {{}}, "{SUBMITTED_HEADER}": {ticket.submitted!r}, "{RECORDED_HEADER}": true}}'
    )
    properties = (
        f'{{"correlation_id": "{ticket.job_id}", "reply_to": "{REPLY_TO}", "delivery_mode": 2, "delivery_info":'
        f' {{"exchange": "", "routing_key": "{queue}"}}, "priority": {spec.priority}, "body_encoding": "base64",'
        f' "delivery_tag": "{ticket.tag}"}}'
    )
    return (
        f'{{"body": "{base64.b64encode(body.encode()).decode("ascii")}", "content-encoding": "utf-8",'
        f' "content-type": "application/json", "headers": {headers}, "properties": {properties}}}'
    )


@cache
def _origin(pid: int) -> str:
    return json.dumps(f"gen{pid}@{socket.gethostname()}")


def read_request(message: bytes) -> JobRequest | None:
    """Return the job of a message in Redis, None where it holds none that can be read."""
    from sandfleet_config.errors import SandboxError

    try:
        outer = cast("dict[str, Any]", json.loads(message))
        (text,), _, _ = json.loads(base64.b64decode(outer["body"]))
        return decode_job(text, max(len(message), MAX_SPEC_BYTES))
    except (SandboxError, ValueError, TypeError, KeyError, RecursionError, binascii.Error):
        return None
