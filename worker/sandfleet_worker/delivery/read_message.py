"""Read a message that a stranger may have written: a job, or every reason why it is none.

Only the id of a message is trusted: the headers that Celery sees are built here. No text of a body
is ever repeated.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sandfleet_config.contract import CONTRACT_VERSIONS
from sandfleet_config.errors import Expired, SandboxError, SpecInvalid, SpecTooLarge
from sandfleet_config.image_names import normalize_image
from sandfleet_config.queues import JOB_ID, SUBMITTED_HEADER, TASK_NAME, TRACE_HEADER
from sandfleet_config.redaction import hide_in_text
from sandfleet_config.run_summary import MAX_TEXT_CHARS, NO_FACTS, RunFacts
from sandfleet_config.tracing import is_traceparent
from sandfleet_config.wire import JobRequest, decode_job

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from kombu.message import Message
    from sandfleet_config.outcome import Attempt
    from sandfleet_config.spec import SandboxSpec

JSON_TYPE = "application/json"
WORKFLOW_KEYS = ("chain", "chord", "callbacks", "errbacks")
MAX_SECONDS = 1e11
MAX_CONTRACT = 1000
"""A greater version is a mistake."""
MAX_PROGRAM_CHARS = 60
BODY_BYTES_PER_SPEC_BYTE = 6
"""JSON inside a JSON string: a byte becomes six characters at worst."""
TASK_NAME_FORM = re.compile(r"[a-z_]+(\.[a-z_]+){0,5}\Z")


@dataclass(frozen=True)
class JobMessage:
    """A message, checked: a request, or the reason for its refusal.

    `line` is all that Flower shows of it, `log_line` all that logs show: arguments may be secrets.
    Limits are the message's own, in seconds.
    """

    job_id: str
    line: str = "refused"
    log_line: str = "refused"
    soft_seconds: float | None = None
    hard_seconds: float | None = None
    expires: datetime | None = None
    submitted: float | None = None
    request: JobRequest | None = field(default=None, repr=False)
    refusal: SandboxError | None = None
    newer_contract: int = 0
    """A request's contract version that is newer than this release speaks; 0 of any other."""
    trace: str = ""
    """The traceparent that came with the job; empty without traces."""
    first_spec: SandboxSpec | None = field(default=None, repr=False)
    """The spec as it was sent, if its limits are raised for this attempt; None of any other."""

    def open(self) -> JobRequest:
        """Return the job.

        Raises:
            SandboxError: `SpecInvalid`, `SpecTooLarge` or `SecurityViolation`, with every reason;
            `Expired`.
        """
        if self.request is None:
            raise self.refusal or SpecInvalid.of("the message holds no job")
        if self.expires is not None and datetime.now(UTC) > self.expires:
            raise Expired.of(
                f"no worker took the job before its expiry of {self.expires.isoformat(timespec='seconds')}"
            )
        return self.request

    def raised(self, attempts: Sequence[Attempt]) -> JobMessage:
        """Return the message of a job after `attempts`.

        It has the limits that its spec's `retry_with` raises.
        """
        if self.request is None or not self.request.spec.retry_with:
            return self
        first = self.request.spec
        spec = first.raised({attempt.code for attempt in attempts})
        return replace(self, request=self.request.model_copy(update={"spec": spec}), first_spec=first)

    def to_headers(self) -> dict[str, Any]:
        """Return headers for Celery that hold nothing of the message's own but what was checked."""
        return {
            "lang": "py",
            "task": TASK_NAME,
            "id": self.job_id,
            "root_id": self.job_id,
            "parent_id": None,
            "group": None,
            "retries": 0,
            "eta": None,
            "expires": None,
            "timelimit": [self.hard_seconds, self.soft_seconds],
            "argsrepr": self.line,
            "kwargsrepr": "",
            "ignore_result": False,
            "headers": {},  # the sender's own: none; without the key Celery looks for some in each job
        }


def read_message(message: Message, max_spec_bytes: int, *, shows_whole: bool = False) -> JobMessage | None:
    """Check `message` and return it, refused or not.

    None where it has no usable id, and so can have no outcome. `shows_whole`: what Flower shows has
    arguments that look secret, too.
    """
    headers: dict[str, Any] = message.headers or {}
    job_id: object = headers.get("id")
    if headers.get("task") is None and job_id is None:
        job_id = _first_protocol_id(message)
    if not isinstance(job_id, str) or not JOB_ID.match(job_id):
        return None
    body: Any = None
    try:
        body = _read_body(message, max_spec_bytes)
        faults = [*_header_faults(headers), *_body_faults(body)]
        if faults:
            raise SpecInvalid.of("; ".join(fault["message"] for fault in faults), errors=faults)
        request = decode_job(body[0][0], max_spec_bytes)
    except SandboxError as refusal:
        newer = _find_newer_contract(body) if any(fault["field"] == "contract" for fault in refusal.errors) else 0
        return JobMessage(job_id, refusal=refusal.with_traceback(None), newer_contract=newer)
    hard, soft = headers.get("timelimit") or (None, None)
    submitted = headers.get(SUBMITTED_HEADER)
    return JobMessage(
        job_id,
        request.spec.to_line(is_whole=shows_whole),
        _to_log_line(request.spec),
        soft_seconds=soft or None,
        hard_seconds=hard or None,
        expires=_parse_time(headers.get("expires")),
        submitted=submitted if submitted is not None and _is_seconds(submitted) else None,
        request=request,
        trace=str(trace) if is_traceparent(trace := headers.get(TRACE_HEADER)) else "",
    )


