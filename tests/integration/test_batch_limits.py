"""Limits of a batch: its stop, the number of running jobs, hold, release and priority."""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from placing_hosts import HostOfTest, end, read_why, sweep, sweep_all, take
from sandfleet import BatchLimits, ErrorCode
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, job_key

if TYPE_CHECKING:
    from sandfleet import Fleet

SPEC = {"image": "x", "command": ["true"]}


def test_ten_thousand_jobs_that_all_fail_are_stopped_after_twenty(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    jobs, slots = 10_000, 4
    fleet.submit_many([SPEC] * jobs, batch="nightly", limits=BatchLimits(max_failures=20))
    running = [take(one) for _ in range(slots)]
    started = slots
    while running:
        end(one, running.pop(0), ErrorCode.EXIT_NONZERO)
        if (claim := one.claim()) is not None:
            running.append(claim)
            started += 1
    assert started <= 20 + slots
    sweep(one)
    batch = fleet.batch("nightly")
    assert batch.counts == (jobs, jobs), "each of them has its end"
    assert batch.codes == {"EXIT_NONZERO": started, "CANCELLED": jobs - started}
    outcomes = batch.outcomes()
    assert Counter(outcome.code for outcome in outcomes) == {"EXIT_NONZERO": started, "CANCELLED": jobs - started}
    told = {outcome.message for outcome in outcomes if outcome.code == "CANCELLED"}
    assert told == {"batch nightly stopped: 20 of its jobs failed (--max-failures 20)"}
    assert one.claim() is None
    assert client.llen(f"{KEY_PREFIX}{DEFAULT_QUEUE}\x06\x166") == 0
    assert client.zcard(f"{KEY_PREFIX}limited") == 0


def test_what_ended_ok_or_was_cancelled_by_a_person_is_no_failure(fleet: Fleet, one: HostOfTest) -> None:
    jobs = fleet.submit_many([SPEC] * 6, batch="b", limits=BatchLimits(max_failures=2))
    jobs[5].cancel()
    end(one, take(one))
    end(one, take(one), ErrorCode.TIMEOUT)
    end(one, take(one))
    end(one, take(one), ErrorCode.OUT_OF_MEMORY)
    assert one.claim() is None
    sweep(one)
    assert jobs[4].outcome(timeout=0).message == "batch b stopped: 2 of its jobs failed (--max-failures 2)"


def test_fail_fast_keeps_what_runs_or_kills_it(fleet: Fleet, one: HostOfTest) -> None:
    for on_stop in ("keep", "kill"):
        limits = BatchLimits.model_validate({"fail_fast": True, "on_stop": on_stop})
        fleet.submit_many([SPEC] * 3, batch=on_stop, limits=limits)
        failing, running = take(one), take(one)
        end(one, failing, ErrorCode.SIGNALED)
        cancelled, *_ = one.ledger.beat(600, [running])
        stopped = f"batch {on_stop} stopped: 1 of its jobs failed (--fail-fast)"
        assert cancelled == ({running.job_id: stopped} if on_stop == "kill" else {})
        sweep(one)
        end(one, running)
        assert fleet.batch(on_stop).codes == {"SIGNALED": 1, "OK": 1, "CANCELLED": 1}


def test_a_stopped_batch_ends_what_goes_back_to_the_queue_and_what_comes_later(fleet: Fleet, one: HostOfTest) -> None:
    fleet.submit_many([SPEC] * 2, batch="b", limits=BatchLimits(fail_fast=True))
    failing, running = take(one), take(one)
    end(one, failing, ErrorCode.EXIT_NONZERO)
    assert one.ledger.retry(running, ErrorCode.HOST_RESOURCES)
    (later,) = fleet.submit_many([SPEC], batch="b")
    assert one.claim() is None
    sweep(one)
    retried = fleet.job(running.job_id).outcome(timeout=0)
    assert (retried.code, len(retried.attempts)) == (ErrorCode.CANCELLED, 1)
    assert later.outcome(timeout=0).message.startswith("batch b stopped: 1 of its jobs failed")


def test_a_release_or_new_limits_lift_a_stop(fleet: Fleet, one: HostOfTest) -> None:
    for lift in (lambda: fleet.batch("b").release(), lambda: fleet.batch("b").set_limits(BatchLimits(fail_fast=True))):
        fleet.submit_many([SPEC], batch="b", limits=BatchLimits(fail_fast=True))
        end(one, take(one), ErrorCode.EXIT_NONZERO)
        lift()
        (job,) = fleet.submit_many([SPEC], batch="b")
        one.takes(job)
        fleet.batch("b").forget()


def test_the_same_limits_again_change_nothing_while_jobs_wait(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    limits = BatchLimits(max_failures=2, deadline=3600)
    fleet.submit_many([SPEC] * 3, batch="b", limits=limits, idempotent=True)
    end(one, take(one), ErrorCode.EXIT_NONZERO)
    before = client.hgetall(f"{KEY_PREFIX}limits:b")
    state = fleet.batch("b").limits
    assert (state.limits, state.failures, state.stopped) == (limits, 1, "")
    assert state.deadline is not None
    assert 3590 < state.deadline - time.time() <= 3600
    fleet.submit_many([SPEC] * 3, batch="b", limits=limits, idempotent=True)
    assert client.hgetall(f"{KEY_PREFIX}limits:b") == before
    end(one, take(one), ErrorCode.EXIT_NONZERO)
    assert one.claim() is None


def test_past_its_deadline_a_batch_ends_as_expired(fleet: Fleet, one: HostOfTest) -> None:
    jobs = fleet.submit_many([SPEC] * 3, batch="b", limits=BatchLimits.model_validate({"deadline": "1s"}))
    running = take(one)
    time.sleep(1.05)
    sweep(one)
    end(one, running)
    found = [job.outcome(timeout=0) for job in jobs]
    assert [outcome.code for outcome in found] == ["OK", "EXPIRED", "EXPIRED"]
    assert found[1].message == "batch b stopped: its deadline is over (--deadline 1 s)"


def test_at_most_three_of_a_batch_run_on_all_hosts_and_nobody_waits_behind_it(
    fleet: Fleet, client: Any, one: HostOfTest
) -> None:
    two = HostOfTest(client, "two", contract=5)
    many = fleet.submit_many([SPEC] * 200, batch="b", limits=BatchLimits(at_most=3))
    behind = fleet.submit(SPEC)
    running = [(one, take(one)), (two, take(two)), (one, take(one))]
    assert [claim.job_id for _, claim in running] == [job.id for job in many[:3]], "in the order of submit"
    two.takes(behind)
    assert one.claim() is None
    assert two.claim() is None
    assert read_why(fleet, many[3]) == "batch b runs at most 3 jobs at once (--at-most 3)"

    for number in range(3, 200):
        end(*running.pop(0))
        host = two if number % 2 else one
        running.append((host, take(host)))
        assert running[-1][1].job_id == many[number].id, "in the order of submit"
        assert one.claim() is None
    for host, claim in running:
        end(host, claim)
    assert fleet.batch("b").codes == {"OK": 200}
    assert client.scard(f"{KEY_PREFIX}active:b") == 0


def test_a_retry_keeps_to_at_most_and_comes_before_those_behind_it(fleet: Fleet, one: HostOfTest) -> None:
    jobs = fleet.submit_many([SPEC] * 4, batch="b", limits=BatchLimits(at_most=1))
    first = take(one)
    assert one.ledger.retry(first, ErrorCode.HOST_RESOURCES)
    again = take(one)
    assert again.job_id == first.job_id
    assert one.claim() is None
    end(one, again)
    for job in jobs[1:]:
        claim = take(one)
        assert claim.job_id == job.id
        end(one, claim)


def test_a_dead_workers_jobs_count_until_they_are_taken_over(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    two = HostOfTest(client, "two", contract=5)
    fleet.submit_many([SPEC] * 5, batch="b", limits=BatchLimits(at_most=2))
    for _ in range(2):
        take(two)
    client.zadd(f"{KEY_PREFIX}owners", {"two:1:1": 1})
    assert one.claim() is None, "its sandboxes may still run"
    dead, taken = one.ledger.reap(may_take=True)
    assert dead == "two:1:1"
    assert one.claim() is None
    for claim, _ in taken:
        assert one.ledger.retry(claim, ErrorCode.WORKER_LOST)
    assert {take(one).job_id for _ in range(2)} == {claim.job_id for claim, _ in taken}
    assert one.claim() is None


def test_a_count_that_an_older_worker_left_behind_is_put_right(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    client.sadd(f"{KEY_PREFIX}active:b", "long-gone")
    fleet.submit_many([SPEC] * 2, batch="b", limits=BatchLimits(at_most=1))
    assert one.claim() is None
    sweep_all(one, client)
    take(one)


def test_limits_that_come_while_jobs_run_count_these(fleet: Fleet, one: HostOfTest) -> None:
    fleet.submit_many([SPEC] * 3, batch="b")
    first = take(one)
    fleet.batch("b").set_limits(BatchLimits(at_most=1))
    assert one.claim() is None
    end(one, first)
    take(one)
    assert one.claim() is None


def test_a_held_batch_starts_nothing_until_its_release(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    jobs = fleet.submit_many([SPEC] * 700, batch="b")
    behind = fleet.submit(SPEC)
    batch = fleet.batch("b")
    running = take(one)
    batch.hold()
    one.takes(behind)
    assert one.claim() is None
    assert client.zcard(f"{KEY_PREFIX}parked:b") == 699
    assert read_why(fleet, jobs[1]) == "batch b is held: sandfleet batch release b"
    batch.set_limits(BatchLimits(at_most=100))
    assert read_why(fleet, jobs[1]) == "batch b is held: sandfleet batch release b"
    batch.set_limits(BatchLimits())
    (later,) = fleet.submit_many([SPEC], batch="b")
    end(one, running)
    sweep_all(one, client)
    assert one.claim() is None
    assert jobs[5].cancel().is_ended
    assert batch.release() == 699, "of 700, one ran, one was cancelled, and one came later"
    assert [take(one).job_id for _ in range(5)] == [jobs[n].id for n in (1, 2, 3, 4, 6)], "in the order of submit"
    assert client.zcard(f"{KEY_PREFIX}parked:b") == 0
    later.cancel()


def test_a_release_that_was_interrupted_is_completed_by_a_sweep(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    fleet.submit_many([SPEC] * 900, batch="b")
    fleet.batch("b").hold()
    assert one.claim() is None
    client.hdel(f"{KEY_PREFIX}limits:b", "hold")
    client.zadd(f"{KEY_PREFIX}limited", {"b": 1})
    sweep(one)
    assert client.zcard(f"{KEY_PREFIX}parked:b") == 0
    take(one)


def test_a_parked_job_expires_as_any_other(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    jobs = fleet.submit_many([{**SPEC, "queue_ttl": 0.2}] * 2, batch="b", limits=BatchLimits(at_most=1))
    running = take(one)
    time.sleep(0.3)
    outcome = jobs[1].outcome(timeout=5)
    assert outcome.code is ErrorCode.EXPIRED
    assert "runs at most 1 job at once" in outcome.message
    assert client.zcard(f"{KEY_PREFIX}parked:b") == 0
    end(one, running)


def test_a_new_priority_moves_what_is_queued_and_keeps_the_order(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    others = fleet.submit_many([SPEC] * 400)
    jobs = fleet.submit_many([SPEC] * 400, batch="b")
    assert fleet.batch("b").set_priority(0) == 400
    assert [take(one).job_id for _ in range(400)] == [job.id for job in jobs]
    one.takes(others[0])
    assert client.xlen(f"{KEY_PREFIX}duplicates") == 0
    for job in others[1:]:
        job.cancel()


def test_a_new_priority_costs_little_with_very_many_names_of_queues(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    fleet.submit_many([SPEC] * 4, batch="b")
    client.sadd(f"{KEY_PREFIX}queues", b"\xff", *(f"q-{number}" for number in range(20_000)))
    calls = client.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert fleet.batch("b").set_priority(0) == 4
    assert client.info("commandstats")["cmdstat_evalsha"]["calls"] - calls < 10
    client.delete(f"{KEY_PREFIX}queues")


def test_a_new_priority_reaches_parked_jobs(fleet: Fleet, one: HostOfTest) -> None:
    jobs = fleet.submit_many([SPEC] * 3, batch="b")
    batch = fleet.batch("b")
    batch.hold()
    assert one.claim() is None
    assert batch.set_priority(9) == 3
    other = fleet.submit(SPEC)
    batch.release()
    one.takes(other)
    assert [take(one).job_id for _ in range(3)] == [job.id for job in jobs]


def test_jobs_of_a_batch_with_limits_need_workers_that_know_them(fleet: Fleet, client: Any) -> None:
    old = HostOfTest(client, "old", contract=4)
    (job,) = fleet.submit_many([SPEC], batch="b", limits=BatchLimits(at_most=1))
    assert old.claim() is None
    assert read_why(fleet, job) == "no live host speaks contract version 5"
    assert client.hget(job_key(job.id), "needs").startswith(b'{"contract":5')


def test_limits_without_a_batch_are_refused(fleet: Fleet) -> None:
    with pytest.raises(ValueError, match="limits are those of a batch"):
        fleet.submit_many([SPEC], limits=BatchLimits(at_most=1))


def test_a_job_that_no_host_can_run_gives_its_place_to_others(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    specs: list[dict[str, Any]] = [{**SPEC, "requires": {"gpu": "yes"}}, SPEC]
    stuck, job = fleet.submit_many(specs, batch="b", limits=BatchLimits(at_most=1))
    one.takes(job)
    client.zadd(f"{KEY_PREFIX}delayed", {stuck.id: 1})
    assert one.claim() is None
    assert client.scard(f"{KEY_PREFIX}active:b") == 1


@pytest.mark.parametrize("name", ["limited", "groups", "limits:b", "active:b", "parked:b"])
def test_a_key_of_a_wrong_type_loses_no_job(fleet: Fleet, client: Any, one: HostOfTest, name: str) -> None:
    jobs = fleet.submit_many([SPEC] * 3, batch="b", limits=BatchLimits(at_most=1, max_failures=3))
    client.delete(f"{KEY_PREFIX}{name}")
    client.set(f"{KEY_PREFIX}{name}", "x", ex=60)
    for _ in range(3):
        sweep_all_safely(one, client)
        if (claim := one.claim()) is not None:
            end(one, claim)
    client.delete(f"{KEY_PREFIX}{name}")
    for job in jobs:
        job.cancel()
    assert fleet.batch("b").is_done


def sweep_all_safely(host: HostOfTest, client: Any) -> None:
    """Sweep as if all were due, where the keys may have a wrong type."""
    for key in ("limited", "groups"):
        if client.type(f"{KEY_PREFIX}{key}") == b"zset":
            for name in client.zrange(f"{KEY_PREFIX}{key}", 0, -1):
                client.zadd(f"{KEY_PREFIX}{key}", {name: 1})
    sweep(host)


def test_ten_thousand_jobs_over_the_limit_are_met_once(fleet: Fleet, one: HostOfTest) -> None:
    fleet.submit_many([SPEC] * 10_000, batch="b")
    behind = [fleet.submit(SPEC) for _ in range(2)]
    fleet.batch("b").set_limits(BatchLimits(at_most=1))
    end(one, take(one))
    take(one)

    def count_calls(job_id: str) -> int:
        for calls in range(1, 1000):
            claim, _ = one.ledger.claim(f"count-{job_id}", [DEFAULT_QUEUE], {"free": 1 << 40})
            if claim is not None:
                assert claim.job_id == job_id
                return calls
        raise AssertionError("no end of the claims")

    assert count_calls(behind[0].id) <= 10_000 / 300 + 2, "a call passes some hundred of them"
    assert count_calls(behind[1].id) == 1
    assert sum(fleet.batch("b").cancel().values()) == 10_000


def test_what_a_dead_sweep_has_left_is_ended_by_another(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    fleet.submit_many([SPEC] * 500, batch="b", limits=BatchLimits(fail_fast=True))
    end(one, take(one), ErrorCode.EXIT_NONZERO)
    due = one.ledger.sweep_parked(None)
    assert due is not None
    assert len(due.job_ids) == 199, "the first 200, of which one has ended"
    sweep(HostOfTest(client, "two", contract=5))
    assert fleet.batch("b").counts == (500, 1), "the other one may live: its batch is not due yet"
    sweep_all(HostOfTest(client, "three", contract=5), client)
    assert fleet.batch("b").codes == {"EXIT_NONZERO": 1, "CANCELLED": 499}


def test_a_parked_job_whose_record_is_gone_stops_no_sweep(fleet: Fleet, client: Any, one: HostOfTest) -> None:
    jobs = fleet.submit_many([SPEC] * 500, batch="b", limits=BatchLimits(at_most=1, fail_fast=True))
    for job in jobs[1:400]:
        client.delete(job_key(job.id))
    client.set(job_key(jobs[400].id), "x", ex=60)
    end(one, take(one), ErrorCode.EXIT_NONZERO)
    sweep_all(one, client)
    assert client.zcard(f"{KEY_PREFIX}parked:b") == 0
    assert client.zcard(f"{KEY_PREFIX}limited") == 0
    assert fleet.batch("b").codes == {"EXIT_NONZERO": 1, "CANCELLED": 99}
