"""Each ended run has one entry with its number in the stream, and none at the cost of an outcome."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from past import LAST, STREAM
from sandfleet import SandboxSpec
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Outcome, StreamOutput
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX
from sandfleet_config.run_summary import RunFacts, encode_summary
from sandfleet_config.scripts import read_script, stored_result
from waiting import wait_until

if TYPE_CHECKING:
    from past import Past

SPEC = SandboxSpec(image="python", command=["python3", "run.py", "--case", "7"], labels={"suite": "s7"})

PARTS = ("local prefix = ARGV[1]", read_script("prelude"), read_script("kept_specs"))


def entries(past: Past) -> list[tuple[int, dict[str, Any]]]:
    return [(int(fields[b"n"]), json.loads(fields[b"run"])) for _, fields in past.redis.xrange(STREAM)]


def claim_one(past: Past, claim_id: str) -> Any:
    claim, _ = past.ledger.claim(claim_id, [DEFAULT_QUEUE])
    assert claim is not None
    return claim


def test_ended_runs_have_numbers_without_a_gap(past: Past) -> None:
    ids = past.end([SPEC] * 3) + past.end([SPEC], ErrorCode.EXIT_NONZERO, exit_code=3)

    found = entries(past)

    assert [number for number, _ in found] == [1, 2, 3, 4]
    assert [run["id"] for _, run in found] == ids
    assert [run["code"] for _, run in found] == ["OK", "OK", "OK", "EXIT_NONZERO"]
    assert past.head() == 4
    assert past.redis.ttl(STREAM) > 0
    assert past.redis.ttl(LAST) > past.redis.ttl(STREAM)


@pytest.mark.parametrize("code", [ErrorCode.OK, ErrorCode.TIMEOUT])
@pytest.mark.parametrize("is_found", [True, False])
def test_an_entry_has_the_whole_summary_whatever_was_sent(past: Past, code: ErrorCode, is_found: bool) -> None:  # noqa: FBT001
    job = past.fleet.submit(SPEC)
    claim = claim_one(past, "c1")
    fields: dict[str, Any] = {"artifacts_lost": None if is_found else "the sandbox is gone", "run": 1}
    digest, spec = f"sha256:{'8c' * 32}", "77" * 32
    forged = b'"image_digest":"sha256:aa","artifacts":[],"artifacts_lost":null,"spec_sha256":"aa"'
    outcome = Outcome.of(
        code, job.id, image_digest=digest, spec_sha256=spec, stdout=StreamOutput.of(forged), exit_code=0, **fields
    )

    assert past.ledger.finish(claim, outcome)

    ((_, run),) = entries(past)
    assert run == json.loads(encode_summary(outcome, RunFacts(queue=DEFAULT_QUEUE)))
    assert (run["id"], run["code"], run["digest"], run["spec"]) == (job.id, code.value, digest, spec[:16])


def test_a_repeated_call_and_a_fenced_one_add_no_entry(past: Past) -> None:
    past.fleet.submit(SPEC)
    claim = claim_one(past, "c1")
    outcome = Outcome.of(ErrorCode.OK, claim.job_id, exit_code=0)

    assert past.ledger.finish(claim, outcome)
    assert past.ledger.finish(claim, outcome)
    claim_of_other = type(claim)(**{**vars(claim), "claim_id": "other"})
    assert not past.ledger.finish(claim_of_other, outcome)

    assert len(entries(past)) == past.head() == 1


def test_a_job_that_is_cancelled_in_the_queue_has_an_entry_with_its_facts(past: Past) -> None:
    job = past.fleet.submit(SPEC, batch="nightly")
    job.cancel()

    ((_, run),) = entries(past)
    assert (run["id"], run["code"], run["batch"], run["labels"]) == (job.id, "CANCELLED", "nightly", {"suite": "s7"})
    assert (run["queue"], run["image"], run["line"]) == ("sandfleet", "python", "python python3 run.py --case 7")
    assert run["submitted"] > 1e12
    assert "exit" not in run


def test_a_job_that_expires_in_the_queue_has_an_entry_with_its_facts(past: Past) -> None:
    job = past.fleet.submit(SPEC.model_copy(update={"queue_ttl": 60.0}), batch="nightly")

    assert past.ledger.end_queued_job(ErrorCode.EXPIRED, job.id, "too late")

    ((_, run),) = entries(past)
    assert (run["id"], run["code"], run["batch"], run["labels"]) == (job.id, "EXPIRED", "nightly", {"suite": "s7"})
    assert (run["queue"], run["line"], run["message"]) == ("sandfleet", "python python3 run.py --case 7", "too late")
    assert job.outcome(0).labels == {"suite": "s7"}


def test_a_caller_of_an_earlier_release_leaves_no_gap(past: Past) -> None:
    past.end([SPEC])
    job = past.fleet.submit(SPEC)
    claim_one(past, "old")
    result = stored_result(Outcome.of(ErrorCode.OK, job.id, exit_code=0))
    arguments = [KEY_PREFIX, "host:one:one", "old", job.id, "OK", result, 60, "", 60, b""]
    assert past.redis.eval(read_script("finish"), 0, *arguments) == 1
    past.end([SPEC])

    assert [number for number, _ in entries(past)] == [1, 2]
    assert job.outcome(0).code == "OK"


def forge(past: Past, key: str, value: object) -> None:
    past.redis.delete(key)
    if isinstance(value, set):
        past.redis.sadd(key, *value)
    else:
        past.redis.set(key, value)


@pytest.mark.parametrize("forged", [{"forged"}, "no number", "9223372036854775807", "1" + "0" * 17, "-7"], ids=str)
def test_a_forged_last_number_costs_no_run_and_is_told_as_a_gap(past: Past, forged: object) -> None:
    past.end([SPEC] * 2)
    with past.writing():
        past.wait_rows(2)
        forge(past, LAST, forged)
        (job,) = past.end([SPEC])
        past.end([SPEC])

        past.wait_rows(4)

    assert past.fleet.job(job).outcome(0).code == "OK"
    assert [number for number, _ in entries(past)] == [1, 2, 4, 5]
    assert past.history.status().lost == 1
    assert past.redis.ttl(LAST) > 0


def test_a_stream_of_a_wrong_type_is_made_anew(past: Past) -> None:
    past.end([SPEC])
    with past.writing():
        past.wait_rows(1)
        forge(past, STREAM, {"forged"})
        (job,) = past.end([SPEC])

        past.wait_rows(2)

    assert past.fleet.job(job).outcome(0).code == "OK"
    assert [number for number, _ in entries(past)] == [2]
    assert past.history.status().lost == 0
    assert past.redis.ttl(STREAM) > 0


def test_a_stream_that_is_begun_again_expires_too(past: Past) -> None:
    past.end([SPEC])
    past.redis.delete(STREAM)  # as it expires, while the number lives on
    past.end([SPEC])

    assert [number for number, _ in entries(past)] == [2]
    assert past.redis.ttl(STREAM) > 0


def test_a_stream_that_can_have_no_later_entry_is_made_anew(past: Past) -> None:
    past.end([SPEC])
    with past.writing():
        past.wait_rows(1)
        past.redis.xadd(STREAM, {"forged": "x"}, id="18446744073709551615-18446744073709551615")
        wait_until(lambda: past.history.status().skipped == 1, 10, "the writer has passed the forged entry")
        past.end([SPEC] * 2)

        past.wait_rows(3)


def test_at_maxmemory_the_outcome_is_recorded_and_the_run_has_a_number_alone(past: Past) -> None:
    past.end([SPEC])
    job = past.fleet.submit(SPEC)
    claim = claim_one(past, "full")
    past.redis.config_set("maxmemory", 1)
    try:
        outcome = Outcome.of(ErrorCode.EXIT_NONZERO, job.id, "the program exited 3", exit_code=3)
        assert past.ledger.finish(claim, outcome)
    finally:
        past.redis.config_set("maxmemory", 0)

    assert job.outcome(0).exit_code == 3
    assert len(entries(past)) == 1
    assert past.head() == 2


def test_the_stream_is_bounded_in_bytes(past: Past, monkeypatch: pytest.MonkeyPatch) -> None:
    """With bounds of KiB instead of MiB, so that 3,000 ends are enough."""
    small = read_script("ended_runs").replace("67108864, 8388608", "262144, 131072").replace("256, 32", "64, 32")
    text = "\n".join((*PARTS, small, "add_ended_run(ARGV[2], false)"))
    script = past.redis.register_script(text)
    with past.redis.pipeline(transaction=False) as pipe:
        for _ in range(3000):
            script(args=[KEY_PREFIX, "x" * 1000], client=pipe)
        pipe.execute()

    assert past.head() == 3000
    assert past.redis.memory_usage(STREAM) <= 262144 + 64 * 1200
    assert 100 < past.redis.xlen(STREAM) < 300
    newest = past.redis.xrevrange(STREAM, count=1)[0][1]
    assert newest[b"n"] == b"3000"


def test_a_summary_that_is_too_long_is_not_appended(past: Past) -> None:
    text = "\n".join((*PARTS, read_script("ended_runs"), "add_ended_run(ARGV[2], false)"))
    past.redis.eval(text, 0, KEY_PREFIX, "x" * 1025)

    assert (past.head(), past.redis.exists(STREAM)) == (1, 0)
    past.redis.delete(LAST)


def test_a_forgotten_batch_is_noted_even_if_redis_has_nothing_of_it(past: Past) -> None:
    assert list(past.fleet._channel.forget_batch("long-ago")) == [(0, 0)]

    key = f"{KEY_PREFIX}ended_runs:forgotten"
    assert past.redis.zrange(key, 0, -1) == [b"long-ago"]
    assert past.redis.ttl(key) > 0


def test_a_forged_key_of_forgotten_batches_is_made_anew(past: Past) -> None:
    key = f"{KEY_PREFIX}ended_runs:forgotten"
    past.redis.set(key, "forged")

    list(past.fleet._channel.forget_batch("nightly"))

    assert past.redis.zrange(key, 0, -1) == [b"nightly"]
    assert past.redis.ttl(key) > 0
