from __future__ import annotations

import asyncio
import json
import pickle
import threading
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest
from rows import each_row
from sandfleet import ErrorCode, JobUnknown, Outcome, ResultTimeout, SandboxSpec
from sandfleet.channel.records import JobRecord
from sandfleet.channel.stored_result import parse_outcome
from sandfleet.collect.stream import OutcomeStream
from sandfleet.testing.fake_channel import FakeChannel
from sandfleet.testing.fake_fleet import FakeFleet
from sandfleet_config.errors import new_error
from sandfleet_config.outcome import Attempt, LimitState, StreamOutput, Timing, Usage
from sandfleet_config.scripts import stored_result

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

OK = Outcome.of(ErrorCode.OK, "j1", exit_code=0)
OOM = Outcome.of(ErrorCode.OUT_OF_MEMORY, "j1", "too big", signal=9)
SPEC = SandboxSpec(image="x")


def stored(status: str, result: Any) -> bytes:
    return json.dumps({"status": status, "result": result, "task_id": "j1"}).encode()


def failure(kind: str, *args: object) -> bytes:
    return stored("FAILURE", {"exc_type": kind, "exc_message": args, "exc_module": "m"})


@pytest.mark.parametrize("status", ["PENDING", "RECEIVED", "STARTED", "RETRY"])
def test_an_unfinished_job_has_no_outcome(status: str) -> None:
    assert parse_outcome(stored(status, None), "j1") is None


def test_outcomes_are_taken_from_success_and_from_failure() -> None:
    assert parse_outcome(stored("SUCCESS", OK.to_json()), "j1") == OK
    error = new_error(OOM)
    assert error is not None
    assert parse_outcome(failure("OutOfMemory", *error.args), "j1") == OOM


def new_full(code: ErrorCode) -> Outcome:
    now = datetime.now(UTC)
    return Outcome.of(
        code,
        "j1",
        "why \u20ac",
        batch="nightly",
        labels={"name": "n"},
        exit_code=3,
        stdout=StreamOutput.of(b"\xff\x00"),
        duration=0.5,
        timing=Timing(queued=0.25),
        usage=Usage(memory_peak_bytes=1 << 40),
        limits={"memory": LimitState(value=1 << 40, enforced=True), "cpu": LimitState(value=0.5, enforced=False)},
        attempts=(Attempt(host="h", worker="w", code=code, started=now, ended=now),),
    )


@pytest.mark.parametrize("code", [ErrorCode.OK, ErrorCode.INTERNAL])
def test_half_a_character_in_a_message_loses_no_outcome(code: ErrorCode) -> None:
    outcome = new_full(code).model_copy(update={"message": "cannot run b\udcff"})
    found = parse_outcome(stored_result(outcome).encode(), "j1")
    assert found == outcome


@each_row("code", list(ErrorCode))
def test_a_stored_outcome_is_read_unchanged(code: ErrorCode) -> None:
    outcome = new_full(code)
    found = parse_outcome(stored_result(outcome).encode(), "j1")
    assert found == outcome
    assert found is not None
    assert found.to_json() == outcome.to_json()
    assert pickle.loads(pickle.dumps(found)) == outcome  # noqa: S301  our own


def test_the_faults_of_a_refused_request_are_on_its_outcome() -> None:
    outcome, faults = new_full(ErrorCode.SPEC_INVALID), [{"field": "image", "message": "missing"}]
    found = parse_outcome(stored_result(outcome, faults).encode(), "j1")
    assert found is not None
    assert found.to_json() == outcome.to_json()
    copied = pickle.loads(pickle.dumps(found))  # noqa: S301  our own
    assert copied == found
    for error in (new_error(found), new_error(copied)):
        assert error is not None
        assert error.errors == faults


def test_a_failure_without_outcome_keeps_code_and_message() -> None:
    for third in (None, {"nonsense": 1}, "text"):
        outcome = parse_outcome(failure("SpecInvalid", "SPEC_INVALID", "image: missing", third, [{}]), "j1")
        assert outcome == Outcome.of(ErrorCode.SPEC_INVALID, "j1", "image: missing")
    two = parse_outcome(failure("SpecInvalid", "SPEC_INVALID", "image: missing"), "j1")
    assert two is not None
    assert two.code is ErrorCode.SPEC_INVALID


