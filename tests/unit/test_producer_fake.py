from __future__ import annotations

from collections.abc import Iterator

import pytest
from sandfleet import (
    ErrorCode,
    HostResources,
    JobExists,
    JobUnknown,
    Outcome,
    OutOfMemory,
    SandboxResult,
    SandboxSpec,
    SpecTooLarge,
)
from sandfleet.testing.fake_fleet import Ending, FakeFleet
from sandfleet_config.settings import Settings

SPEC = SandboxSpec(image="x", labels={"name": "n"})


def test_without_a_handler_every_job_is_ok() -> None:
    with FakeFleet() as fleet:
        result = fleet.submit(SPEC).result()
    assert (result.exit_code, result.stdout) == (0, "")
    assert fleet.specs == [SPEC]


def test_a_handler_returns_results_outcomes_or_errors() -> None:
    endings: Iterator[Ending] = iter(
        [
            SandboxResult(exit_code=3, stdout="out", stderr="err", duration=1.0),
            Outcome.of(ErrorCode.SIGNALED, "other", signal=11),
            OutOfMemory.of("too big"),
        ]
    )
    fleet = FakeFleet(lambda _: next(endings))
    outcomes = [job.outcome() for job in fleet.submit_many([SPEC] * 3, batch="b")]
    assert [outcome.code for outcome in outcomes] == [
        ErrorCode.EXIT_NONZERO,
        ErrorCode.SIGNALED,
        ErrorCode.OUT_OF_MEMORY,
    ]
    assert {outcome.batch for outcome in outcomes} == {"b"}
    assert all(outcome.labels == {"name": "n"} and outcome.spec_sha256 for outcome in outcomes)
    assert outcomes[0].stdout.text == "out"
    assert fleet.job(outcomes[1].job_id).outcome() == outcomes[1]


def test_a_handler_may_raise_the_error() -> None:
    def fail(_: SandboxSpec) -> None:
        raise OutOfMemory.of("too big")

    assert FakeFleet(fail).submit(SPEC).outcome().code is ErrorCode.OUT_OF_MEMORY


def test_a_job_left_queued_is_ended_by_the_test_and_the_first_end_stands() -> None:
    fleet = FakeFleet(lambda _: None)
    job = fleet.submit(SPEC, job_id="a")
    assert not job.is_done
    fleet.finish("a", SandboxResult(exit_code=0, stdout="", stderr="", duration=0))
    fleet.finish("a", OutOfMemory.of("late"))
    assert job.outcome().is_ok
    with pytest.raises(JobUnknown):
        fleet.finish("b", OutOfMemory.of("x"))
    with pytest.raises(JobExists):
        fleet.submit(SPEC, job_id="a")


def test_the_size_limit_is_that_of_the_settings() -> None:
    with pytest.raises(SpecTooLarge):
        FakeFleet(settings=Settings(max_spec_bytes=20)).submit(SPEC)


def test_nothing_is_queued_of_many_if_one_is_faulty() -> None:
    fleet = FakeFleet()
    with pytest.raises(SpecTooLarge):
        fleet.submit_many([SPEC, SandboxSpec(image="x", command=["y" * 60_000] * 5)])
    assert fleet.specs == []


def test_dead_letters_are_as_bounded_as_in_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: SandboxSpec) -> None:
        raise HostResources.of("no memory")

    for bound, kept in (("MAX_DEAD_LETTERS", 3), ("MAX_DEAD_BYTES", 0)):
        with monkeypatch.context() as patch:
            patch.setattr(f"sandfleet.testing.fake_dead_letters.{bound}", kept)
            fleet = FakeFleet(fail)
            jobs = fleet.submit_many([SPEC] * 5)
            assert [dead.job_id for dead in fleet.dead.list()] == [job.id for job in jobs[:1:-1]][:kept]
            assert fleet.dead.count_dropped() == 5 - kept
