from __future__ import annotations

import copy
import pickle
from dataclasses import FrozenInstanceError, fields
from typing import Any

import pytest
from pydantic import ValidationError
from sandfleet.channel.decoder import decode_outcome
from sandfleet_config.codes import Category, ErrorCode
from sandfleet_config.outcome import LimitState, Outcome, StreamOutput
from sandfleet_config.scripts import stored_result
from sandfleet_config.utf8 import cut_to_characters

EURO = "€".encode()


def test_bytes_that_are_not_utf8_arrive_unchanged() -> None:
    raw = bytes(range(256))
    stream = StreamOutput.of(raw)
    assert (stream.encoding, stream.bytes, stream.truncated) == ("base64", raw, False)
    outcome = Outcome.of(ErrorCode.OK, "j1", stdout=stream)
    assert Outcome.model_validate_json(outcome.model_dump_json()).stdout.bytes == raw


def test_cut_output_has_its_true_size() -> None:
    stream = StreamOutput.of(b"abc", 1 << 30)
    assert (stream.text, stream.total_bytes, stream.truncated) == ("abc", 1 << 30, True)


@pytest.mark.parametrize("missing", [1, 2])
def test_text_that_is_cut_inside_a_character_stays_text(missing: int) -> None:
    assert cut_to_characters(b"a" + EURO[:-missing], is_cut_at_end=True) == b"a"
    assert cut_to_characters(EURO[missing:] + b"a", is_cut_at_start=True) == b"a"


def test_bytes_that_are_not_text_are_not_trimmed() -> None:
    raw = b"\xff\xfe\x00"
    assert cut_to_characters(raw, is_cut_at_end=True, is_cut_at_start=True) == raw
    assert cut_to_characters(b"a" + EURO[:-1]) == b"a" + EURO[:-1]


def test_an_older_reader_ignores_unknown_fields() -> None:
    data = {**Outcome.of(ErrorCode.OK, "j1", exit_code=0).to_json(), "new_fact": 1}
    assert Outcome.model_validate(data).is_ok


def test_missing_category_and_retryable_follow_from_the_code() -> None:
    outcome = Outcome.model_validate({"job_id": "j1", "code": "EXPIRED"})
    assert (outcome.category, outcome.retryable) == (Category.CONTROL, True)
    with pytest.raises(ValidationError) as caught:
        Outcome.model_validate({"job_id": "j1", "code": "NEW_CODE"})
    assert ("code",) in {error["loc"] for error in caught.value.errors()}


def test_limits_are_sent_compared_and_copied_like_other_fields() -> None:
    limits = {"memory_bytes": LimitState(value=1, enforced=True), "timeout": LimitState(value=0.5, enforced=False)}
    outcome = Outcome.of(ErrorCode.OK, "j1", limits=limits)
    assert outcome.to_json()["limits"] == {
        "memory_bytes": {"value": 1, "enforced": True},
        "timeout": {"value": 0.5, "enforced": False},
    }
    for copied in (
        Outcome.model_validate_json(outcome.model_dump_json()),
        Outcome.model_validate(outcome.to_json()),
        pickle.loads(pickle.dumps(outcome)),  # noqa: S301  our own
        outcome.model_copy(deep=True),
    ):
        assert copied == outcome
        assert copied.limits["memory_bytes"].value == 1
    with pytest.raises(AttributeError):
        outcome.limits["timeout"].value = 2  # type: ignore[misc]
    newer = {"value": 1, "enforced": True, "new_fact": 1}
    assert Outcome.model_validate({"job_id": "j1", "code": "OK", "limits": {"x": newer}}).limits["x"].enforced


def test_null_means_did_not_happen() -> None:
    data = Outcome.of(ErrorCode.CANCELLED, "j1").to_json()
    assert [data[name] for name in ("exit_code", "signal", "timed_out", "duration")] == [None] * 4
    assert set(data["timing"].values()) == {None}


def test_the_parts_of_an_outcome_have_no_dict_and_ignore_unknown_fields() -> None:
    data = Outcome.of(ErrorCode.OK, "j1").to_json()
    data["attempts"] = [{"host": "h", "worker": "w", "started": "2026-01-01T00:00:00Z", "new_fact": 1}]
    data["limits"] = {"timeout": {"value": 1, "enforced": True, "new_fact": 1}}
    for name in ("stdout", "stderr", "timing", "usage", "runtime"):
        data[name]["new_fact"] = 1
    outcome = Outcome.model_validate(data)
    assert list(outcome.to_json()["attempts"][0]) == ["host", "worker", "code", "started", "ended", "charged"]
    parts: list[Any] = [outcome.stdout, outcome.stderr, outcome.timing, outcome.usage, outcome.runtime]
    for part in (*parts, *outcome.attempts, *outcome.limits.values()):
        assert not hasattr(part, "__dict__")
        assert hash(part) == hash(copy.deepcopy(part))
        with pytest.raises(FrozenInstanceError):
            setattr(part, fields(part)[0].name, None)
    assert "s3cret" not in repr(StreamOutput.of(b"s3cret"))


def test_a_stored_output_is_never_much_larger_than_the_output() -> None:
    size = 100_000
    for name, raw in {
        "zeros": bytes(size),
        "escape sequences": b"\x1b[31m" * (size // 5),
        "an empty line again and again": b"\n" * size,
        "quotes and backslashes": b'"\\' * (size // 2),
        "some controls": (b"a" * 9 + b"\0") * (size // 10),
        "few controls": (b"a" * 99 + b"\0") * (size // 100),
        "text": b"what a program prints, line by line\n" * (size // 36),
        "other letters": "\u0436\u0443\u043a ".encode() * (size // 7),
        "no text": bytes(range(256)) * (size // 256),
        "delete": b"\x7f" * size,
    }.items():
        stream = StreamOutput.of(raw)
        outcome = Outcome.of(ErrorCode.EXIT_NONZERO, "j", stdout=stream)
        stored = stored_result(outcome)
        assert len(stored.encode()) < len(raw) * 4 / 3 + 2000, name
        read = decode_outcome(stored.encode())
        assert read == outcome, name
        assert read.stdout.bytes == raw
        assert read.stdout.text == raw.decode(errors="replace")
    # Text that people and other tools look at stays text.
    assert StreamOutput.of(b"hi\n" * 300 + b"\x1b[0m\0").encoding == "utf-8"
    assert StreamOutput.of("\u0436\u0443\u043a\n".encode() * size).encoding == "utf-8"
    assert StreamOutput.of(b'{"a": [1, "x"], "b": null}\n' * 1000).encoding == "utf-8"
