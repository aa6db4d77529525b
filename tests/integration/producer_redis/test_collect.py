"""Collecting many outcomes: the stream of ended jobs is read in chunks."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from bare_redis import SPEC
from sandfleet_config.codes import ErrorCode
from sandfleet_config.queues import ends_key, result_key
from waiting import wait_until

if TYPE_CHECKING:
    import redis
    from sandfleet import Fleet, Outcome


def end_all(fleet: Fleet, client: Any, count: int) -> list[str]:
    """Submit jobs and cancel them; return their ids in the order of their ends."""
    fleet.submit_many([SPEC] * count, batch="b")
    assert fleet.batch("b").cancel() == {"cancelled": count}
    return [fields[b"id"].decode() for _, fields in client.xrange(ends_key("b"))]


@pytest.mark.parametrize("count", [199, 200, 201, 2200, 2201])
def test_each_outcome_comes_once_in_the_order_of_the_ends(fleet: Fleet, client: redis.Redis, count: int) -> None:
    ids = end_all(fleet, client, count)
    assert [outcome.job_id for outcome in fleet.batch("b").as_completed(timeout=30)] == ids
    assert [outcome.job_id for outcome in fleet.batch("b").outcomes()] == ids


def test_outcomes_come_once_although_connections_break(fleet: Fleet, client: redis.Redis) -> None:
    ids = end_all(fleet, client, 4500)
    seen: list[str] = []
    for outcome in fleet.batch("b").as_completed(timeout=30):
        if len(seen) % 50 == 0:
            client.client_kill_filter(_type="normal", skipme=True)
        seen.append(outcome.job_id)
    assert seen == ids


def test_many_ended_jobs_are_not_read_by_a_script(fleet: Fleet, client: redis.Redis) -> None:
    end_all(fleet, client, 4500)
    batch = fleet.batch("b")
    client.config_resetstat()
    assert sum(1 for _ in batch.as_completed(timeout=30)) == 4500
    calls = client.info("commandstats")
    assert calls["cmdstat_evalsha"]["calls"] <= 2
    assert calls["cmdstat_mget"]["calls"] <= 4500 / 200 + 2


def test_a_notice_brings_the_outcome_and_redis_is_not_asked_for_it(
    fleet: Fleet, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_CHECK_SECONDS", "CHECK_SECONDS"):  # a check asks for all jobs
        monkeypatch.setattr(f"sandfleet.collect.polling.{name}", 60.0)
    jobs = fleet.submit_many([SPEC] * 20)
    found: list[Outcome] = []
    wait = threading.Thread(target=lambda: found.extend(fleet.as_completed(jobs, timeout=30)))
    wait.start()
    wait_until(lambda: client.pubsub_numsub(result_key(jobs[-1].id))[0][1] == 1, 10, "the wait is subscribed")
    wait_until(lambda: client.info("commandstats")["cmdstat_mget"]["calls"] >= 2, 10, "it has asked for all again")
    client.config_resetstat()
    fleet._channel.cancel([job.id for job in jobs])
    wait.join(30)

    assert {outcome.job_id for outcome in found} == {job.id for job in jobs}
    assert {outcome.code for outcome in found} == {ErrorCode.CANCELLED}
    assert "cmdstat_mget" not in client.info("commandstats")


def test_notices_that_are_too_many_bytes_are_asked_for(
    fleet: Fleet, client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandfleet.channel.watches.MAX_KEPT_BYTES", 10)
    jobs = fleet.submit_many([SPEC] * 3)
    found: list[Outcome] = []
    wait = threading.Thread(target=lambda: found.extend(fleet.as_completed(jobs, timeout=30)))
    wait.start()
    wait_until(lambda: client.pubsub_numsub(result_key(jobs[-1].id))[0][1] == 1, 10, "the wait is subscribed")
    for job in jobs:
        job.cancel()
    wait.join(30)

    assert {outcome.job_id for outcome in found} == {job.id for job in jobs}
