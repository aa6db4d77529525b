from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from sandfleet import ErrorCode, JobUnknown, Outcome, ResultTimeout, SandboxSpec
from sandfleet.channel import JobRecord
from sandfleet.collect import OutcomeStream, parse_outcome
from sandfleet.testing import FakeFleet

OK = Outcome.of(ErrorCode.OK, "j1", exit_code=0)
OOM = Outcome.of(ErrorCode.OUT_OF_MEMORY, "j1", "too big", signal=9)
SPEC = SandboxSpec(image="x")


def stored(status: str, result: Any) -> bytes:
    return json.dumps({"status": status, "result": result, "task_id": "j1"}).encode()


def failure(kind: str, *args: object) -> bytes:
    return stored("FAILURE", {"exc_type": kind, "exc_message": args, "exc_module": "m"})


@pytest.mark.parametrize("status", ["PENDING", "RECEIVED", "STARTED", "RETRY"])
def test_what_has_not_ended_has_no_outcome(status: str) -> None:
    assert parse_outcome(stored(status, None), "j1") is None


def test_outcomes_are_taken_from_success_and_from_failure() -> None:
    assert parse_outcome(stored("SUCCESS", OK.to_json()), "j1") == OK
    error = OOM.to_error()
    assert error is not None
    assert parse_outcome(failure("OutOfMemory", *error.args), "j1") == OOM


def test_a_failure_without_outcome_keeps_code_and_message() -> None:
    for third in (None, {"nonsense": 1}, "text"):
        outcome = parse_outcome(failure("SpecInvalid", "SPEC_INVALID", "image: missing", third, [{}]), "j1")
        assert outcome == Outcome.of(ErrorCode.SPEC_INVALID, "j1", "image: missing")
    two = parse_outcome(failure("SpecInvalid", "SPEC_INVALID", "image: missing"), "j1")
    assert two is not None
    assert two.code is ErrorCode.SPEC_INVALID


@pytest.mark.parametrize(
    ("raw", "code", "said"),
    [
        (failure("NotRegistered", "other.task"), ErrorCode.INTERNAL, "NotRegistered: other.task"),
        (failure("WorkerLostError", "Worker exited"), ErrorCode.INTERNAL, "WorkerLostError: Worker exited"),
        (failure("ValueError", "OK", "a forged end", OK.to_json()), ErrorCode.INTERNAL, "ValueError"),
        (failure("X"), ErrorCode.INTERNAL, "X"),
        (stored("FAILURE", "text"), ErrorCode.INTERNAL, "damaged"),
        (stored("REVOKED", {"exc_type": "TaskRevokedError"}), ErrorCode.CANCELLED, "revoked"),
        (stored("SUCCESS", None), ErrorCode.INTERNAL, "cannot be read"),
        (stored("SUCCESS", {"code": "NEW_CODE", "job_id": "j1"}), ErrorCode.INTERNAL, "cannot be read"),
        (stored("SUCCESS", {**OK.to_json(), "exit_code": "s3cret"}), ErrorCode.INTERNAL, "exit_code"),
        (stored("NOVEL", None), ErrorCode.INTERNAL, "status"),
        (b"{}", ErrorCode.INTERNAL, "status"),
        (b"", ErrorCode.INTERNAL, "damaged"),
        (b"\xff", ErrorCode.INTERNAL, "damaged"),
        (b"[1]", ErrorCode.INTERNAL, "damaged"),
        (b"[" * 100_000, ErrorCode.INTERNAL, "damaged"),
    ],
)
def test_what_cannot_be_read_is_an_outcome_too(raw: bytes, code: ErrorCode, said: str) -> None:
    record = JobRecord(batch="nightly", submitted=1.0, spec_sha256="ab")
    outcome = parse_outcome(raw, "j1", {"j1": record}.get)
    assert outcome is not None
    assert (outcome.code, outcome.job_id, outcome.batch, outcome.spec_sha256) == (code, "j1", "nightly", "ab")
    assert said in outcome.message
    assert "s3cret" not in outcome.message


def test_a_stream_yields_each_job_once_whatever_it_is_given() -> None:
    fleet = FakeFleet()
    job = fleet.submit(SPEC)
    again = fleet.job(job.id)
    assert [outcome.job_id for outcome in fleet.as_completed([job, again, job.id, job])] == [job.id]
    assert list(fleet.as_completed([])) == []


def test_a_stream_yields_what_ends_first_and_names_the_rest_at_the_timeout() -> None:
    fleet = FakeFleet(lambda _: None)
    first, second = fleet.submit_many([SPEC, SPEC])
    fleet.finish(second.id, OK)
    seen: list[str] = []
    with pytest.raises(ResultTimeout) as caught:
        seen.extend(outcome.job_id for outcome in fleet.as_completed([first, second], timeout=0.05))
    # `extend` keeps what came before the exception
    assert seen == [second.id]
    assert caught.value.job_ids == (first.id,)
    assert isinstance(caught.value, TimeoutError)


def test_a_job_that_ends_later_is_waited_for() -> None:
    fleet = FakeFleet(lambda _: None)
    job = fleet.submit(SPEC)
    timer = threading.Timer(0.05, fleet.finish, (job.id, OOM))
    timer.start()
    assert job.outcome(timeout=5).code is ErrorCode.OUT_OF_MEMORY
    timer.join()


def test_more_jobs_than_one_round_trip_takes() -> None:
    fleet = FakeFleet()
    jobs = fleet.submit_many([SPEC] * 450)
    assert {outcome.job_id for outcome in fleet.as_completed(jobs, timeout=5)} == {job.id for job in jobs}


def test_a_job_that_redis_forgot_ends_the_wait_after_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandfleet.collect.PRESENCE_SECONDS", 0.0)
    fleet = FakeFleet()
    job = fleet.submit(SPEC)
    seen: list[Outcome] = []
    with pytest.raises(JobUnknown, match="gone") as caught:
        seen.extend(fleet.as_completed([job, "gone"], timeout=5))
    assert [outcome.job_id for outcome in seen] == [job.id]
    assert caught.value.job_ids == ("gone",)


def test_streams_and_jobs_can_be_awaited() -> None:
    fleet = FakeFleet(lambda _: None)
    jobs = fleet.submit_many([SPEC, SPEC, SPEC])

    async def collect() -> list[str]:
        loop = asyncio.get_running_loop()
        for job in jobs:
            loop.call_later(0.03, fleet.finish, job.id, OK)
        ids = [outcome.job_id async for outcome in fleet.as_completed(jobs, timeout=5)]
        assert (await jobs[0].outcome_async(timeout=1)).is_ok
        assert (await jobs[1].result_async(timeout=1)).exit_code == 0
        assert not (await jobs[2].cancel_async()).is_requested
        with pytest.raises(ResultTimeout):
            await fleet.submit(SPEC).outcome_async(timeout=0.01)
        return ids

    assert sorted(asyncio.run(collect())) == sorted(job.id for job in jobs)


def test_a_stream_can_be_walked_again() -> None:
    fleet = FakeFleet()
    stream = fleet.as_completed(fleet.submit_many([SPEC, SPEC]))
    assert isinstance(stream, OutcomeStream)
    assert len(list(stream)) == len(list(stream)) == 2
