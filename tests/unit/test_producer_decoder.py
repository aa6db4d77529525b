from __future__ import annotations

import asyncio
import copy
import gc
import json
import pickle
import random
import weakref
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from rows import each_row
from sandfleet import ErrorCode, Outcome, SandboxSpec, Settings
from sandfleet.channel import stored_result as stored
from sandfleet.channel.connection import Connections
from sandfleet.channel.decoder import FIELDS, decode_outcome
from sandfleet.channel.outcome_reader import OutcomeReader
from sandfleet.channel.stored_result import parse_outcome
from sandfleet.testing.fake_channel import FakeChannel
from sandfleet.testing.fake_fleet import FakeFleet
from sandfleet_config.outcome import Attempt, LimitState, Runtime, StreamOutput, Timing, Usage
from sandfleet_config.scripts import stored_result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

NOW = datetime(2026, 1, 2, 3, 4, 5, 120_000, tzinfo=UTC)
FULL: dict[str, Any] = {
    "batch": "nightly \u20ac",
    "labels": {"name": "n", "": "\x00\U0001f600"},
    "exit_code": 137,
    "signal": 9,
    "timed_out": "soft",
    "stdout": StreamOutput.of(b"\xff\x00"),
    "stderr": StreamOutput.of('\u20ac\n\\"\x7f'.encode(), 1 << 40),
    "duration": 1e-07,
    "timing": Timing(queued=0.1, image=0.0, create=1e300, run=5e-324, collect=2, cleanup=0.30000000000000004),
    "usage": Usage(cpu_seconds=1.5, memory_peak_bytes=1 << 70, pids_peak=3),
    "limits": {
        "memory_bytes": LimitState(value=1 << 70, enforced=True),
        "grace": LimitState(value=2.0, enforced=False),
    },
    "attempts": (
        Attempt(host="h", worker="w", started=NOW),
        Attempt(host="h", worker="w", code=ErrorCode.WORKER_LOST, started=NOW, ended=NOW + timedelta(seconds=1)),
        Attempt(
            host="h",
            worker="w",
            started=NOW.astimezone(timezone(timedelta(hours=-5.5))),
            ended=NOW.replace(tzinfo=None),
        ),
    ),
    "host": "h",
    "runtime": Runtime(version="v", platform="systrap", warm=True),
    "image_digest": "sha256:0",
    "spec_sha256": "ab",
}
OK = Outcome.of(ErrorCode.OK, "j1", **FULL)
OOM = Outcome.of(ErrorCode.OUT_OF_MEMORY, "j1", "why \u20ac", **FULL)


def encode(outcome: Outcome, **more: Any) -> bytes:
    return json.dumps({**json.loads(stored_result(outcome)), **more}).encode()


def parse_by_pydantic(raw: bytes) -> Outcome | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "decode_outcome", lambda _: None)
        return parse_outcome(raw, "j1")


def flatten(value: Any) -> Any:
    """Return `value` with every type and every order spelled out; a time zone is its offset."""
    if is_dataclass(value):
        return type(value), [(field.name, flatten(getattr(value, field.name))) for field in fields(value)]
    if isinstance(value, dict):
        return dict, [(key, flatten(item)) for key, item in value.items()]
    if isinstance(value, tuple):
        return tuple, [flatten(item) for item in value]
    if isinstance(value, datetime):
        return datetime, value.isoformat(), value.utcoffset()
    return type(value), repr(value)


def assert_same(found: Outcome, expected: Outcome | None) -> None:
    assert expected is not None
    assert found == expected
    assert type(found) is type(expected)
    assert flatten(vars(found)) == flatten(vars(expected))
    assert found.model_dump_json() == expected.model_dump_json()
    assert found.model_fields_set == expected.model_fields_set


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
def test_what_a_newer_worker_adds_is_passed_over(outcome: Outcome) -> None:
    raw = encode(outcome, newer=[1, {"x": "y"}])
    raw = raw.replace(b'"job_id"', b'"newer": {"a": [1.5, null]}, "job_id"').replace(
        b'"queued"', b'"newer": [], "queued"'
    )
    raw = raw.replace(b'"enforced"', b'"newer": 1, "enforced"').replace(b'"warm"', b'"newer": {}, "warm"')
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
def test_what_is_not_usual_is_left_to_pydantic(raw: bytes) -> None:
    assert decode_outcome(raw) is None


def test_the_order_of_fields_is_the_models_own() -> None:
    record = json.loads(stored_result(OK))
    record["result"] = dict(reversed(record["result"].items()))
    raw = json.dumps(record).encode()
    found = decode_outcome(raw)
    assert found is not None
    assert_same(found, parse_by_pydantic(raw))


