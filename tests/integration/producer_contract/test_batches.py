"""Batches, queues, dead letters: the fake fleet, Redis with a stand-in worker, a real worker."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from sandfleet import (
    BatchUnknown,
    CancelState,
    ErrorCode,
    Fleet,
    JobUnknown,
    ResultTimeout,
)
from sandfleet_config.fingerprint import spec_sha256
from stand_in import BROKEN, EXIT_3, HELLO, IMAGE, LONG, shell

if TYPE_CHECKING:
    from collections.abc import Iterator

from fleets import STAND_IN_FLEETS, open_fleet, unique


@pytest.fixture(params=STAND_IN_FLEETS)
def stand_in_fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with open_fleet(request.param, request) as fleet:
        yield fleet


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


def test_a_job_that_no_worker_takes_in_time_expires(stand_in_fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandfleet.collect.polling.FIRST_CHECK_SECONDS", 0.2)
    fleet = stand_in_fleet
    name = unique("batch")
    spec = shell("sleep 60", queue_ttl=0.1, labels={"name": "late"})
    jobs = fleet.submit_many([spec] * 4, queue="nobody", batch=name)
    codes = {outcome.code for outcome in fleet.as_completed(jobs[:2], timeout=20)}
    assert codes == {ErrorCode.EXPIRED}
    assert fleet.job(jobs[2].id).is_done, "no wait is needed"
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


def test_a_queue_name_that_is_not_allowed_is_refused(fleet: Fleet) -> None:
    for name in ("", "a:b", "dead", "x" * 200):
        with pytest.raises(ValueError, match="queue"):
            fleet.submit(HELLO, queue=name)
        with pytest.raises(ValueError, match="queue"):
            fleet.submit_many([HELLO], queue=name)


def test_a_job_without_an_attempt_left_is_a_dead_letter(stand_in_fleet: Fleet) -> None:
    fleet, name = stand_in_fleet, unique("batch")
    job = fleet.submit(BROKEN.model_copy(update={"max_attempts": 2}), batch=name)
    other = fleet.submit(BROKEN.model_copy(update={"max_attempts": 1}))
    outcome = job.outcome(timeout=20)
    assert [attempt.code for attempt in outcome.attempts] == [ErrorCode.GVISOR_NOT_AVAILABLE] * 2
    other.outcome(timeout=20)
    dead = fleet.dead.show(job.id)
    assert (dead.code, dead.batch, dead.queue) == (ErrorCode.GVISOR_NOT_AVAILABLE, name, "sandfleet")
    assert (dead.line, len(dead.attempts), dead.garbage) == (f"{IMAGE} broken-host", 2, "")
    assert abs(dead.at - time.time()) < 30
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
