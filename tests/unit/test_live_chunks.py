"""Live output without Redis: chunks for readers, and what a worker holds until it is sent."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from sandfleet.collect.chunks import ChunkReader
from sandfleet_config.codes import ErrorCode
from sandfleet_config.contract import find_contract
from sandfleet_config.errors import SpecInvalid
from sandfleet_config.live import CHUNKS_A_SECOND, MAX_CHUNK_BYTES, LiveEntry, parse_live_entry
from sandfleet_config.outcome import Attempt, Outcome, StreamOutput
from sandfleet_config.spec import SandboxSpec
from sandfleet_config.wire import JobRequest, decode_job, encode_job
from sandfleet_worker.delivery.claim import Claim, Flag
from sandfleet_worker.delivery.live_output import LiveOutput


def entry(data: bytes, offset: int, stream: str = "stdout", attempt: int = 1, run: int = 1) -> LiveEntry:
    return LiveEntry(stream, attempt, run, offset, data)


def test_a_character_is_in_the_text_of_the_chunk_that_has_its_last_byte() -> None:
    chunks = list(ChunkReader().read([entry(b"a\xe2\x82", 0), entry(b"\xc3", 0, "stderr"), entry(b"\xacb", 3)]))
    assert [(chunk.data, chunk.text) for chunk in chunks] == [(b"a\xe2\x82", "a"), (b"\xc3", ""), (b"\xacb", "€b")]


def test_a_character_that_never_gets_its_last_byte_is_told_at_the_end() -> None:
    reader = ChunkReader()
    assert [chunk.text for chunk in reader.read([entry(b"a\xe2\x82", 0)])] == ["a"]
    assert [(chunk.offset, chunk.data, chunk.text, chunk.skipped) for chunk in reader.finish()] == [
        (3, b"", "\ufffd", 0)
    ]
    assert list(reader.finish()) == []


def test_a_gap_is_told_and_cuts_a_character_in_two() -> None:
    first, second = ChunkReader().read([entry(b"a\xe2\x82", 0), entry(b"\x82\xacz", 10)])
    assert (first.text, first.skipped) == ("a", 0)
    assert (second.text, second.skipped, second.data, second.end) == ("\ufffdz", 7, b"\x82\xacz", 13)


def test_each_attempt_and_each_run_begin_at_offset_0() -> None:
    entries = [
        entry(b"one", 0),
        entry(b"two", 0, attempt=2),
        entry(b"late", 3),
        entry(b"three", 0, run=2),
        entry(b"gone", 3, attempt=2),
    ]
    chunks = list(ChunkReader().read(entries))
    assert [(chunk.text, chunk.attempt, chunk.run, chunk.skipped) for chunk in chunks] == [
        ("one", 1, 1, 0),
        ("two", 2, 1, 0),
        ("three", 1, 2, 0),
    ]


@pytest.mark.parametrize(
    ("attempts", "run", "missing"),
    [
        (2, 1, [("stdout", 10, 7, 2, 1), ("stderr", 4, 4, 2, 1)]),
        (3, 1, [("stdout", 10, 10, 3, 1), ("stderr", 4, 4, 3, 1)]),
        (1, 2, [("stdout", 10, 10, 1, 2), ("stderr", 4, 4, 1, 2)]),
        (1, 1, []),
    ],
    ids=("the attempt that was read", "a later attempt", "a later run", "an earlier attempt"),
)
def test_what_is_missing_at_the_end_is_told(attempts: int, run: int, missing: list[tuple[object, ...]]) -> None:
    reader = ChunkReader()
    assert len(list(reader.read([entry(b"first", 0), entry(b"two", 0, attempt=2)]))) == 2
    one = Attempt(host="h", worker="w", started=datetime(2026, 11, 28, tzinfo=UTC))
    outcome = Outcome.of(ErrorCode.OK, "job", attempts=(one,) * attempts, run=run)
    outcome = outcome.model_copy(update={"stdout": StreamOutput.of(b"x" * 10), "stderr": StreamOutput.of(b"four")})
    found = [
        (chunk.stream, chunk.end, chunk.skipped, chunk.attempt, chunk.run) for chunk in reader.find_missing(outcome)
    ]
    assert found == missing


def test_what_was_read_does_not_come_again() -> None:
    assert [chunk.data for chunk in ChunkReader().read([entry(b"one", 0), entry(b"one", 0)])] == [b"one"]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {b"stream": b"stdin", b"attempt": b"1", b"run": b"1", b"offset": b"0", b"data": b""},
        {b"stream": b"stdout", b"attempt": b"x", b"run": b"1", b"offset": b"0", b"data": b""},
        {b"stream": b"stdout", b"attempt": b"1", b"run": b"1", b"offset": b"-1", b"data": b""},
        {b"stream": b"\xff", b"attempt": b"1", b"run": b"1", b"offset": b"0", b"data": b""},
    ],
)
def test_a_forged_entry_is_none(fields: dict[bytes, bytes]) -> None:
    assert parse_live_entry(fields) is None


def test_live_output_needs_contract_5() -> None:
    spec = SandboxSpec.model_validate({"image": "x", "output": {"live": True}})
    assert find_contract(spec) == 5
    assert decode_job(encode_job(JobRequest(spec=spec))).spec == spec
    with pytest.raises(SpecInvalid, match=r"output\.live need contract version 5"):
        decode_job(json.dumps({"contract": 4, "spec": {"image": "x", "output": {"live": True}}}))


def new_output(woken: list[int]) -> LiveOutput:
    claim = Claim("c", "j", Flag.START, b"")
    return LiveOutput(lambda: claim, lambda: woken.append(1))


def test_of_output_that_is_not_sent_the_newest_is_held() -> None:
    woken: list[int] = []
    output = new_output(woken)
    add = output.keep("stdout")
    for number in range(100):
        add(bytes([number]) * 1000)
    output.keep("stderr")(b"e")
    assert len(woken) == 1, "the sender is woken once for all of it"
    first, second = output.take()
    assert (first.stream, first.offset, len(first.data)) == ("stdout", 100_000 - MAX_CHUNK_BYTES, MAX_CHUNK_BYTES)
    assert first.data.endswith(bytes([98]) * 1000 + bytes([99]) * 1000)
    assert second == ("stderr", 0, b"e")
    assert output.take() == []
    add(b"z" * (3 * MAX_CHUNK_BYTES))
    assert output.take() == [("stdout", 100_000 + 2 * MAX_CHUNK_BYTES, b"z" * MAX_CHUNK_BYTES)]


def test_no_second_has_more_chunks_than_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    now, sent = 100.0, list[float]()
    monkeypatch.setattr("sandfleet_worker.delivery.live_output.time", SimpleNamespace(monotonic=lambda: now))
    output = new_output([])
    while now < 110:
        for name in ("stdout", "stderr"):
            output.keep(name)(b"x")
        now = max(now, output.due)
        sent += [now] * len(output.take())
    for name in ("stdout", "stderr"):
        output.keep(name)(b"x")
    sent += [now] * len(output.take())  # the last ones of both need not wait
    assert max(sum(at <= later < at + 1 for later in sent) for at in sent) <= CHUNKS_A_SECOND
    assert len(sent) > 10 * CHUNKS_A_SECOND / 2
