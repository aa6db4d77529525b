"""Limits of a batch as people write them, and what the fake fleet makes of them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError
from rows import each_row
from sandfleet import BatchLimits, ErrorCode, SandboxResult, SandboxSpec
from sandfleet.testing import FakeFleet
from sandfleet_config.units import parse_seconds

if TYPE_CHECKING:
    from sandfleet.testing import Ending

SPEC = SandboxSpec(image="x")
BAD = SandboxSpec(image="bad")


def run(spec: SandboxSpec) -> Ending:
    return SandboxResult(exit_code=int(spec.image == "bad"), stdout="", stderr="", duration=0.0)


@each_row(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("45m", 2700), ("1h30m", 5400), ("2d", 172800), ("0.5h", 1800)]
)
def test_a_time_is_read_as_people_type_it(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@each_row(
    ("fields", "told"),
    [
        ({"max_failures": 0}, "max_failures"),
        ({"at_most": 0}, "at_most"),
        ({"deadline": 0}, "deadline"),
        ({"deadline": "2 hours"}, "must be seconds, or a time such as 90s, 45m, 1h30m or 2d"),
        ({"deadline": "31d"}, "deadline"),
        ({"on_stop": "pause"}, "on_stop"),
        ({"fail_fast": True, "max_failures": 5}, "fail_fast is max_failures=1: give one of them"),
        ({"atmost": 3}, "atmost"),
    ],
)
def test_a_faulty_limit_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        BatchLimits.model_validate(fields)


def test_the_fake_fleet_stops_a_batch() -> None:
    fleet = FakeFleet(run)
    jobs = fleet.submit_many([BAD, SPEC, BAD, SPEC, SPEC], batch="b", limits=BatchLimits(max_failures=2))
    assert [job.outcome().code for job in jobs] == ["EXIT_NONZERO", "OK", "EXIT_NONZERO", "CANCELLED", "CANCELLED"]
    assert jobs[4].outcome().message == "batch b stopped: 2 of its jobs failed (--max-failures 2)"
    assert len(fleet.specs) == 5


def test_the_fake_fleet_runs_at_most_so_many_at_once() -> None:
    fleet = FakeFleet(lambda _: None)
    jobs = fleet.submit_many([SPEC] * 3, batch="b", limits=BatchLimits(at_most=1))
    records = [fleet.record(job.id) for job in jobs]
    assert [bool(record and record.why) for record in records] == [False, True, True]
    for job in jobs:
        fleet.finish(job.id, run(SPEC))
    assert fleet.batch("b").codes == {"OK": 3}


def test_ten_thousand_jobs_one_at_a_time_need_no_deep_stack() -> None:
    fleet = FakeFleet(run)
    fleet.submit_many([SPEC], batch="b")
    fleet.batch("b").hold()
    fleet.submit_many([SPEC] * 2000, batch="b", limits=BatchLimits(max_failures=1))
    assert fleet.batch("b").release() == 2000
    assert fleet.batch("b").is_done


def test_a_handler_that_blocks_holds_up_no_other_thread() -> None:
    gate = threading.Event()
    fleet = FakeFleet(lambda spec: run(spec) if spec.image != "slow" or gate.wait(10) else None)
    slow = threading.Thread(target=fleet.submit, args=[SandboxSpec(image="slow")])
    slow.start()
    assert fleet.submit(SPEC).outcome(timeout=0).code is ErrorCode.OK
    gate.set()
    slow.join()


def test_the_fake_fleet_obeys_a_deadline() -> None:
    fleet = FakeFleet(run)
    fleet.submit_many([SPEC], batch="b")
    fleet.batch("b").hold()
    fleet.submit_many([SPEC], batch="b", limits=BatchLimits(deadline=1e-9))
    (_, job) = fleet.batch("b").jobs
    assert job.outcome().code is ErrorCode.EXPIRED
