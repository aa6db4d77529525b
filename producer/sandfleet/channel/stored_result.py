"""Parse Celery's result records as outcomes; any other record becomes one that says so."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast

from pydantic import Field, TypeAdapter, ValidationError
from sandfleet_config.codes import ErrorCode, read_code
from sandfleet_config.messages import CANCELLED
from sandfleet_config.outcome import Outcome
from sandfleet_config.record import Record

from sandfleet.channel.decoder import decode_outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from sandfleet.channel.records import JobRecord

FOREIGN_CHARS = 500
UNFINISHED = frozenset({"PENDING", "RECEIVED", "STARTED", "RETRY"})


class _Success(Record):
    """A program that ran to its own end."""

    status: Literal["SUCCESS"]
    result: Outcome


class _Error(Record):
    """A `SandboxError` as Celery stores it; one with faults of a request is not usual."""

    exc_message: tuple[ErrorCode, str, Outcome]


class _Failure(Record):
    """Every other end of a job."""

    status: Literal["FAILURE"]
    result: _Error


_stored: Final = TypeAdapter[_Success | _Failure](Annotated[_Success | _Failure, Field(discriminator="status")])
"""Also reads what workers of other releases store: a field may be absent or have another type."""


def parse_outcome(
    raw: bytes, job_id: str, read_record: Callable[[str], JobRecord | None] = lambda _: None
) -> Outcome | None:
    """Parse Celery's result record; None if the job has not ended.

    A record that is no outcome of ours becomes one with the code ``INTERNAL`` that says what was
    found, without repeating it. Only then `read_record` is called, to find the outcome's batch. So
    does an outcome that names another job: its id becomes the name of a folder.
    """
    outcome = read_outcome(raw, job_id, read_record)
    if outcome is None or outcome.job_id == job_id:
        return outcome
    return Outcome.of(ErrorCode.INTERNAL, job_id, "the job's result in Redis is that of another job")


def read_outcome(raw: bytes, job_id: str, read_record: Callable[[str], JobRecord | None]) -> Outcome | None:
    """Do what `parse_outcome` does, whichever job the outcome names."""
    outcome = decode_outcome(raw)
    if outcome is not None:
        return outcome
    try:
        stored = _stored.validate_json(raw)
    except ValidationError:
        return _explain(raw, job_id, read_record)
    if isinstance(stored, _Success):
        return stored.result
    code, _, outcome = stored.result.exc_message
    return outcome if code is not ErrorCode.OK else _explain(raw, job_id, read_record)


def _explain(raw: bytes, job_id: str, read_record: Callable[[str], JobRecord | None]) -> Outcome | None:
    """Parse a record that is not the usual one, piece by piece."""
    code = ErrorCode.INTERNAL
    try:
        body = _as_dict(json.loads(raw))
        match body.get("status"):
            case str(status) if status in UNFINISHED:
                return None
            case "SUCCESS":
                return Outcome.read(body.get("result"))
            case "FAILURE":
                code, message, outcome = _parse_failure(_as_dict(body.get("result")))
                if outcome is not None:
                    return outcome
            case "REVOKED":
                code, message = ErrorCode.CANCELLED, CANCELLED
            case _:
                message = "the job's result in Redis has a status that Celery does not know"
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, item["loc"])) or "outcome" for item in error.errors()}))
        message = f"the job's outcome in Redis cannot be read (at {fields}): is the worker of another release?"
    except (ValueError, TypeError, RecursionError):
        message = "the job's result in Redis is damaged"
    record = read_record(job_id)
    batch, sha256 = (record.batch, record.spec_sha256) if record else (None, "")
    return Outcome.of(code, job_id, message, batch=batch, spec_sha256=sha256)


def _parse_failure(result: dict[str, Any]) -> tuple[ErrorCode, str, Outcome | None]:
    """Return code, message and outcome of a `SandboxError`; name any other exception."""
    raw_args = result.get("exc_message")
    args = list(cast("Iterable[Any]", raw_args)) if isinstance(raw_args, list) else [raw_args]
    code = _find_code(args) if len(args) > 1 else None
    if code is None:
        text = f"{result.get('exc_type')}: {' '.join(str(arg) for arg in args)}"
        return ErrorCode.INTERNAL, f"Celery ended the job: {text[:FOREIGN_CHARS]}", None
    try:
        outcome = Outcome.read(args[2]) if len(args) > 2 and args[2] is not None else None  # noqa: PLR2004
    except ValidationError:
        outcome = None  # the code and the message still say what happened
    if outcome is not None and len(args) > 3:  # noqa: PLR2004
        faults = cast("Iterable[Any]", args[3] or ())
        outcome = outcome.model_copy(update={"faults": tuple(_as_dict(fault) for fault in faults)})
    return code, str(args[1]), outcome


def _find_code(args: list[Any]) -> ErrorCode | None:
    """Return the code of an error.

    A code of a newer release gets the category that its outcome says.
    """
    fields = cast("dict[str, Any]", args[2]) if len(args) > 2 and isinstance(args[2], dict) else {}  # noqa: PLR2004
    try:
        code = read_code(args[0], fields.get("category"), fields.get("retryable"))
    except ValueError:
        return None
    return None if code is ErrorCode.OK else code


def _as_dict(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return cast("dict[str, Any]", value)
