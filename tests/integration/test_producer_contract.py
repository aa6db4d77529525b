"""What every fleet promises its user: one suite for the fake, for Redis with a stand-in worker, and for the whole."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis
from lasting import lasting_keys
from pydantic import SecretStr
from sandfleet import (
    BatchUnknown,
    Cancelled,
    CancelState,
    CommandNotFound,
    ErrorCode,
    Fleet,
    FleetRunner,
    IdempotencyConflict,
    Job,
    JobExists,
    JobUnknown,
    ResultTimeout,
    SandboxSpec,
    SecurityViolation,
    Settings,
    Signaled,
    SpecInvalid,
    SpecTooLarge,
)
from sandfleet.testing.fake_fleet import FakeFleet
from sandfleet_config.wire import spec_sha256
from stand_in import BROKEN, EXIT_3, HELLO, IMAGE, KILLED, LONG, MISSING, StandIn, play, shell

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from stage import Stage

FLEETS = ["fake_fleet", "redis_fleet", "sandbox_fleet"]


@pytest.fixture
def fake_fleet() -> Iterator[Fleet]:
    with FakeFleet(play) as fleet:
        yield fleet


@pytest.fixture
def redis_fleet(redis_server: Any) -> Iterator[Fleet]:
    """A stand-in works on a database of its own: the real worker has the other."""
    url = redis_server.url.replace("db=0", "db=1")
    with StandIn(url), Fleet(Settings(redis_url=SecretStr(url))) as fleet:
        yield fleet
    with redis.Redis.from_url(url, protocol=2) as client:
        keys = lasting_keys(client)
        client.flushdb()
    assert keys == []


@pytest.fixture
def sandbox_fleet(module_stage: Stage) -> Iterator[Fleet]:
    with Fleet(Settings(redis_url=SecretStr(module_stage.redis_url))) as fleet:
        yield fleet


@pytest.fixture(params=FLEETS)
def fleet(request: pytest.FixtureRequest) -> Fleet:
    found: Fleet = request.getfixturevalue(request.param)
    return found


def test_an_outcome_tells_what_the_program_did(fleet: Fleet) -> None:
    job = fleet.submit(HELLO, batch="b")
    outcome = job.outcome(timeout=20)
    assert (outcome.code, outcome.exit_code, outcome.stdout.text) == (ErrorCode.OK, 0, "hello\n")
    assert (outcome.job_id, outcome.batch, outcome.labels) == (job.id, "b", {"name": "hello"})
    assert outcome.spec_sha256 == spec_sha256(HELLO)
    assert job.is_done
    assert job.result().stdout == "hello\n"


def test_any_exit_is_a_result_and_every_other_code_an_exception(fleet: Fleet) -> None:
    assert fleet.submit(EXIT_3).result(timeout=20).exit_code == 3
    with pytest.raises(CommandNotFound) as caught:
        fleet.submit(MISSING).result(timeout=20)
    assert caught.value.outcome is not None
    with pytest.raises(Signaled) as killed:
        fleet.submit(KILLED).result(timeout=20)
    assert killed.value.outcome is not None
    assert killed.value.outcome.signal == 9


def test_a_dict_is_a_spec_too(fleet: Fleet) -> None:
    assert fleet.submit(EXIT_3.model_dump()).outcome(timeout=20).exit_code == 3


def test_what_cannot_be_accepted_is_refused_at_submit_with_every_fault(fleet: Fleet) -> None:
    with pytest.raises(SpecInvalid) as caught:
        fleet.submit({"image": "", "timeout": -1})
    assert {error["field"] for error in caught.value.errors} == {"image", "timeout"}
    with pytest.raises(SecurityViolation):
        fleet.submit({"image": "x", "security": {"privileged": True}})
    with pytest.raises(SpecTooLarge):
        fleet.submit({"image": "x", "stdin": "x" * 300_000})
    with pytest.raises(SpecInvalid, match="batch"):
        fleet.submit(HELLO, batch="\x1b[31m")
    with pytest.raises(ValueError, match="job id"):
        fleet.submit(HELLO, job_id="../x")


def test_many_jobs_stream_as_they_end_each_once(fleet: Fleet) -> None:
    jobs = fleet.submit_many([HELLO, EXIT_3] * 10, batch="many")
    outcomes = list(fleet.as_completed([*jobs, *jobs], timeout=20))
    assert sorted(outcome.job_id for outcome in outcomes) == sorted(job.id for job in jobs)
    assert sum(outcome.is_ok for outcome in outcomes) == 10
    assert list(fleet.as_completed([])) == []


def test_many_jobs_stream_into_an_event_loop(fleet: Fleet) -> None:
    jobs = fleet.submit_many([HELLO] * 5)

    async def collect() -> list[str]:
        return [outcome.job_id async for outcome in fleet.as_completed(jobs, timeout=20)]

    assert sorted(asyncio.run(collect())) == sorted(job.id for job in jobs)


def test_a_job_is_found_again_by_its_id_and_an_unknown_one_never_waits(fleet: Fleet) -> None:
    job = fleet.submit(HELLO)
    assert fleet.job(job.id) == job
    assert fleet.job(job.id).outcome(timeout=20).is_ok
    started = time.monotonic()
    with pytest.raises(JobUnknown):
        fleet.job("long-gone")
    assert time.monotonic() - started < 1


def test_an_id_of_ones_own_is_taken_once(fleet: Fleet) -> None:
    job_id = f"own.{time.time_ns()}"
    assert fleet.submit(HELLO, job_id=job_id).id == job_id
    with pytest.raises(JobExists):
        fleet.submit(HELLO, job_id=job_id)
    assert fleet.job(job_id).outcome(timeout=20).is_ok


def test_a_wait_ends_in_time_and_the_job_can_be_cancelled_again_and_again(fleet: Fleet) -> None:
    job = fleet.submit(LONG)
    for wait in (0, 0.05):
        with pytest.raises(ResultTimeout) as caught:
            job.outcome(timeout=wait)
        assert caught.value.job_ids == (job.id,)
    assert job.cancel().is_requested
    assert job.outcome(timeout=20).code is ErrorCode.CANCELLED
    again = job.cancel()
    assert (again.is_requested, again.code, str(again)) == (False, ErrorCode.CANCELLED, "already ended: CANCELLED")


def test_a_fleet_is_an_asynchronous_context_manager_too(fleet: Fleet) -> None:
    async def use() -> str:
        async with fleet as entered:
            assert entered is fleet
            outcome = await entered.submit(HELLO).outcome_async(timeout=20)
        return outcome.stdout.text

    assert asyncio.run(use()) == "hello\n"
    fleet.ping()  # a later use connects anew


def test_a_plain_event_cancels_a_run_and_no_event_changes_it(fleet: Fleet) -> None:
    runner, event = FleetRunner(fleet), threading.Event()
    assert runner.run(HELLO, cancel=event).stdout == "hello\n"
    assert runner.run(EXIT_3, cancel=event, deadline=time.monotonic() + 20).exit_code == 3
    timer = threading.Timer(0.2, event.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        runner.run(LONG, cancel=event)
    assert time.monotonic() - started < 15
    with pytest.raises(Cancelled):
        runner.run(LONG, cancel=event)  # it is set already
    timer.join()


def test_a_cancel_after_the_end_changes_nothing(fleet: Fleet) -> None:
    job = fleet.submit(EXIT_3)
    job.outcome(timeout=20)
    assert fleet.job(job.id).cancel().code is ErrorCode.EXIT_NONZERO
    assert fleet.job(job.id).outcome(timeout=0).code is ErrorCode.EXIT_NONZERO


def test_threads_share_a_fleet(fleet: Fleet) -> None:
    found: list[bool] = []

    def use() -> None:
        found.extend(fleet.submit(HELLO).outcome(timeout=20).is_ok for _ in range(5))

    threads = [threading.Thread(target=use) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 40


def test_execute_answers_as_the_seeds_backend(fleet: Fleet) -> None:
    from sandfleet import Config

    result = fleet.execute("echo hello", "sh", timeout=20, config=Config(image=IMAGE))
    assert (result.stdout, result.exit_code, result.backend.kind) == ("hello\n", 0, "gvisor")


def unique(name: str) -> str:
    return f"{name}-{time.time_ns()}"


def test_the_same_key_and_spec_are_the_same_job(fleet: Fleet) -> None:
    spec = shell("echo hello", idempotency_key=unique("key"))
    job = fleet.submit(spec)
    assert fleet.submit(spec) == job
    assert job.outcome(timeout=20).is_ok
    assert fleet.submit(spec) == job, "as long as the outcome is kept"
    other = fleet.submit(spec.model_copy(update={"idempotency_key": unique("key")}))
    assert other != job
    assert other.outcome(timeout=20).is_ok


def test_the_same_key_with_another_spec_is_an_error(fleet: Fleet) -> None:
    key = unique("key")
    job = fleet.submit(shell("echo hello", idempotency_key=key))
    others = [shell("exit 3", idempotency_key=key), shell("echo hello", idempotency_key=key, priority=0)]
    for other in others:
        with pytest.raises(IdempotencyConflict) as caught:
            fleet.submit(other)
        assert (caught.value.key, caught.value.job_id) == (key, job.id)
        assert key in str(caught.value)
        assert job.id in str(caught.value)
    with pytest.raises(IdempotencyConflict) as many:
        fleet.submit_many([HELLO, others[0], HELLO])
    assert len(many.value.job_ids) == 2
    outcomes = list(fleet.as_completed([job, *many.value.job_ids], timeout=20))
    assert [outcome.code for outcome in outcomes] == [ErrorCode.OK] * 3


def test_an_idempotent_batch_may_be_submitted_again(fleet: Fleet) -> None:
    name = unique("batch")
    specs = [shell("echo hello"), shell("exit 3"), shell("echo hello")]
    half = fleet.submit_many(specs[:2], batch=name, idempotent=True)
    jobs = fleet.submit_many(iter(specs), batch=name, idempotent=True)
    assert jobs[:2] == half
    assert fleet.submit_many(tuple(specs), batch=name, idempotent=True) == jobs
    assert len(set(jobs)) == len(fleet.batch(name).job_ids) == 3
    assert len(list(fleet.batch(name).as_completed(timeout=20))) == 3
    with pytest.raises(IdempotencyConflict):
        fleet.submit_many(specs[1:], batch=name, idempotent=True)
    with pytest.raises(ValueError, match="name of a batch"):
        fleet.submit_many(specs, idempotent=True)
    with pytest.raises(SpecInvalid, match="idempotency_key"):
        fleet.submit_many(specs, batch="b" * 300, idempotent=True)
    assert len(list(fleet.batch(name).as_completed(timeout=20))) == 3


def test_one_key_twice_in_a_list_is_one_job(fleet: Fleet) -> None:
    spec, name = shell("echo hello", idempotency_key=unique("key")), unique("batch")
    first, other, again = fleet.submit_many([spec, HELLO, spec], batch=name)
    assert first == again != other
    assert sorted(fleet.batch(name).job_ids) == sorted([first.id, other.id])
    assert [outcome.is_ok for outcome in fleet.batch(name).as_completed(timeout=20)] == [True, True]
    key = unique("key")
    with pytest.raises(IdempotencyConflict) as caught:
        fleet.submit_many([shell("echo hello", idempotency_key=key), shell("exit 3", idempotency_key=key)])
    assert len(caught.value.job_ids) == 1
    assert fleet.job(caught.value.job_ids[0]).outcome(timeout=20).is_ok


def test_a_list_is_checked_as_a_whole_and_an_iterator_in_chunks(fleet: Fleet) -> None:
    name = unique("batch")
    faulty = [HELLO] * 300 + [{"image": ""}]
    with pytest.raises(SpecInvalid):
        fleet.submit_many(faulty, batch=name, queue="nobody")
    with pytest.raises(BatchUnknown):
        fleet.batch(name)
    with pytest.raises(SpecInvalid) as caught:
        fleet.submit_many(iter(faulty), batch=name, queue="nobody")
    assert [fault["field"] for fault in caught.value.errors] == ["specs[300].image"]
    assert "the 300 specs before it were queued" in caught.value.message
    assert list(caught.value.job_ids) == fleet.batch(name).job_ids
    assert fleet.batch(name).counts.total == 300
    fleet.batch(name).cancel()


def test_every_faulty_spec_of_a_list_is_told_at_once(fleet: Fleet) -> None:
    name = unique("batch")
    bad = {"image": "", "command": "ls", "timeout": -1}
    specs: list[Any] = [HELLO, bad, HELLO.model_dump(), {"image": "x", "stdin": "x" * 300_000}, HELLO, None]
    with pytest.raises(SpecInvalid, match="nothing was queued, 3 of 6 specs are faulty") as caught:
        fleet.submit_many(specs, batch=name)
    fields = [fault["field"] for fault in caught.value.errors]
    assert sorted(fields) == ["specs[1].command", "specs[1].image", "specs[1].timeout", "specs[3]", "specs[5]"]
    assert caught.value.job_ids == ()
    with pytest.raises(SpecTooLarge) as large:
        fleet.submit_many(tuple(specs[2:5]), batch=name)
    assert [fault["field"] for fault in large.value.errors] == ["specs[1]"]
    with pytest.raises(BatchUnknown):
        fleet.batch(name)


def test_a_violation_outranks_many_other_faults(fleet: Fleet) -> None:
    specs = [{"image": ""}] * 100 + [{"image": "x", "security": {"privileged": True}}]
    with pytest.raises(SecurityViolation) as caught:
        fleet.submit_many(specs, batch=unique("batch"))
    assert len(caught.value.errors) == 50
    assert caught.value.errors[0]["field"] == "specs[100].security.privileged"
    assert "101 of 101 specs are faulty" in caught.value.message
    assert "and 51 more" in caught.value.message


def test_progress_is_told_as_jobs_are_queued(fleet: Fleet) -> None:
    name, told = unique("batch"), [0]
    jobs = fleet.submit_many([LONG] * 600, batch=name, queue="nobody", on_progress=told.append)
    assert told[-1] == len(jobs) == 600
    assert len(told) > 2
    assert told == sorted(told)
    fleet.batch(name).cancel()


def test_jobs_are_submitted_from_an_event_loop(fleet: Fleet) -> None:
    specs, name, told = [HELLO, EXIT_3] * 3, unique("batch"), [0]

    async def produce(count: int) -> AsyncIterator[SandboxSpec]:
        for spec in specs[:count]:
            await asyncio.sleep(0)
            yield spec

    async def submit() -> None:
        half = await fleet.submit_many_async(produce(3), batch=name, idempotent=True)
        jobs = await fleet.submit_many_async(produce(6), batch=name, idempotent=True, on_progress=told.append)
        assert jobs[:3] == half
        assert await fleet.submit_many_async(specs, batch=name, idempotent=True) == jobs
        assert await fleet.submit_many_async(iter(specs), batch=name, idempotent=True) == jobs
        assert told[-1] == 6
        outcomes = [outcome async for outcome in fleet.as_completed(jobs, timeout=20)]
        assert sorted(outcome.job_id for outcome in outcomes) == sorted(job.id for job in jobs)
        with pytest.raises(SpecInvalid, match=r"nothing was queued.*specs\[1\].image"):
            await fleet.submit_many_async([HELLO, {"image": ""}])
        assert await fleet.submit_many_async(produce(0)) == []

    async def produce_faulty() -> AsyncIterator[Any]:
        for _ in range(1200):
            yield LONG
        yield {"image": ""}

    async def submit_faulty() -> None:
        with pytest.raises(SpecInvalid) as caught:
            await fleet.submit_many_async(produce_faulty(), batch=f"{name}-2", queue="nobody")
        assert [fault["field"] for fault in caught.value.errors] == ["specs[1200].image"]
        assert list(caught.value.job_ids) == fleet.batch(f"{name}-2").job_ids
        assert len(caught.value.job_ids) == 1200

    asyncio.run(submit())
    asyncio.run(submit_faulty())
    fleet.batch(f"{name}-2").cancel()


def test_what_a_source_of_specs_raises_comes_after_what_is_queued(fleet: Fleet) -> None:
    name = unique("batch")

    def produce() -> Iterator[SandboxSpec]:
        for _ in range(600):
            yield LONG
        raise OSError("the disk is gone")

    seen: list[Job] = []
    with pytest.raises(OSError, match="the disk is gone") as caught:  # noqa: PT012  the chunks before it count too
        for chunk in fleet.submit_chunks(produce(), batch=name, queue="nobody"):
            seen += chunk
    assert type(caught.value) is OSError
    assert len(seen) == 512
    assert [job.id for job in seen] == fleet.batch(name).job_ids
    fleet.batch(name).cancel()


def test_a_submit_that_is_given_up_queues_nothing_more(fleet: Fleet) -> None:
    name = unique("batch")
    chunks = fleet.submit_chunks(iter([LONG] * 2000), batch=name, queue="nobody")
    first = next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert fleet.batch(name).job_ids == [job.id for job in first]
    fleet.batch(name).cancel()


def test_a_job_of_another_batch_is_awaited_with_those_of_this_one(stand_in_fleet: Fleet) -> None:
    fleet = stand_in_fleet  # more jobs than are asked for one by one, which real sandboxes would take long for
    name, specs = unique("batch"), [shell("echo hello", idempotency_key=unique("key")) for _ in range(300)]
    first = fleet.submit(specs[7], batch=f"{name}-before")
    jobs = fleet.submit_many(specs, batch=name)
    assert jobs[7] == first
    assert {job.batch for job in jobs[:7]} == {name}
    assert jobs[7].batch is None
    assert fleet.batch(name).counts.total == 299
    assert len(list(fleet.as_completed(jobs, timeout=60))) == 300


def test_a_batch_is_found_again_by_its_name(fleet: Fleet) -> None:
    name = unique("batch")
    jobs = fleet.submit_many([HELLO, EXIT_3, HELLO], batch=name)
    batch = fleet.batch(name)
    assert batch.jobs == jobs
    outcomes = list(batch.as_completed(timeout=20))
    assert sorted(outcome.job_id for outcome in outcomes) == sorted(batch.job_ids)
    assert batch.is_done
    assert (batch.counts, batch.codes, batch.is_sealed) == ((3, 3), {"OK": 2, "EXIT_NONZERO": 1}, True)
    assert [outcome.job_id for outcome in batch.outcomes()] == [outcome.job_id for outcome in outcomes]

    async def collect() -> list[str]:
        return [outcome.job_id async for outcome in fleet.batch(name).as_completed(timeout=20)]

    assert sorted(asyncio.run(collect())) == sorted(batch.job_ids)
    with pytest.raises(BatchUnknown):
        fleet.batch("no-such-batch")


def test_a_batch_is_cancelled_as_a_whole(fleet: Fleet) -> None:
    name = unique("batch")
    done = fleet.submit(HELLO, batch=name)
    done.outcome(timeout=20)
    fleet.submit_many([LONG] * 20, batch=name)
    with pytest.raises(ResultTimeout) as caught:
        list(fleet.batch(name).as_completed(timeout=0.1))
    assert set(caught.value.job_ids) == set(fleet.batch(name).job_ids) - {done.id}
    counts = fleet.batch(name).cancel()
    assert counts[CancelState.ENDED] == 1
    assert counts[CancelState.CANCELLED] + counts[CancelState.REQUESTED] == 20
    outcomes = list(fleet.batch(name).as_completed(timeout=20))
    assert sorted(outcome.code for outcome in outcomes) == [ErrorCode.CANCELLED] * 20 + [ErrorCode.OK]
    assert fleet.batch(name).cancel() == {CancelState.ENDED: 21}
    assert fleet.batch(name).forget() == (21, 0)
    with pytest.raises(BatchUnknown):
        fleet.batch(name)
    with pytest.raises(JobUnknown):
        fleet.job(done.id)


@pytest.fixture(params=FLEETS[:2])
def stand_in_fleet(request: pytest.FixtureRequest) -> Fleet:
    """A fleet whose host can be made to fail, and whose worker minds one queue only."""
    found: Fleet = request.getfixturevalue(request.param)
    return found


def test_a_job_that_nobody_takes_in_time_expires(stand_in_fleet: Fleet) -> None:
    fleet = stand_in_fleet
    name = unique("batch")
    spec = shell("sleep 60", queue_ttl=0.1, labels={"name": "late"})
    jobs = fleet.submit_many([spec] * 4, queue="nobody", batch=name)
    codes = {outcome.code for outcome in fleet.as_completed(jobs[:2], timeout=20)}
    assert codes == {ErrorCode.EXPIRED}
    assert fleet.job(jobs[2].id).is_done, "a look is enough"
    outcome = jobs[2].outcome(timeout=0)
    assert (outcome.code, outcome.batch, outcome.labels) == (ErrorCode.EXPIRED, name, {"name": "late"})
    assert outcome.spec_sha256 == spec_sha256(spec)
    assert outcome.retryable
    assert [found.code for found in fleet.batch(name).as_completed(timeout=20)] == [ErrorCode.EXPIRED] * 4


def test_a_cancel_of_a_queued_job_ends_it(stand_in_fleet: Fleet) -> None:
    fleet = stand_in_fleet
    job = fleet.submit(shell("sleep 60", labels={"name": "n"}), queue="nobody", batch=unique("batch"))
    result = job.cancel()
    assert (str(result), result.is_requested) == ("cancelled before it started", True)
    outcome = job.outcome(timeout=0)
    assert (outcome.code, outcome.labels) == (ErrorCode.CANCELLED, {"name": "n"})
    assert str(fleet.job(job.id).cancel()) == "already ended: CANCELLED"


def test_a_queue_is_named_as_a_queue_may_be(fleet: Fleet) -> None:
    for name in ("", "a:b", "dead", "x" * 200):
        with pytest.raises(ValueError, match="queue"):
            fleet.submit(HELLO, queue=name)
        with pytest.raises(ValueError, match="queue"):
            fleet.submit_many([HELLO], queue=name)


def test_a_job_without_a_try_left_is_a_dead_letter(stand_in_fleet: Fleet) -> None:
    fleet, name = stand_in_fleet, unique("batch")
    job = fleet.submit(BROKEN.model_copy(update={"max_attempts": 2}), batch=name)
    other = fleet.submit(BROKEN.model_copy(update={"max_attempts": 1}))
    outcome = job.outcome(timeout=20)
    assert [attempt.code for attempt in outcome.attempts] == [ErrorCode.GVISOR_NOT_AVAILABLE] * 2
    other.outcome(timeout=20)
    letter = fleet.dead.show(job.id)
    assert (letter.code, letter.batch, letter.queue) == (ErrorCode.GVISOR_NOT_AVAILABLE, name, "sandfleet")
    assert (letter.line, len(letter.attempts), letter.garbage) == (f"{IMAGE} broken-host", 2, "")
    assert abs(letter.at - time.time()) < 30
    assert {job.id, other.id} <= {found.job_id for found in fleet.dead.list()}
    assert fleet.dead.purge([other.id, "no-such"]) == 1
    with pytest.raises(JobUnknown):
        fleet.dead.show(other.id)

    again = fleet.dead.requeue(job.id)

    assert again == job
    second = again.outcome(timeout=20)
    assert second.code is ErrorCode.GVISOR_NOT_AVAILABLE
    assert len(second.attempts) == 2, "its attempts are fresh"
    assert (second.run, job.outcome(run=1)) == (2, outcome)
    assert len(list(fleet.batch(name).as_completed(timeout=20))) == 1
    assert (fleet.batch(name).counts, fleet.batch(name).codes) == ((1, 1), {"GVISOR_NOT_AVAILABLE": 1})
    assert fleet.dead.requeue(job.id, run=1) == job, "a second click"
    assert job.outcome(timeout=0) == second, "does nothing"
    assert fleet.dead.purge() >= 1
    assert fleet.dead.list() == []
    with pytest.raises(JobUnknown):
        fleet.dead.requeue(job.id)


def test_attempts_are_as_many_as_the_spec_allows(stand_in_fleet: Fleet) -> None:
    fleet = stand_in_fleet
    broken = BROKEN.model_dump(exclude_defaults=True)
    for fields, expected in (({}, 3), ({"max_attempts": 1}, 1), ({"retry_on": ["WORKER_LOST"]}, 1)):
        assert len(fleet.submit(broken | fields).outcome(timeout=20).attempts) == expected
    retried = fleet.submit(shell("exit 3", retry_on=["EXIT_NONZERO"], max_attempts=4)).outcome(timeout=20)
    assert [attempt.code for attempt in retried.attempts] == [ErrorCode.EXIT_NONZERO] * 4
    fleet.dead.purge()
