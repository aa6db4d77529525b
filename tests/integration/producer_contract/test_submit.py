"""Submitting many jobs: the fake fleet, Redis with a stand-in worker, and a real worker."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet import (
    BatchUnknown,
    ErrorCode,
    Fleet,
    IdempotencyConflict,
    Job,
    SandboxSpec,
    SecurityViolation,
    SpecInvalid,
    SpecTooLarge,
)
from stand_in import EXIT_3, HELLO, LONG, shell

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

from fleets import unique


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


def test_every_faulty_spec_of_a_list_is_reported_at_once(fleet: Fleet) -> None:
    name = unique("batch")
    bad = {"image": "", "command": "ls", "timeout": -1}
    specs: list[Any] = [HELLO, bad, HELLO.model_dump(), {"image": "x", "command": ["x" * 60_000] * 5}, HELLO, None]
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


def test_progress_is_reported_as_jobs_are_queued(fleet: Fleet) -> None:
    name, progress = unique("batch"), [0]
    jobs = fleet.submit_many([LONG] * 600, batch=name, queue="nobody", on_progress=progress.append)
    assert progress[-1] == len(jobs) == 600
    assert len(progress) > 2
    assert progress == sorted(progress)
    fleet.batch(name).cancel()


def test_jobs_are_submitted_from_an_event_loop(fleet: Fleet) -> None:
    specs, name, progress = [HELLO, EXIT_3] * 3, unique("batch"), [0]

    async def produce(count: int) -> AsyncIterator[SandboxSpec]:
        for spec in specs[:count]:
            await asyncio.sleep(0)
            yield spec

    async def submit() -> None:
        half = await fleet.submit_many_async(produce(3), batch=name, idempotent=True)
        jobs = await fleet.submit_many_async(produce(6), batch=name, idempotent=True, on_progress=progress.append)
        assert jobs[:3] == half
        assert await fleet.submit_many_async(specs, batch=name, idempotent=True) == jobs
        assert await fleet.submit_many_async(iter(specs), batch=name, idempotent=True) == jobs
        assert progress[-1] == 6
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


def test_an_error_of_the_source_is_raised_after_the_jobs_before_it_are_queued(fleet: Fleet) -> None:
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


def test_an_abandoned_submit_queues_nothing_more(fleet: Fleet) -> None:
    name = unique("batch")
    chunks = fleet.submit_chunks(iter([LONG] * 2000), batch=name, queue="nobody")
    first = next(chunks)
    chunks.close()  # type: ignore[attr-defined]
    assert fleet.batch(name).job_ids == [job.id for job in first]
    fleet.batch(name).cancel()
