"""The summary of an ended run: bounded, facts alone, and read safely."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sandfleet_config.codes import Category, ErrorCode
from sandfleet_config.ended_run import MAX_NAME_BYTES, MAX_SUMMARY_BYTES, cut_name, parse_summary
from sandfleet_config.failure_kind import fingerprint_failure
from sandfleet_config.outcome import Artifact, Attempt, LimitState, Outcome, Runtime, StreamOutput, Timing, Usage
from sandfleet_config.run_summary import NO_FACTS, RunFacts, cut_summary, encode_summary, read_facts
from sandfleet_config.scripts import stored_result

START = datetime(2026, 1, 31, 12, tzinfo=UTC)
FACTS = RunFacts("rl", "python", "python python3 run.py", 1_769_860_000.25, 1 << 28)


def new_attempt(number: int = 0, host: str = "host-07") -> Attempt:
    started = START + timedelta(minutes=number)
    return Attempt(
        host=host, worker=f"{host}.412", code=ErrorCode.TIMEOUT, started=started, ended=started + timedelta(seconds=9)
    )


def new_outcome(**fields: Any) -> Outcome:
    known: dict[str, Any] = {
        "batch": "nightly",
        "labels": {"suite": "s7"},
        "exit_code": 0,
        "timing": Timing(1.5, 0.001, 0.02, 8.75, None, 0.003),
        "usage": Usage(7.123456, 1 << 20, 4),
        "limits": {"memory_bytes": LimitState(1 << 29, True)},
        "attempts": (new_attempt(),),
        "duration": 8.75,
        "host": "host-07",
        "runtime": Runtime(warm=True),
        "image_digest": f"sha256:{'8c' * 32}",
        "spec_sha256": "77" * 32,
    }
    return Outcome.of(ErrorCode.OK, "job-1", **known | fields)


def test_a_summary_tells_the_facts_of_a_run() -> None:
    run = parse_summary(encode_summary(new_outcome(), FACTS).encode())

    assert (run.job_id, run.run, run.code, run.category) == ("job-1", 1, "OK", "ok")
    assert (run.batch, run.queue, run.host, run.image) == ("nightly", "rl", "host-07", "python")
    assert (run.line, run.labels, run.exit_code, run.start) == ("python python3 run.py", {"suite": "s7"}, 0, "warm")
    assert (run.submitted, run.started) == (1_769_860_000.25, START.timestamp())
    assert run.steps == {"queued": 1.5, "image": 0.001, "create": 0.02, "run": 8.75, "cleanup": 0.003}
    assert (run.cpu_seconds, run.memory_peak_bytes, run.memory_bytes) == (7.123, 1 << 20, 1 << 29)
    assert (run.image_digest, run.spec_sha256) == (f"sha256:{'8c' * 32}", "77" * 8)
    (only,) = run.tries
    assert (only.host, only.worker, only.code, only.charged) == ("host-07", "host-07.412", "TIMEOUT", True)
    assert (only.started, only.ended) == (START.timestamp(), START.timestamp() + 9)


def test_a_summary_is_sent_without_what_the_result_has() -> None:
    outcome = new_outcome()
    whole = encode_summary(outcome, FACTS)

    sent = cut_summary(whole, outcome, stored_result(outcome))

    assert whole.endswith(sent)
    assert sent.startswith('"batch":"nightly",')


@pytest.mark.parametrize(
    "fields",
    [
        {"image_digest": None},
        {"spec_sha256": ""},
        {"artifacts": (Artifact("out", 1, "77" * 32, "0644"),)},
        {"artifacts_lost": "the sandbox is gone"},
        {"image_digest": f"sha256:{'8c' * 90}"},
        {"stdout": StreamOutput.of(f'"image_digest":"sha256:{"aa" * 32}"'.encode()), "image_digest": None},
    ],
)
def test_a_summary_is_sent_whole_where_the_result_has_its_beginning_not(fields: dict[str, Any]) -> None:
    outcome = new_outcome(**fields)
    whole = encode_summary(outcome, FACTS)

    assert cut_summary(whole, outcome, stored_result(outcome)) == whole


def test_a_failure_has_the_fingerprint_of_its_whole_message() -> None:
    message = "no such file: /work/x " * 30
    outcome = Outcome.of(ErrorCode.COMMAND_NOT_FOUND, "job-1", message)

    run = parse_summary(encode_summary(outcome, NO_FACTS).encode())

    assert run.fingerprint == fingerprint_failure("COMMAND_NOT_FOUND", message)
    assert len(run.message) < len(message)
    assert parse_summary(encode_summary(new_outcome(), FACTS).encode()).fingerprint == ""


def test_a_summary_of_a_job_that_never_started_has_nothing_of_a_program() -> None:
    run = parse_summary(encode_summary(Outcome.of(ErrorCode.EXPIRED, "job-1", "too late"), NO_FACTS).encode())

    assert (run.started, run.exit_code, run.start, run.steps, run.tries) == (0.0, None, "", {}, ())


def test_a_summary_has_no_output() -> None:
    outcome = new_outcome(stdout=StreamOutput.of(b"s3cret-out"), stderr=StreamOutput.of(b"s3cret-err"))

    assert "s3cret" not in encode_summary(outcome, FACTS)


def test_the_first_and_the_newest_attempts_are_described_and_all_are_counted() -> None:
    run = parse_summary(encode_summary(new_outcome(attempts=tuple(map(new_attempt, range(20)))), NO_FACTS).encode())

    assert run.attempts == 20
    assert [round((one.started - START.timestamp()) / 60) for one in run.tries] == [0, 16, 17, 18, 19]


def test_the_slots_of_attempts_are_kept_where_they_are_known() -> None:
    attempts = tuple(replace(new_attempt(at), slot=None if at == 1 else at) for at in range(3))
    raw = encode_summary(new_outcome(attempts=attempts), NO_FACTS)
    assert [one.slot for one in parse_summary(raw.encode()).tries] == [0, None, 2]

    assert all(len(one) == 6 for one in json.loads(raw)["tries"]), "a reader of an earlier release reads them"
    of_earlier = json.dumps({name: value for name, value in json.loads(raw).items() if name != "slots"})
    assert [one.slot for one in parse_summary(of_earlier.encode()).tries] == [None, None, None]


def test_slots_that_are_no_slots_cost_no_run() -> None:
    forged = tuple(replace(new_attempt(at), slot=slot) for at, slot in enumerate((-1, 1 << 80, 3)))
    assert [
        one.slot for one in parse_summary(encode_summary(new_outcome(attempts=forged), NO_FACTS).encode()).tries
    ] == [
        None,
        None,
        3,
    ]
    long = {"id": "a", "code": "OK", "tries": [["h", "w", "OK", 1, 2, 1]], "slots": [1, 2, 3]}
    assert [one.slot for one in parse_summary(json.dumps(long).encode()).tries] == [1]


def test_a_long_summary_loses_slots_with_their_attempts() -> None:
    long = "é" * 110
    attempts = tuple(
        replace(new_attempt(at, host=f"{long}{at}"), worker=f"{long}{at}.{long}", slot=at + 1) for at in range(5)
    )
    raw = encode_summary(new_outcome(attempts=attempts, message="x" * 200), FACTS)
    kept = parse_summary(raw.encode()).tries
    assert 0 < len(kept) < 5
    assert [one.slot for one in kept] == [int(one.slot or 0) for one in kept] == list(range(6 - len(kept), 6))


def test_a_code_of_a_newer_release_keeps_its_category() -> None:
    code = ErrorCode.of_newer_release("GPU_LOST", Category.LIMIT, is_retryable=False)

    run = parse_summary(encode_summary(Outcome.of(code, "job-1"), NO_FACTS).encode())

    assert (run.code, run.category) == ("GPU_LOST", "limit")


ALPHABETS = ("ab c", "\"\\/'", "é漢字🙂", "\n\x00\x1b\u202e", "a\udce9\ud83d", "<script>&")


@pytest.mark.parametrize("seed", range(40))
def test_no_text_makes_a_summary_longer_than_its_bound(seed: int) -> None:
    chance = random.Random(seed)  # noqa: S311  no secret

    def text(most: int) -> str:
        return "".join(chance.choices(chance.choice(ALPHABETS), k=chance.randrange(most)))

    outcome = new_outcome().model_copy(
        update={
            "batch": text(520),
            "labels": {f"{n}{text(64)}": text(256) for n in range(chance.randrange(33))},
            "message": text(5000),
            "host": text(300),
            "attempts": tuple(new_attempt(n, text(200)) for n in range(chance.randrange(21))),
            "image_digest": text(300),
            "spec_sha256": text(300),
        }
    )

    raw = encode_summary(outcome, RunFacts(text(200), text(600), text(10_000), 1e9, 1)).encode()

    assert len(raw) <= MAX_SUMMARY_BYTES
    run = parse_summary(raw)
    assert (
        run.labels.items()
        <= {key.replace("\0", "�"): value.replace("\0", "�") for key, value in outcome.labels.items()}.items()
        or not raw.isascii()
    )
    assert len(run.message) <= 200
    json.dumps([run.message, run.batch, run.line], ensure_ascii=False).encode()


def test_labels_that_do_not_fit_are_left_out_whole() -> None:
    labels = {f"key{number}": "v" * 100 for number in range(10)}

    run = parse_summary(encode_summary(new_outcome(labels=labels), FACTS).encode())

    assert 2 <= len(run.labels) <= 4
    assert run.labels.items() <= labels.items()


def test_a_long_name_is_cut_and_stays_one_of_its_own() -> None:
    first, second = cut_name("n" * 500 + "1"), cut_name("n" * 500 + "2")

    assert first != second
    assert max(len(first), len(second)) <= MAX_NAME_BYTES
    assert cut_name(first) == first
    assert cut_name("nightly-311") == "nightly-311"
    assert len(cut_name("漢" * 300).encode()) <= MAX_NAME_BYTES


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"7",
        b"[" * 500,
        b'{"id":"a"}',
        b'{"code":"OK"}',
        b'{"id":"../x","code":"OK"}',
        b'{"id":"a","code":"ok"}',
        b'{"id":"a","code":7}',
        b'{"id":"a","code":"OK","batch":7}',
        b'{"id":"a","code":"OK","run":-1}',
        b'{"id":"a","code":"OK","run":1.5}',
        b'{"id":"a","code":"OK","run":true}',
        b'{"id":"a","code":"OK","memory":99999999999999999999999}',
        b'{"id":"a","code":"OK","cpu":NaN}',
        b'{"id":"a","code":"OK","cpu":Infinity}',
        b'{"id":"a","code":"OK","cpu":-1}',
        b'{"id":"a","code":"OK","labels":[]}',
        b'{"id":"a","code":"OK","labels":{"a":1}}',
        b'{"id":"a","code":"OK","steps":{"run":1}}',
        b'{"id":"a","code":"OK","steps":["x"]}',
        b'{"id":"a","code":"OK","tries":[[]]}',
        b'{"id":"a","code":"OK","slots":["x"]}',
        b'{"id":"a","code":"OK","slots":[-1]}',
        b'{"id":"a","code":"OK","tries":[["h","w","OK",-1,0,1]]}',
        b'{"id":"a","code":"OK","tries":[[1,"w","OK",1,0,1]]}',
        b'{"id":"a","code":"OK","line":"\xff"}',
        b'{"id":"a","code":"OK","line":"' + b"x" * 1024 + b'"}',
    ],
)
def test_what_is_no_summary_is_refused(raw: bytes) -> None:
    with pytest.raises(ValueError, match="it"):
        parse_summary(raw)


def test_texts_that_a_database_cannot_take_are_replaced() -> None:
    run = parse_summary(rb'{"id":"a","code":"OK","line":"a\ud800b\u0000c","labels":{"k\udfff":"\ud83d"}}')

    assert run.line == "a?b�c"
    assert run.labels == {"k?": "?"}


def test_facts_of_a_forged_record_are_not_known() -> None:
    assert read_facts(b"[", b"7", None, b"x") == NO_FACTS
    assert read_facts(b'{"line": 7, "submitted": "x"}', b'{"image": 7, "memory_bytes": "x"}', b"q", b"") == RunFacts(
        "q", "7", "7"
    )
    assert read_facts(b'{"submitted": 5.5}', b'{"image": "i", "memory_bytes": 9}', None, b"7000") == RunFacts(
        "", "i", "", 7.0, 9
    )
