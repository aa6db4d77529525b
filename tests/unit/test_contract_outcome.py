from __future__ import annotations

import pickle

import pytest
from pydantic import ValidationError
from sandfleet_config.errors import Category, ErrorCode
from sandfleet_config.outcome import LimitState, Outcome, StreamOutput, cut_to_characters

EURO = "€".encode()


def test_bytes_that_are_not_utf8_arrive_unchanged() -> None:
    raw = bytes(range(256))
    stream = StreamOutput.of(raw)
    assert (stream.encoding, stream.bytes, stream.truncated) == ("base64", raw, False)
    assert StreamOutput.model_validate_json(stream.model_dump_json()).bytes == raw


def test_the_true_size_of_cut_output_is_told() -> None:
    stream = StreamOutput.of(b"abc", 1 << 30)
    assert (stream.text, stream.total_bytes, stream.truncated) == ("abc", 1 << 30, True)


@pytest.mark.parametrize("missing", [1, 2])
def test_a_cut_inside_a_character_keeps_text_text(missing: int) -> None:
    assert cut_to_characters(b"a" + EURO[:-missing], is_cut_at_end=True) == b"a"
    assert cut_to_characters(EURO[missing:] + b"a", is_cut_at_start=True) == b"a"


def test_what_was_never_text_is_not_trimmed() -> None:
    raw = b"\xff\xfe\x00"
    assert cut_to_characters(raw, is_cut_at_end=True, is_cut_at_start=True) == raw
    assert cut_to_characters(b"a" + EURO[:-1]) == b"a" + EURO[:-1]


def test_an_older_reader_ignores_facts_it_does_not_know() -> None:
    data = {**Outcome.of(ErrorCode.OK, "j1", exit_code=0).to_json(), "new_fact": 1}
    assert Outcome.model_validate(data).is_ok


def test_category_and_retryable_follow_from_the_code_where_they_are_missing() -> None:
    outcome = Outcome.model_validate({"job_id": "j1", "code": "EXPIRED"})
    assert (outcome.category, outcome.retryable) == (Category.CONTROL, True)
    with pytest.raises(ValidationError) as caught:
        Outcome.model_validate({"job_id": "j1", "code": "NEW_CODE"})
    assert ("code",) in {error["loc"] for error in caught.value.errors()}


def test_limits_travel_compare_and_copy_like_the_rest() -> None:
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


def test_null_means_it_did_not_happen() -> None:
    data = Outcome.of(ErrorCode.CANCELLED, "j1").to_json()
    assert [data[name] for name in ("exit_code", "signal", "timed_out", "duration")] == [None] * 4
    assert set(data["timing"].values()) == {None}