def _find_newer_contract(body: Any) -> int:
    """Return the contract version of a request refused for it, if it is newer than ours."""
    version: object = json.loads(body[0][0]).get("contract")
    return version if isinstance(version, int) and CONTRACT_VERSIONS[-1] < version < MAX_CONTRACT else 0


def _to_log_line(spec: SandboxSpec) -> str:
    """Return image, program and how many arguments it has.

    An argument may be a secret, and logs are read by many. So may a part of the program, where
    somebody has forgotten ``sh -c``.
    """
    name = spec.labels.get("name", "")
    program = spec.command[0] if spec.command else "the image's own command"
    program = hide_in_text(program) if program.isprintable() and len(program) <= MAX_PROGRAM_CHARS else "a program"
    count = max(0, len(spec.command) - 1)
    return f"{name + ': ' if name else ''}{spec.image} {program} ({count} argument{'' if count == 1 else 's'})"


def _read_body(message: Message, max_spec_bytes: int) -> Any:
    """Parse the body as plain JSON: kombu's own decoder would act on ``{"__type__": ...}``."""
    if not getattr(message, "is_json", True):
        raise SpecInvalid.of("message: is not JSON (RFC 8259), or is nested too deeply")
    if message.content_type != JSON_TYPE or str(message.content_encoding).lower() not in {"utf-8", "utf8"}:
        raise SpecInvalid.of(f"content type: must be {JSON_TYPE} in utf-8")
    raw: Any = message.body
    if not isinstance(raw, bytes | str):
        raise SpecInvalid.of("body: the message has none")
    if len(raw) > BODY_BYTES_PER_SPEC_BYTE * max_spec_bytes:
        raise SpecTooLarge.of(f"the message's body has {len(raw)} bytes, the limit of a spec is {max_spec_bytes}")
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        raise SpecInvalid.of("body: is not JSON") from None


def _first_protocol_id(message: Message) -> object:
    """Return the id of a message in Celery's first protocol, which keeps it in the body."""
    try:
        body = json.loads(message.body or "")
    except (TypeError, ValueError, RecursionError):
        return None
    return body.get("id") if isinstance(body, dict) else None


def _fault(name: str, text: str) -> dict[str, str]:
    return {"field": name, "message": f"{name}: {text}"}


def _header_faults(headers: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    name = headers.get("task")
    if name is None:
        yield _fault("task", "the message names none (Celery's message protocol 2 is needed)")
    elif name != TASK_NAME:
        shown = name if isinstance(name, str) and TASK_NAME_FORM.match(name) else "what it names"
        yield _fault("task", f"{shown} is not run here, only {TASK_NAME}")
    if headers.get("eta") is not None:
        yield _fault("eta", "start times (eta, countdown) are not taken: submit the job when it may run")
    if not _is_nothing(headers.get("retries")):
        yield _fault("retries", "must be 0: trying again is the fleet's business")
    if headers.get("compression") is not None:
        yield _fault("compression", "compressed bodies are not taken")
    if not _is_time_limit(headers.get("timelimit")):
        yield _fault("timelimit", "must be [hard, soft], each null or seconds not below 0")
    if headers.get("expires") is not None and _parse_time(headers["expires"]) is None:
        yield _fault("expires", "must be an ISO 8601 time")
    yield from (_workflow_fault(key) for key in WORKFLOW_KEYS if headers.get(key))


def _body_faults(body: object) -> Iterator[dict[str, str]]:
    if not isinstance(body, list) or len(body) != 3:  # noqa: PLR2004  Celery's protocol 2
        yield _fault("body", "must be [args, kwargs, embed]")
        return
    args, kwargs, embed = body
    if not isinstance(args, list) or len(args) != 1:
        yield _fault("args", "must be one JSON string with the spec")
    if kwargs:
        yield _fault("kwargs", "must be empty")
    if embed and not (isinstance(embed, dict) and embed.keys() <= set(WORKFLOW_KEYS)):
        yield _fault("embed", f"must be an object with no other keys than {', '.join(WORKFLOW_KEYS)}")
    elif embed:
        yield from (_workflow_fault(key) for key in WORKFLOW_KEYS if embed.get(key))


def _workflow_fault(key: str) -> dict[str, str]:
    return _fault(key, "workflows are not run by workers: wait for the outcome and submit the next job")


def _is_nothing(value: object) -> bool:
    return value is None or (type(value) is int and value == 0)


def _is_time_limit(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, list | tuple) and len(value) == 2 and all(_is_seconds(item) for item in value)  # noqa: PLR2004


def _is_seconds(value: object) -> bool:
    if value is None:
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_SECONDS


def _parse_time(value: object) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        parsed = datetime.fromisoformat(value)
    except ValueError:
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def tell_limits(message: JobMessage, attempts: tuple[Attempt, ...]) -> tuple[Attempt, ...]:
    """Return the attempts with the limits that each had, if the job's spec raises them."""
    first = message.first_spec
    if first is None:
        return attempts
    told: list[Attempt] = []
    for attempt in attempts:
        spec = first.raised({earlier.code for earlier in told})
        limits = {"memory_bytes": float(spec.resources.memory_bytes), "timeout": spec.timeout_seconds}
        told.append(replace(attempt, limits={name: value for name, value in limits.items() if value}))
    return tuple(told)


def find_facts(message: JobMessage | None) -> RunFacts:
    """Return the facts of a job for the history; none are known of a message that is no job."""
    if message is None or message.request is None:
        return NO_FACTS
    spec = message.request.spec
    return RunFacts(
        image=normalize_image(spec.image),
        line=spec.to_line(MAX_TEXT_CHARS),
        submitted=message.submitted or 0.0,
        memory_bytes=spec.resources.memory_bytes,
    )
