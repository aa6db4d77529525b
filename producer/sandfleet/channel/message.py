"""Jobs as messages in Redis, as Celery's own ``send_task`` writes them for Flower and others."""

from __future__ import annotations

import base64
import binascii
import json
import os
import socket
import uuid
from functools import cache
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec
from sandfleet_config.queues import RECORDED_HEADER, SUBMITTED_HEADER, TASK_NAME, TRACE_HEADER
from sandfleet_config.wire import MAX_SPEC_BYTES, decode_job

from sandfleet.channel.records import encode_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sandfleet_config.wire import JobRequest

    from sandfleet.channel.records import EncodedJob

REPLY_TO: Final = str(uuid.uuid4())
"""Where a stock worker of Celery's ``rpc`` backend would answer; nobody reads it."""
_WORKFLOW: Final = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


class _Headers(msgspec.Struct, gc=False, kw_only=True):
    """Celery's task protocol 2, and two headers of ours.

    `expires` stays null: Redis's clock decides about ``queue_ttl`` by the record, and an expiry
    here would end a later run. Workers' logs and Flower show `argsrepr` instead of the arguments.
    """

    lang: str = "py"
    task: str = TASK_NAME
    id: str
    shadow: None = None
    eta: None = None
    expires: None = None
    group: None = None
    group_index: None = None
    retries: int = 0
    timelimit: tuple[float, float]
    root_id: str
    parent_id: None = None
    argsrepr: str
    kwargsrepr: str = ""
    origin: str
    ignore_result: None = None
    replaced_task_nesting: int = 0
    stamped_headers: None = None
    stamps: dict[str, str] = {}
    submitted: float = msgspec.field(name=SUBMITTED_HEADER)
    is_recorded: bool = msgspec.field(name=RECORDED_HEADER, default=True)
    trace: str | msgspec.UnsetType = msgspec.field(name=TRACE_HEADER, default=msgspec.UNSET)


class _Properties(msgspec.Struct, gc=False, kw_only=True):
    correlation_id: str
    reply_to: str = REPLY_TO
    delivery_mode: int = 2
    delivery_info: dict[str, str]
    priority: int
    body_encoding: str = "base64"
    delivery_tag: str


class _Message(msgspec.Struct, gc=False, kw_only=True):
    """One list item of kombu's Redis transport; msgspec encodes bytes as base64."""

    body: bytes
    content_encoding: str = msgspec.field(name="content-encoding", default="utf-8")
    content_type: str = msgspec.field(name="content-type", default="application/json")
    headers: _Headers
    properties: _Properties


def new_messages(jobs: Iterable[EncodedJob], queue: str, sender: int | None = None) -> list[bytes]:
    """Return the list items that kombu's Redis transport would push for the jobs.

    `sender` is the id of the process that sends them; None is this one.
    """
    origin = _new_origin(os.getpid() if sender is None else sender)
    delivery_info = {"exchange": "", "routing_key": queue}
    return [_new_message(job, delivery_info, origin) for job in jobs]


def _new_message(job: EncodedJob, delivery_info: dict[str, str], origin: str) -> bytes:
    spec, soft_seconds = job.spec, job.spec.longest_timeout_seconds
    headers = _Headers(
        id=job.job_id,
        timelimit=(soft_seconds + spec.grace, soft_seconds),
        root_id=job.job_id,
        argsrepr=job.line,
        origin=origin,
        submitted=job.submitted,
        trace=job.trace or msgspec.UNSET,
    )
    properties = _Properties(
        correlation_id=job.job_id, delivery_info=delivery_info, priority=spec.priority, delivery_tag=job.tag
    )
    body = encode_json(([job.text], {}, _WORKFLOW))
    return encode_json(_Message(body=body, headers=headers, properties=properties))


@cache
def _new_origin(pid: int) -> str:
    return f"gen{pid}@{socket.gethostname()}"


def read_request(message: bytes) -> JobRequest | None:
    """Return the job of a message in Redis, None if it is not a job that can be read."""
    from sandfleet_config.errors import SandboxError

    try:
        outer = cast("dict[str, Any]", json.loads(message))
        (text,), _, _ = json.loads(base64.b64decode(outer["body"]))
        return decode_job(text, max(len(message), MAX_SPEC_BYTES))
    except (SandboxError, ValueError, TypeError, KeyError, RecursionError, binascii.Error):
        return None
