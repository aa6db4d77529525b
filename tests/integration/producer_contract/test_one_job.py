"""Promises about one job: the fake fleet, Redis with a stand-in worker, and a real worker."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from sandfleet import (
    Cancelled,
    CommandNotFound,
    ErrorCode,
    Fleet,
    FleetRunner,
    JobExists,
    JobUnknown,
    ResultTimeout,
    SecurityViolation,
    Signaled,
    SpecInvalid,
    SpecTooLarge,
)
from sandfleet_config.fingerprint import spec_sha256
from stand_in import EXIT_3, HELLO, IMAGE, KILLED, LONG, MISSING


def test_an_outcome_says_how_the_program_ended(fleet: Fleet) -> None:
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


def test_a_faulty_spec_is_refused_at_submit_with_every_fault(fleet: Fleet) -> None:
    with pytest.raises(SpecInvalid) as caught:
        fleet.submit({"image": "", "timeout": -1})
    assert {error["field"] for error in caught.value.errors} == {"image", "timeout"}
    with pytest.raises(SecurityViolation):
        fleet.submit({"image": "x", "security": {"privileged": True}})
    with pytest.raises(SpecTooLarge):
        fleet.submit({"image": "x", "command": ["x" * 60_000] * 5})
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


def test_a_given_job_id_is_accepted_once(fleet: Fleet) -> None:
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


def test_execute_returns_the_value_of_the_code(fleet: Fleet) -> None:
    from sandfleet import Config

    result = fleet.execute("echo hello", "sh", timeout=20, config=Config(image=IMAGE))
    assert (result.stdout, result.exit_code, result.backend.kind) == ("hello\n", 0, "gvisor")