@each_row(
    ("raw", "code", "said"),
    [
        (failure("NotRegistered", "other.task"), ErrorCode.INTERNAL, "NotRegistered: other.task"),
        (failure("WorkerLostError", "Worker exited"), ErrorCode.INTERNAL, "WorkerLostError: Worker exited"),
        (failure("ValueError", "OK", "a forged end", OK.to_json()), ErrorCode.INTERNAL, "ValueError"),
        (failure("X"), ErrorCode.INTERNAL, "X"),
        (stored("FAILURE", "text"), ErrorCode.INTERNAL, "damaged"),
        (stored("REVOKED", {"exc_type": "TaskRevokedError"}), ErrorCode.CANCELLED, "the job was cancelled"),
        (stored("SUCCESS", None), ErrorCode.INTERNAL, "cannot be read"),
        (stored("SUCCESS", {"code": "no code", "job_id": "j1"}), ErrorCode.INTERNAL, "cannot be read"),
        (stored("SUCCESS", {**OK.to_json(), "exit_code": "s3cret"}), ErrorCode.INTERNAL, "exit_code"),
        (stored("NOVEL", None), ErrorCode.INTERNAL, "status"),
        (b"{}", ErrorCode.INTERNAL, "status"),
        (b"", ErrorCode.INTERNAL, "damaged"),
        (b"\xff", ErrorCode.INTERNAL, "damaged"),
        (b"[1]", ErrorCode.INTERNAL, "damaged"),
        (b"[" * 100_000, ErrorCode.INTERNAL, "damaged"),
    ],
)
def test_an_unreadable_result_becomes_an_outcome(raw: bytes, code: ErrorCode, said: str) -> None:
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
    monkeypatch.setattr("sandfleet.collect.polling.CHECK_SECONDS", 0.0)
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


class CountingChannel(FakeChannel):
    """Counts the outcomes it was asked for."""

    asked = 0

    def outcomes(self, job_ids: Sequence[str]) -> list[Outcome | None]:
        self.asked += len(job_ids)
        return super().outcomes(job_ids)

    def outcome_chunks(self, chunks: Iterable[Sequence[str]]) -> Iterator[tuple[Sequence[str], list[Outcome | None]]]:
        return ((job_ids, self.outcomes(job_ids)) for job_ids in chunks)


class CountingFleet(FakeFleet):
    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self.channel = self._channel = CountingChannel(lambda _: None)


@pytest.mark.parametrize("is_async", [False, True])
def test_many_handles_of_a_batch_are_not_asked_for_again_and_again(
    monkeypatch: pytest.MonkeyPatch, *, is_async: bool
) -> None:
    monkeypatch.setattr("sandfleet.collect.polling.CHECK_SECONDS", 1000.0)
    fleet = CountingFleet()
    jobs = fleet.submit_many([SPEC] * 500, batch="b")
    early, late = jobs[:400], jobs[400:]
    for job in early:
        fleet.channel.finish(job.id, OK)
    stream = fleet.as_completed(jobs, timeout=20)

    def note(outcome: Outcome, seen: list[str] = []) -> list[str]:  # noqa: B006  it remembers
        seen.append(outcome.job_id)
        if len(seen) >= len(early) and late:
            fleet.channel.finish(late.pop().id, OK)  # each end is found in a round of its own
        return seen

    async def collect() -> None:
        async for outcome in stream:
            note(outcome)

    if is_async:
        asyncio.run(collect())
    else:
        for outcome in stream:
            note(outcome)
    assert fleet.channel.asked <= 500 + 100, "once all of them, and each that ends later once"


def test_handles_of_several_batches_are_all_awaited() -> None:
    fleet = CountingFleet()
    jobs = [*fleet.submit_many([SPEC] * 150, batch="a"), *fleet.submit_many([SPEC] * 150, batch="b")]

    def end() -> None:
        for job in jobs:
            fleet.channel.finish(job.id, OK)

    timer = threading.Timer(0.05, end)
    timer.start()
    assert {outcome.job_id for outcome in fleet.as_completed(jobs, timeout=20)} == {job.id for job in jobs}
    timer.join()


def test_a_job_that_ended_without_an_entry_in_its_batchs_list_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a stock worker, which does not know batches, would end it."""
    monkeypatch.setattr("sandfleet.collect.polling.CHECK_SECONDS", 0.05)
    fleet = CountingFleet()
    jobs = fleet.submit_many([SPEC] * 300, batch="b")

    def end() -> None:
        for job in jobs:
            fleet.channel.finish(job.id, OK)
        fleet.channel._entries.clear()

    timer = threading.Timer(0.05, end)
    timer.start()
    assert len(list(fleet.as_completed(jobs, timeout=20))) == 300
    timer.join()


def test_a_batch_whose_dead_letter_runs_again_is_awaited_to_its_new_end() -> None:
    fleet = CountingFleet()
    jobs = fleet.submit_many([SPEC] * 3, batch="b")
    for job in jobs:
        fleet.channel.finish(job.id, OK)
    again = fleet.channel._jobs[jobs[2].id]
    again.outcome, again.run = None, 2  # it runs again, a moment before its end leaves the stream
    timer = threading.Timer(0.05, fleet.channel.finish, (jobs[2].id, OOM))
    timer.start()
    outcomes = list(fleet.batch("b").as_completed(timeout=5))
    timer.join()
    assert [outcome.code for outcome in outcomes] == [ErrorCode.OK, ErrorCode.OK, ErrorCode.OUT_OF_MEMORY]
