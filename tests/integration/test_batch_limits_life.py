"""Limits of batches over time: they end with their batch, and many waiting jobs keep none from its stop."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from placing_hosts import HostOfTest, end, sweep, take
from sandfleet import BatchLimits, ErrorCode
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_worker.delivery.envelope import open_message
from sandfleet_worker.delivery.parked_jobs import ParkedJobs
from sandfleet_worker.delivery.read_message import read_message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet import Fleet

SPEC = {"image": "x", "command": ["true"]}
LIMITS = f"{KEY_PREFIX}limits:b"
MEMBERS = f"{KEY_PREFIX}batch:b"


def count_calls(client: Any, command: str) -> int:
    return int(client.info("commandstats").get(f"cmdstat_{command}", {}).get("calls", 0))


def test_limits_go_with_their_batch_so_that_the_next_of_its_name_has_none(
    fleet: Fleet, client: Any, one: HostOfTest
) -> None:
    fleet.submit_many([SPEC] * 3, batch="b", limits=BatchLimits(fail_fast=True))
    end(one, take(one), ErrorCode.EXIT_NONZERO)
    sweep(one)
    assert fleet.batch("b").is_done
    for change in (
        lambda: None,
        lambda: fleet.batch("b").hold(),
        lambda: fleet.batch("b").set_limits(BatchLimits(max_failures=1)),
        lambda: fleet.submit({**SPEC, "after": {"batches": ["b"]}}),
    ):
        change()
        assert 0 < client.ttl(LIMITS) <= client.ttl(MEMBERS)


def test_the_limits_of_a_batch_that_goes_on_stay(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    fleet.submit_many([SPEC] * 2, batch="b", limits=BatchLimits(at_most=1))
    end(one, take(one))
    assert client.ttl(LIMITS) > 29 * 86400


def test_a_lower_number_at_once_holds_for_jobs_that_were_let_go(fleet: Fleet, one: HostOfTest) -> None:
    fleet.submit_many([SPEC] * 10, batch="b", limits=BatchLimits(at_most=6))
    running = [take(one)]
    fleet.batch("b").set_limits(BatchLimits(at_most=2))
    running += [take(one)]
    assert one.claim() is None, "four more had a place, and no worker"
    started = 2
    while running:
        end(one, running.pop())
        if (claim := one.claim()) is not None:
            running.append(claim)
            started += 1
    assert started == 10


def test_failures_are_counted_anew_after_a_retry_has_lifted_a_stop(fleet: Fleet, one: HostOfTest) -> None:
    fleet.submit_many([SPEC] * 5, batch="b", limits=BatchLimits(max_failures=2))
    for _ in range(2):
        end(one, take(one), ErrorCode.EXIT_NONZERO)
    sweep(one)
    batch = fleet.batch("b")
    batch.retry(codes=["CANCELLED"])
    end(one, take(one), ErrorCode.EXIT_NONZERO)
    assert (batch.limits.failures, batch.limits.stopped) == (1, "")
    batch.retry(codes=["EXIT_NONZERO"])
    assert batch.limits.failures == 0, "a next run takes back the failure that counts, and no other"


def test_many_jobs_that_wait_for_others_do_not_keep_a_stopped_batch_waiting(
    fleet: Fleet, client: Any, one: HostOfTest
) -> None:
    firsts = fleet.submit_many([SPEC] * 300)
    fleet.submit_many([{**SPEC, "after": [job.id]} for job in firsts])
    fleet.submit_many([SPEC | {"priority": 0}] * 3, batch="b", limits=BatchLimits(fail_fast=True))
    end(one, take(one), ErrorCode.EXIT_NONZERO)
    client.zadd(f"{KEY_PREFIX}groups", dict.fromkeys(client.zrange(f"{KEY_PREFIX}groups", 0, -1), 1))
    ParkedJobs(one.ledger, one.ledger.read_fields).sweep()
    assert fleet.batch("b").codes == {"EXIT_NONZERO": 1, "CANCELLED": 2}


def test_a_batch_that_is_stopped_again_and_again_does_not_keep_jobs_that_wait_for_others(
    fleet: Fleet, client: Any, one: HostOfTest
) -> None:
    first = fleet.submit({**SPEC, "priority": 0})
    waiting = fleet.submit({**SPEC, "after": [first.id]})
    for number in range(30):
        name = f"b{number}"
        fleet.submit_many([SPEC] * 2, batch=name, limits=BatchLimits(at_most=1))
    client.delete(f"{KEY_PREFIX}job:{first.id}")
    for key in ("limited", "groups"):
        client.zadd(f"{KEY_PREFIX}{key}", dict.fromkeys(client.zrange(f"{KEY_PREFIX}{key}", 0, -1), 1))
    ParkedJobs(one.ledger, one.ledger.read_fields).sweep()
    assert waiting.outcome(timeout=0).code is ErrorCode.CANCELLED


def test_an_end_in_a_batch_costs_the_same_however_many_wait_for_it(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    fleet.submit_many([SPEC] * 4, batch="b")
    first = fleet.submit(SPEC)
    others = [fleet.submit(SPEC) for _ in range(100)]
    for other in others:
        fleet.submit({**SPEC, "after": {"batches": ["b"], "jobs": [first.id, other.id]}})
    client.config_resetstat()
    end(one, take(one))
    assert count_calls(client, "zadd") < 10
    end(one, take(one), ErrorCode.EXIT_NONZERO)
    client.config_resetstat()
    end(one, take(one))
    assert count_calls(client, "zadd") < 40, "at most 20 groups are looked at; a sweep finds the others"
    sweep(one)
    for _ in range(20):
        client.zadd(f"{KEY_PREFIX}groups", dict.fromkeys(client.zrange(f"{KEY_PREFIX}groups", 0, -1) or ["x"], 1))
        sweep(one)
    assert client.zcard(f"{KEY_PREFIX}groups") == 0


def test_a_changed_run_is_not_begun_by_a_message_that_an_earlier_priority_left_behind(
    fleet: Fleet, one: HostOfTest
) -> None:
    fleet.submit_many([SPEC] * 2, batch="b")
    batch = fleet.batch("b")
    assert batch.set_priority(0) == 2, "second messages, in the list of that priority"
    for _ in range(2):
        end(one, take(one), ErrorCode.TIMEOUT)
    assert batch.retry(changes={"timeout": 60}).queued == 2
    for _ in range(2):
        claim = take(one)
        message = read_message(open_message(claim), 1 << 20)
        assert message is not None
        assert message.request is not None
        assert (claim.run, message.request.spec.timeout) == (2, 60)
        end(one, claim)
    assert one.claim() is None


def test_a_deadline_holds_for_jobs_that_come_when_the_batch_was_empty_or_had_ended(
    fleet: Fleet, one: HostOfTest
) -> None:
    def come_slowly() -> Iterator[dict[str, Any]]:
        sweep(one)  # nothing of the batch is there yet
        yield SPEC

    limits = BatchLimits(deadline=1.5)
    (first,) = fleet.submit_many(come_slowly(), batch="slow", limits=limits)
    fleet.submit_many([SPEC | {"priority": 0}], batch="again", limits=limits)
    end(one, take(one))
    sweep(one)  # all of it has ended
    later = fleet.submit(SPEC, batch="again")
    fleet.submit_many([SPEC | {"priority": 0}], batch="retried", limits=limits)
    end(one, take(one), ErrorCode.EXIT_NONZERO)
    sweep(one)
    assert fleet.batch("retried").retry().queued == 1
    time.sleep(1.6)
    sweep(one)
    for job in (first, later, *fleet.batch("retried").jobs):
        assert job.is_done, "no worker claimed a job of it meanwhile"
        assert job.outcome(timeout=0).code is ErrorCode.EXPIRED


def test_the_job_whose_end_stops_its_batch_gets_no_cancel_mark(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    limits = BatchLimits.model_validate({"fail_fast": True, "on_stop": "kill"})
    fleet.submit_many([SPEC] * 2, batch="b", limits=limits)
    failing, running = take(one), take(one)
    end(one, failing, ErrorCode.EXIT_NONZERO)
    assert client.exists(f"{KEY_PREFIX}cancel:{running.job_id}")
    assert not client.exists(f"{KEY_PREFIX}cancel:{failing.job_id}")
    end(one, running)
