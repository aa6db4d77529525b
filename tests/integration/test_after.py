"""Jobs that wait for other jobs or batches (`after`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from placing_hosts import HostOfTest, end, read_why, sweep_all, take
from sandfleet import BatchLimits, ErrorCode, SpecInvalid
from sandfleet_config.queues import KEY_PREFIX

if TYPE_CHECKING:
    from sandfleet import Fleet

SPEC = {"image": "x", "command": ["true"]}


def waits(*job_ids: str, **fields: Any) -> dict[str, Any]:
    return SPEC | {"after": list(job_ids)} | fields


def left(client: Any) -> list[bytes]:
    """Return the keys of groups."""
    return [
        key for kind in ("after:", "awaiting:", "awaited:", "groups") for key in client.keys(f"{KEY_PREFIX}{kind}*")
    ]


def test_a_job_starts_when_those_before_it_have_ended_ok(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    first, second = fleet.submit_many([SPEC] * 2)
    third = fleet.submit(waits(first.id, second.id))
    claims = [take(one), take(one)]
    assert one.claim() is None
    assert read_why(fleet, third) == f"waits until job {first.id}, job {second.id} have ended OK (after)"
    end(one, claims[0])
    assert one.claim() is None
    end(one, claims[1])
    one.takes(third)
    assert left(client) == []


def test_what_is_ready_at_submit_does_not_wait(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    first = fleet.submit(SPEC)
    end(one, take(one))
    one.takes(fleet.submit(waits(first.id)))
    assert left(client) == []


def test_a_job_is_cancelled_if_one_before_it_failed_and_so_are_those_after_it(
    fleet: Fleet, client: Any, one: HostOfTest
) -> None:
    first = fleet.submit(SPEC)
    second = fleet.submit(waits(first.id))
    third = fleet.submit(waits(second.id))
    end(one, take(one), ErrorCode.EXIT_NONZERO)
    sweep_all(one, client)
    assert one.claim() is None
    found = [job.outcome(timeout=0) for job in (second, third)]
    assert [outcome.code for outcome in found] == ["CANCELLED", "CANCELLED"]
    assert found[0].message == (
        f"cancelled before it started: job {first.id} ended with EXIT_NONZERO, and it was to start after that had ended OK"
    )
    assert f"job {second.id} ended with CANCELLED" in found[1].message
    assert left(client) == []


def test_a_batch_waits_for_a_whole_batch(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    fleet.submit(SPEC, batch="prepare")
    fleet.submit(SPEC, batch="prepare")
    solve = fleet.submit_many([SPEC | {"after": {"batches": ["prepare"]}}] * 700, batch="solve")
    assert read_why(fleet, solve[0]) == "waits until batch prepare has ended OK (after)"
    end(one, take(one))
    end(one, take(one))
    sweep_all(one, client)
    assert one.claim() is None, "more jobs may come: it is not sealed"
    fleet.batch("prepare").seal()
    sweep_all(one, client)
    assert [take(one).job_id for _ in range(700)] == [job.id for job in solve]
    assert left(client) == []


def test_a_batch_after_a_failed_one_is_cancelled_at_once(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    fleet.submit_many([SPEC] * 3, batch="prepare")
    fleet.submit_many([SPEC | {"after": {"batches": ["prepare"]}}] * 500, batch="solve")
    end(one, take(one))
    end(one, take(one), ErrorCode.TIMEOUT)
    sweep_all(one, client)
    batch = fleet.batch("solve")
    assert batch.codes == {"CANCELLED": 500}
    assert {outcome.message for outcome in batch.outcomes()} == {
        "cancelled before it started: of batch prepare 1 job has ended with TIMEOUT, and it was to start after that had ended OK"
    }


def test_at_most_holds_for_jobs_that_waited(fleet: Fleet, one: HostOfTest) -> None:
    first = fleet.submit(SPEC)
    claim = take(one)
    fleet.submit_many([waits(first.id)] * 5, batch="b", limits=BatchLimits(at_most=2))
    end(one, claim)
    take(one)
    last = take(one)
    assert one.claim() is None
    end(one, last)
    take(one)


def test_the_order_is_kept_through_a_workers_death(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    two = HostOfTest(client, "two", contract=5)
    first = fleet.submit(SPEC)
    second = fleet.submit(waits(first.id))
    take(two)
    client.zadd(f"{KEY_PREFIX}owners", {"two:1:1": 1})
    _, ((claim, _),) = one.ledger.reap(may_take=True)
    assert one.claim() is None
    assert one.ledger.retry(claim, ErrorCode.WORKER_LOST)
    again = take(one)
    assert again.job_id == first.id
    assert one.claim() is None
    end(one, again)
    one.takes(second)


def test_an_end_that_an_older_worker_recorded_is_found_by_a_sweep_all(
    fleet: Fleet, client: Any, one: HostOfTest
) -> None:
    first = fleet.submit(SPEC)
    second = fleet.submit(waits(first.id))
    client.hdel(f"{KEY_PREFIX}job:{first.id}", "awaited")
    end(one, take(one))
    assert one.claim() is None
    sweep_all(one, client)
    one.takes(second)


def test_a_job_that_waits_can_be_cancelled(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    first = fleet.submit(SPEC)
    second = fleet.submit(waits(first.id))
    assert second.cancel().is_ended
    end(one, take(one))
    assert one.claim() is None
    sweep_all(one, client)
    assert left(client) == []


def test_what_has_ended_ok_stays_so_after_its_record_expired(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    first, second = fleet.submit_many([SPEC] * 2)
    third = fleet.submit(waits(first.id, second.id))
    end(one, take(one))
    client.delete(f"{KEY_PREFIX}job:{first.id}")
    end(one, take(one))
    one.takes(third)


def test_a_record_that_is_lost_cancels_what_waits_for_it(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    first = fleet.submit(SPEC)
    second = fleet.submit(waits(first.id))
    client.delete(f"{KEY_PREFIX}job:{first.id}")
    sweep_all(one, client)
    assert f"job {first.id} is not known any more" in second.outcome(timeout=0).message


def test_the_next_run_of_a_cancelled_job_waits_again(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    first = fleet.submit({**SPEC, "max_attempts": 1})
    second = fleet.submit(waits(first.id))
    end(one, take(one), ErrorCode.WORKER_LOST, reason="no attempt is left")
    message = client.hget(f"{KEY_PREFIX}job:{second.id}", "message")
    sweep_all(one, client)
    assert second.is_done
    fleet.dead.requeue(first.id)
    client.hset(f"{KEY_PREFIX}dead:{second.id}", mapping={"message": message, "queue": "sandfleet", "run": 1})
    fleet.dead.requeue(second.id)
    claim = take(one)
    assert claim.job_id == first.id
    assert one.claim() is None
    end(one, claim)
    one.takes(second)


def test_what_does_not_exist_is_refused_and_nothing_is_queued(fleet: Fleet, client: Any) -> None:
    fleet.submit(SPEC, batch="a")
    for after, told in (
        (["no-such-job"], "after.jobs: there is no job no-such-job"),
        ({"batches": ["nightly"]}, "after.batches: there is no batch nightly"),
        ({"batches": ["b"]}, "a job of batch b cannot wait for its own batch"),
    ):
        for submit in (
            lambda spec: fleet.submit(spec, batch="b"),
            lambda spec: fleet.submit_many([SPEC, spec], batch="b"),
        ):
            with pytest.raises(SpecInvalid) as caught:
                submit({**SPEC, "after": after})
            assert told in caught.value.message
            assert client.exists(f"{KEY_PREFIX}batch:b") == 0
    assert left(client) == []


def test_nothing_can_wait_for_itself(fleet: Fleet) -> None:
    fleet.submit(SPEC, batch="a")
    fleet.submit({**SPEC, "after": {"batches": ["a"]}}, batch="b")
    with pytest.raises(SpecInvalid, match="other jobs wait for batch a, so its new jobs cannot wait for others"):
        fleet.submit({**SPEC, "after": {"batches": ["b"]}}, batch="a")
    fleet.submit(SPEC, batch="a")
