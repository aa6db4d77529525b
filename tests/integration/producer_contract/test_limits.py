"""Limits of a batch and `after`: the fake fleet and a real worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fleets import FLEETS, open_fleet, unique
from sandfleet import BatchLimits, BatchUnknown, ErrorCode, Fleet, SpecInvalid
from stand_in import EXIT_3, HELLO, LONG

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=[FLEETS[0], FLEETS[2]])
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """A fleet that knows the limits; the stand-in worker does not."""
    with open_fleet(request.param, request) as fleet:
        yield fleet


def test_a_batch_stops_at_its_first_failure(fleet: Fleet) -> None:
    name = unique("batch")
    jobs = fleet.submit_many([HELLO, EXIT_3, *[HELLO] * 30], batch=name, limits=BatchLimits(fail_fast=True))
    found = [job.outcome(timeout=60) for job in jobs]
    codes = {outcome.code for outcome in found}
    assert codes == {"OK", "EXIT_NONZERO", "CANCELLED"}
    assert {outcome.message for outcome in found if outcome.code == "CANCELLED"} == {
        f"batch {name} stopped: 1 of its jobs failed (--fail-fast)"
    }
    assert fleet.batch(name).is_done


def test_all_jobs_of_a_batch_end_one_at_a_time(fleet: Fleet) -> None:
    jobs = fleet.submit_many([HELLO] * 6, batch=unique("batch"), limits=BatchLimits(at_most=1))
    assert [outcome.code for outcome in fleet.as_completed(jobs, timeout=60)] == ["OK"] * 6


def test_a_held_batch_goes_on_after_its_release(fleet: Fleet) -> None:
    name = unique("batch")
    fleet.submit(HELLO, batch=name).outcome(timeout=60)
    batch = fleet.batch(name)
    batch.hold()
    jobs = fleet.submit_many([HELLO] * 3, batch=name)
    assert batch.set_priority(0) == 3
    assert not any(job.is_done for job in jobs)
    assert batch.release() == 3
    assert [job.outcome(timeout=60).code for job in jobs] == ["OK"] * 3


def test_a_job_after_others_starts_or_is_cancelled(fleet: Fleet) -> None:
    good, bad = fleet.submit(HELLO), fleet.submit(EXIT_3)
    starts = fleet.submit({**HELLO.model_dump(), "after": {"jobs": [good.id]}})
    fails = fleet.submit({**HELLO.model_dump(), "after": [good.id, bad.id]})
    assert starts.outcome(timeout=60).code is ErrorCode.OK
    outcome = fails.outcome(timeout=60)
    assert outcome.code is ErrorCode.CANCELLED
    assert f"job {bad.id} ended with EXIT_NONZERO" in outcome.message


def test_a_batch_after_a_batch(fleet: Fleet) -> None:
    first, second = unique("first"), unique("second")
    fleet.submit_many([HELLO] * 3, batch=first)
    jobs = fleet.submit_many([{**HELLO.model_dump(), "after": {"batches": [first]}}] * 3, batch=second)
    assert [job.outcome(timeout=60).code for job in jobs] == ["OK"] * 3


def test_what_does_not_exist_is_refused(fleet: Fleet) -> None:
    with pytest.raises(SpecInvalid, match=r"after\.jobs: there is no job nobody"):
        fleet.submit({**HELLO.model_dump(), "after": ["nobody"]})
    with pytest.raises(SpecInvalid, match=r"after\.batches: there is no batch of-nobody"):
        fleet.submit_many([HELLO, {**HELLO.model_dump(), "after": {"batches": ["of-nobody"]}}])
    with pytest.raises(BatchUnknown):
        fleet.batch("of-nobody").hold()


def test_a_stop_that_kills_ends_what_runs(fleet: Fleet) -> None:
    name = unique("batch")
    jobs = fleet.submit_many([LONG, EXIT_3], batch=name, limits=BatchLimits(fail_fast=True, on_stop="kill"))
    found = [job.outcome(timeout=60) for job in jobs]
    assert [outcome.code for outcome in found] == ["CANCELLED", "EXIT_NONZERO"]
    assert found[0].message == f"batch {name} stopped: 1 of its jobs failed (--fail-fast)"


def test_a_batch_that_its_deadline_stopped_has_none_after_a_retry(fleet: Fleet) -> None:
    name = unique("batch")
    limits = BatchLimits(at_most=1, deadline=3, on_stop="kill")
    jobs = fleet.submit_many([LONG, HELLO], batch=name, limits=limits)
    found = [job.outcome(timeout=60) for job in jobs]
    assert [outcome.code for outcome in found] == ["CANCELLED", "EXPIRED"]
    assert {outcome.message for outcome in found} == {f"batch {name} stopped: its deadline is over (--deadline 3 s)"}
    batch = fleet.batch(name)
    assert batch.retry(codes=["EXPIRED"]).queued == 1
    assert jobs[1].outcome(timeout=60).code is ErrorCode.OK
    assert (batch.limits.deadline, batch.limits.stopped) == (None, "")


def test_a_batch_that_its_deadline_stopped_has_none_after_a_release(fleet: Fleet) -> None:
    name = unique("batch")
    fleet.submit(HELLO, batch=name).outcome(timeout=60)
    batch = fleet.batch(name)
    batch.hold()
    (job,) = fleet.submit_many([HELLO], batch=name, limits=BatchLimits(deadline=0.5))
    assert job.outcome(timeout=60).code is ErrorCode.EXPIRED
    batch.release()
    assert fleet.submit(HELLO, batch=name).outcome(timeout=60).code is ErrorCode.OK


def test_the_next_run_of_a_job_takes_its_failure_back(fleet: Fleet) -> None:
    name = unique("batch")
    jobs = fleet.submit_many([EXIT_3, EXIT_3, HELLO], batch=name, limits=BatchLimits(max_failures=3))
    assert [job.outcome(timeout=60).code for job in jobs] == ["EXIT_NONZERO", "EXIT_NONZERO", "OK"]
    batch = fleet.batch(name)
    assert batch.limits.failures == 2
    assert batch.retry(changes={"command": list(HELLO.command)}).queued == 2
    assert [job.outcome(timeout=60).code for job in jobs] == ["OK"] * 3
    assert (batch.limits.failures, batch.limits.stopped) == (0, "")