NUMBERS = ["-0", "-0.0", "1", "1.0", "1.5", "1E2", "1e400", "-1e400", "1e-400", "1" + "0" * 400, "9007199254740993"]
NUMBERS += [
    "9223372036854775808",
    "-9223372036854775809",
    "18446744073709551616",
    "01",
    "1.",
    ".5",
    "+1",
    "NaN",
    "Infinity",
]
TEXTS = ["", "x", "1", "true", "null", "OK", "ok", "NEW_CODE", "host", "soft", "base64", "utf-16", "\n", "\x7f"]
TEXTS += [r"\ud800", r"\udc00x", r"\ud83d\ude00", r"\q", r"\u0000", "1767225600", "2026-01-01", "2026-01-01T00:00"]
TEXTS += ["2026-01-01T00:00:00Z", "2026-01-01 00:00:00+02:00", "2026-01-01T00:00:00-0530", "2026-01-01T00:00:00,5z"]
TEXTS += ["2026-01-01T24:00:00Z", "2026-01-01T23:59:60Z", "2026-02-29T00:00:00Z", "0000-01-01T00:00:00Z"]
TEXTS += ["0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59.999999-01:00"]
OTHERS = [
    "null",
    "true",
    "tru",
    "[]",
    "[1]",
    '["a"]',
    "[[]]",
    "{}",
    '{"a": 1}',
    '{"a": "b", "a": "c"}',
    '{"a": null}',
    "",
]
OTHERS += ["1,", "[" * 3000 + "]" * 3000, '{"a": ' * 3000 + "1" + "}" * 3000, '{"value": 1, "enforced": 1}']
VALUES = ["true", '"1"', "null", "NaN", "1e400", "1" * 30]
OTHERS += ['{"x": {"enforced": true}}', *(f'{{"x": {{"value": {value}, "enforced": true}}}}' for value in VALUES)]
DAMAGES = [*NUMBERS, *(f'"{text}"' for text in TEXTS), *OTHERS]


def find_places(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*place, key)
        yield from find_places(item, (*place, key))


def open_at(record: dict[str, Any], place: tuple[Any, ...]) -> tuple[bytes, bytes]:
    """Return the record's JSON before and behind the value at `place`."""
    changed = copy.deepcopy(record)
    target: Any = changed
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = "@@"
    before, _, behind = json.dumps(changed).encode().partition(b'"@@"')
    return before, behind


@pytest.mark.parametrize("outcome", [OK, OOM], ids=["success", "failure"])
def test_nothing_is_decoded_that_pydantic_refuses_or_reads_otherwise(outcome: Outcome) -> None:
    record = json.loads(encode(outcome, newer={"a": ["b"]}))
    decoded = refused = 0
    for place in find_places(record):
        before, behind = open_at(record, place)
        for text in DAMAGES:
            raw = b"%s%s%s" % (before, text.encode(), behind)
            found = decode_outcome(raw)
            if found is None:
                refused += 1
                continue
            decoded += 1
            assert_same(found, parse_by_pydantic(raw))
    assert decoded > 500
    assert refused > 2000


def test_records_with_a_byte_too_few_too_many_or_another_are_read_as_pydantic_reads_them() -> None:
    raw, chance = encode(OK), random.Random(7)  # noqa: S311  a sample
    for at in range(0, len(raw), 7):
        assert decode_outcome(raw[:at]) is None
    for _ in range(2000):
        at = chance.randrange(len(raw))
        byte = bytes([chance.choice(b'"\\{}[],:-.01eEntu\n\x00')])
        changed = raw[:at] + byte + raw[at + chance.choice((0, 1, 2)) :]
        found = decode_outcome(changed)
        if found is not None:
            assert_same(found, parse_by_pydantic(changed))


class FreshChannel(FakeChannel):
    """Makes its outcomes anew as they are asked for, and notes how many of the earlier ones somebody has then."""

    most_held = 0

    def outcome_chunks(self, chunks: Iterable[Sequence[str]]) -> Iterator[tuple[Sequence[str], list[Outcome | None]]]:
        made: list[weakref.ref[Outcome]] = []
        for job_ids in chunks:
            self.most_held = max(self.most_held, sum(reference() is not None for reference in made))
            yield job_ids, self._make(job_ids, made)

    @staticmethod
    def _make(job_ids: Sequence[str], made: list[weakref.ref[Outcome]]) -> list[Outcome | None]:
        fresh: list[Outcome | None] = [Outcome.of(ErrorCode.OK, job_id, exit_code=0) for job_id in job_ids]
        made += [weakref.ref(outcome) for outcome in fresh if outcome is not None]
        return fresh


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", ["jobs", "jobs of a batch", "batch"])
def test_what_a_reader_has_dropped_is_gone_before_more_is_parsed(kind: str, *, is_async: bool) -> None:
    channel = FreshChannel(lambda _: OK)
    fleet = FakeFleet(lambda _: OK)
    fleet._channel = channel
    jobs = fleet.submit_many([SandboxSpec(image="x")] * 450, batch=None if kind == "jobs" else "b")
    stream = fleet.batch("b").as_completed(timeout=20) if kind == "batch" else fleet.as_completed(jobs, timeout=20)

    async def count() -> int:
        return len([outcome.code async for outcome in stream])

    assert (asyncio.run(count()) if is_async else len([outcome.code for outcome in stream])) == 450
    assert channel.most_held <= 1, "the reader's own last one"


def test_the_garbage_collector_does_not_start_for_outcomes_that_are_dropped() -> None:
    reader, raw = OutcomeReader(Connections(Settings())), encode(OK)
    gc.collect()
    before = gc.get_stats()[0]["collections"]
    for _, outcomes in reader._parse(["j1"] * 2000, [raw] * 2000):
        assert len(outcomes) > 1
        del outcomes
    assert gc.get_stats()[0]["collections"] - before <= 1
