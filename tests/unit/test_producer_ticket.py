from __future__ import annotations

import base64
import json
import uuid
from typing import Any

import pytest
from sandfleet import SandboxSpec, SpecInvalid
from sandfleet.channel import JobRecord
from sandfleet.message import new_message
from sandfleet.ticket import Desk, draw_ids
from sandfleet_config.wire import JobRequest, decode_job, encode_job, request_sha256, spec_sha256

FULL = SandboxSpec.model_validate(
    {
        "image": "im\u00e4ge",
        "command": ["sh", "-c", 'echo "\u20ac\\"'],
        "env": {"A": "1"},
        "labels": {"name": 'n "1"', "b": "\u20ac"},
        "timeout": 1.5,
        "priority": 3,
        "queue_ttl": 60.5,
        "max_attempts": 1,
        "retry_on": ["WORKER_LOST"],
    }
)
SMALL = SandboxSpec(image="x")


@pytest.mark.parametrize("spec", [SMALL, FULL, FULL.model_copy(update={"idempotency_key": "own \u20ac"})])
@pytest.mark.parametrize("batch", [None, 'b "\u20ac"'])
@pytest.mark.parametrize("is_keyed", [False, True])
def test_what_is_put_together_by_hand_is_what_the_models_say(
    spec: SandboxSpec, batch: str | None, *, is_keyed: bool
) -> None:
    desk = Desk(batch, 10_000, is_keyed=is_keyed and batch is not None)
    (ticket,) = desk.issue([desk.new_draft(spec, 7)])
    key = spec.idempotency_key or (f"{batch}/7" if is_keyed and batch else "")
    named = spec.model_copy(update={"idempotency_key": key})
    request = JobRequest(batch=batch, spec=named)
    assert decode_job(ticket.text) == request
    assert ticket.text == encode_job(request)
    assert ticket.spec_hash == spec_sha256(spec)
    assert ticket.fingerprint == (request_sha256(named) if key else ticket.tag)
    assert JobRecord.model_validate_json(ticket.encode_record()) == ticket.record
    message: dict[str, Any] = json.loads(new_message(ticket, "q"))
    assert json.loads(base64.b64decode(message["body"]))[0] == [ticket.text]
    assert message["headers"]["argsrepr"] == spec.to_line() == ticket.record.line


def test_ids_are_random_uuids() -> None:
    ids = draw_ids(1000)
    assert len(set(ids)) == 1000
    assert {(uuid.UUID(text).version, uuid.UUID(text).variant) for text in ids} == {(4, uuid.RFC_4122)}
    assert [str(uuid.UUID(text)) for text in ids] == ids
    assert draw_ids(0) == []


def test_a_batch_that_may_not_be_called_so_is_refused_before_any_spec() -> None:
    with pytest.raises(SpecInvalid, match="batch"):
        Desk("\x1b[31m", 10_000)
