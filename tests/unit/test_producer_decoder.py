from __future__ import annotations

import copy
import json
import pickle
from dataclasses import fields
from typing import Any

import pytest
from rows import each_row
from sandfleet import ErrorCode, Outcome
from sandfleet.channel.decoder import FIELDS, decode_outcome
from sandfleet.channel.stored_result import parse_outcome
from sandfleet_config.outcome import Attempt, LimitState, Runtime, StreamOutput, Timing, Usage
from sandfleet_config.scripts import stored_result
from stored_outcomes import FULL, OK, OOM, assert_same, encode, parse_by_pydantic


@each_row("code", list(ErrorCode))
@each_row("more", [{}, FULL])
def test_a_usual_record_is_decoded_as_pydantic_would(code: ErrorCode, more: dict[str, Any]) -> None:
    outcome = Outcome.of(code, "j1", "why \u20ac", **more)
    raw = stored_result(outcome).encode()
    assert raw.startswith(b'{"status":'), "what says how to read the rest comes first"
    found, expected = decode_outcome(raw), parse_by_pydantic(raw)
    assert found is not None, "the usual record is decoded the fast way"
    assert found == outcome
    assert_same(found, expected)
    assert_same(found, decode_outcome(encode(outcome)))
    assert expected is not None
    for twin in (
        pickle.loads(pickle.dumps(found)),  # noqa: S301  our own
        copy.copy(found),
        copy.deepcopy(found),
        found.model_copy(deep=True),
        Outcome.model_validate(found.model_dump()),
        Outcome.model_validate_json(found.model_dump_json()),
    ):
        assert_same(twin, expected)
    for dumped in ({"exclude_unset": True}, {"exclude_defaults": True}, {"exclude": {"stdout"}}):
        assert found.model_dump(**dumped) == expected.model_dump(**dumped)
    assert [part.tzinfo is None for part in (attempt.started for attempt in found.attempts)] == [False] * len(
        found.attempts
    )
    if not more:
        assert repr(found) == repr(expected)


def test_an_outcome_has_nothing_that_only_pydantic_would_check() -> None:
    """Such as a validator, a constraint or an alias: msgspec does not know them."""
    parts: list[Any] = [Attempt, LimitState, Runtime, StreamOutput, Timing, Usage]
    for part in (Outcome, *parts):
        decorators = part.__pydantic_decorators__
        assert not any(getattr(decorators, field.name) for field in fields(decorators))
        for field in part.__pydantic_fields__.values():
            assert (field.metadata, field.alias, field.validation_alias) == ([], None, None)
        assert not hasattr(part, "__post_init__")


def test_a_decoded_outcome_changes_as_any_other() -> None:
    found, other = decode_outcome(encode(OK)), decode_outcome(encode(OK))
    assert found is not None
    assert other is not None
    copied = found.model_copy(update={"job_id": "j2", "unknown": 1})
    assert (copied.job_id, found.job_id, FIELDS) == ("j2", "j1", set(OK.to_json()))
    found.limits["memory_bytes"] = found.limits["grace"]
    del found.labels["name"]
    assert other == OK
    assert decode_outcome(encode(OK)) == OK
    with pytest.raises(ValueError, match="frozen"):
        found.job_id = "j3"  # type: ignore[misc]
    with pytest.raises(TypeError, match="unhashable"):
        hash(found)


def test_outcomes_of_other_limits_are_not_mixed_up() -> None:
    for number in range(300):
        limits = {"timeout": LimitState(value=number, enforced=number % 2 == 0)}
        outcome = OK.model_copy(update={"limits": limits, "runtime": Runtime(version=str(number))})
        found = decode_outcome(encode(outcome))
        assert found is not None
        assert (found.limits, found.runtime.version) == (limits, str(number))


@pytest.mark.parametrize("outcome", [OK, OOM], ids=["success", "failure"])
def test_fields_of_a_newer_worker_are_skipped(outcome: Outcome) -> None:
    raw = encode(outcome, newer=[1, {"x": "y"}])
    raw = raw.replace(b'"job_id"', b'"newer": {"a": [1.5, null]}, "job_id"').replace(
        b'"queued"', b'"newer": [], "queued"'
    )
    raw = raw.replace(b'"enforced"', b'"newer": 1, "enforced"').replace(b'"warm":', b'"newer": {}, "warm":')
    raw = raw.replace(b"[1.5, null]", '"\u20ac"'.encode())
    found = decode_outcome(raw)
    assert found is not None
    assert_same(found, parse_by_pydantic(raw))


@each_row("name", list(OK.to_json()))
def test_a_record_without_a_field_is_left_to_pydantic(name: str) -> None:
    for outcome in (OK, OOM):
        record = json.loads(stored_result(outcome))
        result = record["result"] if outcome is OK else record["result"]["exc_message"][2]
        del result[name]
        raw = json.dumps(record).encode()
        assert decode_outcome(raw) is None
        found = parse_outcome(raw, "j1")
        assert found is not None
        assert name not in found.model_fields_set or found.code is ErrorCode.INTERNAL or name in {"code", "job_id"}


@each_row(
    "raw",
    [
        stored_result(OOM, [{"field": "image", "message": "missing"}]).encode(),
        encode(OOM).replace(b'["OUT_OF_MEMORY"', b'["OK"'),
        encode(OK).replace(b"SUCCESS", b"FAILURE"),
        encode(OK).replace(b"SUCCESS", b"REVOKED"),
        encode(OK).replace(b'"job_id"', b'"faults": [{"field": "image"}], "job_id"'),
        encode(OOM).replace(b'"job_id"', b'"faults": null, "job_id"'),
        encode(OK, status=None),
        encode(OK).replace(b'"host": "h"', b'"host": "\xff"'),
        encode(OK, traceback="?").replace(b"?", b"\xff"),
        encode(OK)[:-1] + b', "result": null}',
        encode(OK)[:-1] + b', "status": "FAILURE"}',
        encode(OK) + b"}",
        b"\xef\xbb\xbf" + encode(OK),
        b"",
    ],
)
def test_unusual_records_are_left_to_pydantic(raw: bytes) -> None:
    assert decode_outcome(raw) is None


def test_the_order_of_fields_is_the_models_own() -> None:
    record = json.loads(stored_result(OK))
    record["result"] = dict(reversed(record["result"].items()))
    raw = json.dumps(record).encode()
    found = decode_outcome(raw)
    assert found is not None
    assert_same(found, parse_by_pydantic(raw))
