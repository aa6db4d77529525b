from __future__ import annotations

import base64
import json
import uuid
from typing import Any

import pytest
from rows import each_row
from sandfleet import SandboxSpec, SpecInvalid
from sandfleet.channel.message import new_messages
from sandfleet.channel.records import JobRecord
from sandfleet.submit import check as portions
from sandfleet.submit.encode import Desk, draw_ids
from sandfleet_config.wire import (
    JobRequest,
    decode_job,
    encode_job,
    encode_needs,
    join_needs,
    request_sha256,
    spec_sha256,
)

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
        "requires": {"gpu": "yes", "arch": "x86_64"},
    }
)
SMALL = SandboxSpec(image="x")


@each_row("spec", [SMALL, FULL, FULL.model_copy(update={"idempotency_key": "own \u20ac"})])
@each_row("batch", [None, 'b "\u20ac"'])
@each_row("is_keyed", [False, True])
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
    assert ticket.needs == join_needs(request.contract, encode_needs(spec))
    message: dict[str, Any] = json.loads(new_messages([ticket], "q")[0])
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


def test_a_spec_that_comes_again_is_encoded_once_unless_its_labels_changed() -> None:
    spec = SandboxSpec(image="x", labels={"name": "one"})
    desk = Desk("b", 10_000)
    first, again = desk.new_draft(spec), desk.new_draft(spec)
    assert first.encoded is again.encoded
    spec.labels["name"] = "two"
    (ticket,) = desk.issue([desk.new_draft(spec)])
    assert ticket.spec_hash == spec_sha256(spec)
    assert ticket.text == encode_job(JobRequest(batch="b", spec=spec))
    assert ticket.line == "two: x"


@pytest.mark.parametrize("room", [0, 3 * portions.DRAFT_BYTES, 1 << 20])
def test_a_checked_list_is_kept_within_bounds_and_queued_in_its_order(
    room: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(portions, "KEPT_BYTES", room)
    specs = [SandboxSpec(image=f"x{number}") for number in range(10)]
    desk = Desk("b", 10_000, is_keyed=True)
    kept = portions.check_all(desk, specs)
    assert len(kept) == {0: 0, 3 * portions.DRAFT_BYTES: 2, 1 << 20: 10}[room]
    (drafts,) = portions.split_specs(desk, specs, kept=kept)
    assert [(draft.encoded.spec, draft.key) for draft in drafts] == [(specs[n], f"b/{n}") for n in range(10)]
    assert list(map(id, drafts[: len(kept)])) == list(map(id, kept)), "what was kept is not made again"
