"""Jobs that end without a worker, a full Redis, and damaged results."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import lasting
import pytest
from bare_redis import LIST, SPEC, forget_jobs, hget, read_message
from pydantic import SecretStr
from sandfleet import (
    ErrorCode,
    Fleet,
    FleetError,
    JobUnknown,
    QueueFull,
    Settings,
)
from sandfleet.channel.records import CancelState
from sandfleet_config.queues import KEY_PREFIX, cancel_key, job_key, result_key

if TYPE_CHECKING:
    import redis


def test_a_cancel_ends_a_queued_job_and_takes_its_message_away(fleet: Fleet, client: redis.Redis) -> None:
    first, second, third = fleet.submit_many([SPEC] * 3, batch="b")
    assert str(second.cancel()) == "cancelled before it started"
    assert client.llen(LIST) == 3, "behind a job that waits it stays, and a worker throws it away"
    assert str(first.cancel()) == "cancelled before it started"
    assert client.llen(LIST) == 1
    assert str(third.cancel()) == "cancelled before it started"
    assert client.llen(LIST) == 0
    assert not client.exists(cancel_key(first.id))
    assert lasting_keys(client) == []


def test_a_cancel_of_a_running_job_is_a_durable_mark_and_a_broadcast(fleet: Fleet, client: redis.Redis) -> None:
    job = fleet.submit(SPEC)
    client.hset(job_key(job.id), "state", "running")
    assert str(job.cancel()) == str(fleet.job(job.id).cancel()) == "cancel requested"
    assert 7 * 86400 < client.ttl(cancel_key(job.id)) <= 8 * 86400
    assert not client.exists(result_key(job.id)), "its worker records the end"
    assert not job.is_done


def lasting_keys(client: redis.Redis) -> list[str]:
    return lasting.lasting_keys(client, allowed=("_kombu",))


def test_a_cancelled_batch_leaves_nothing_without_a_ttl(fleet: Fleet, client: redis.Redis) -> None:
    specs = [SPEC.model_copy(update={"priority": index % 10}) for index in range(1000)]
    fleet.submit_many(specs, batch="big", idempotent=True)
    assert fleet.batch("big").cancel() == {"cancelled": 1000}
    assert lasting_keys(client) == []
    assert fleet.batch("big").counts == (1000, 1000)
    assert {outcome.batch for outcome in fleet.batch("big").outcomes()} == {"big"}


def test_an_expired_job_leaves_nothing_without_a_ttl(
    fleet: Fleet, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandfleet.collect.polling.FIRST_CHECK_SECONDS", 0.2)
    jobs = fleet.submit_many([SPEC.model_copy(update={"queue_ttl": 0.05})] * 300, batch="big", idempotent=True)
    codes = [outcome.code for outcome in fleet.as_completed(jobs, timeout=20)]
    assert codes == [ErrorCode.EXPIRED] * 300
    assert lasting_keys(client) == []


def test_a_cancelled_job_that_waits_for_another_attempt_keeps_its_attempts(fleet: Fleet, client: redis.Redis) -> None:
    job = fleet.submit(SPEC)
    history = [{"host": "h", "worker": "w", "started": 1.7e12, "ended": 1.7e12, "code": "WORKER_LOST"}]
    client.hset(job_key(job.id), "attempts", json.dumps(history))
    job.cancel()
    (attempt,) = job.outcome(timeout=0).attempts
    assert (attempt.code, attempt.host, attempt.started.year) == (ErrorCode.WORKER_LOST, "h", 2023)


def test_a_full_queue_refuses_jobs(redis_server: Any, client: redis.Redis, fleet: Fleet) -> None:
    full = Fleet(Settings(redis_url=SecretStr(redis_server.url), max_queued=600))
    with pytest.raises(QueueFull, match=r"queue sandfleet holds 0 jobs, 601 more would pass max_queued \(600\)"):
        full.submit_many([SPEC] * 601)
    assert lasting_keys(client) == [], "of a list that has no room nothing is queued"
    with pytest.raises(QueueFull) as caught:
        full.submit_many((SPEC for _ in range(1000)), batch="b", idempotent=True)
    assert len(caught.value.job_ids) == client.llen(LIST) == 512
    assert set(full.batch("b").job_ids) == set(caught.value.job_ids)
    jobs = full.submit_many([SPEC] * 600, batch="b", idempotent=True)
    assert len(jobs) == client.llen(LIST) == 600, "what is queued already needs no room"
    assert full.submit_many([SPEC] * 600, batch="b", idempotent=True) == jobs
    with pytest.raises(QueueFull):
        full.submit(SPEC)
    full.submit(SPEC, queue="other")
    fleet.submit(SPEC)


def test_a_full_redis_refuses_jobs(redis_server: Any, client: redis.Redis) -> None:
    settings = Settings(redis_url=SecretStr(redis_server.url))
    used = int(client.info("memory")["used_memory"])
    try:
        client.config_set("maxmemory", used * 2)
        Fleet(settings).submit(SPEC)
        client.config_set("maxmemory", int(used / 0.85))
        with pytest.raises(QueueFull, match=r"maxmemory.*limit is 80 %"):
            Fleet(settings).submit(SPEC)
        Fleet(settings.model_copy(update={"memory_high_percent": 0})).submit(SPEC)
        client.config_set("maxmemory", used // 2)
        with pytest.raises(QueueFull, match="out of memory"):
            Fleet(settings.model_copy(update={"memory_high_percent": 0})).submit(SPEC)
    finally:
        client.config_set("maxmemory", 0)
        forget_jobs(client)


def test_a_cancel_needs_no_memory(fleet: Fleet, client: redis.Redis) -> None:
    """Where Redis is full it is what makes room."""
    queued, running = fleet.submit_many([SPEC, SPEC], batch="full")
    client.hset(job_key(running.id), "state", "running")
    client.config_set("maxmemory", 1)
    try:
        states = fleet.batch("full").cancel()
        assert states == {CancelState.CANCELLED: 1, CancelState.REQUESTED: 1}
        assert fleet.job(queued.id).outcome(5).code is ErrorCode.CANCELLED
        assert client.exists(cancel_key(running.id))
    finally:
        client.config_set("maxmemory", 0)
        forget_jobs(client)


def test_a_dead_letter_that_is_no_job_is_shown_escaped(fleet: Fleet, client: redis.Redis) -> None:
    raw = b"\x00\x1b[31mnot a message" + b"z" * 500
    client.hset(
        "sandfleet:dead:message-1", mapping={"message": raw, "reason": "it is not JSON", "at": 1.7e12, "queue": "q"}
    )
    client.zadd("sandfleet:dead", {"message-1": 1.7e12, "gone": 1.6e12})
    (dead,) = fleet.dead.list()
    assert (dead.job_id, dead.code, dead.reason) == ("message-1", None, "it is not JSON")
    assert dead.garbage.startswith("\\x00\\x1b[31mnot a message")
    assert dead.garbage.endswith(f"z... ({len(raw)} bytes)")
    with pytest.raises(FleetError, match="holds no job"):
        fleet.dead.requeue("message-1")
    assert fleet.dead.purge() == 2
    assert not client.exists("sandfleet:dead", "sandfleet:dead:message-1")


def test_a_dead_letter_outlives_everything_else_of_its_job(fleet: Fleet, client: redis.Redis) -> None:
    spec = SPEC.model_copy(update={"idempotency_key": "k", "priority": 3, "max_attempts": 5})
    job = fleet.submit(spec, batch="b", queue="q1")
    raw: Any = client.rpop("sandfleet:q1\x06\x163")
    forget_jobs(client)
    client.hset(
        f"sandfleet:dead:{job.id}", mapping={"message": raw, "code": "WORKER_LOST", "at": 1.7e12, "queue": "q1"}
    )
    client.zadd("sandfleet:dead", {job.id: 1.7e12})

    fleet.dead.requeue(job.id)

    assert read_message(client, "sandfleet:q1\x06\x163")["headers"]["id"] == job.id
    record = fleet.record(job.id)
    assert record is not None
    assert (record.state, record.queue, record.batch, record.line) == ("queued", "q1", "b", "n: x sh -c true")
    assert hget(client, job.id, "max_attempts") == b"5"
    assert fleet.submit(spec, batch="b", queue="q1") == job
    assert fleet.batch("b").job_ids == [job.id]
    assert not client.exists("sandfleet:dead")
    job.cancel()
    client.delete("sandfleet:queues")
    assert lasting_keys(client) == []


@pytest.mark.parametrize("raw", [b"", b"nonsense", b"{}", b'{"status": "SUCCESS", "result": 7}'])
def test_a_damaged_result_ends_the_wait(fleet: Fleet, client: redis.Redis, raw: bytes) -> None:
    job = fleet.submit(SPEC, batch="b")
    client.set(result_key(job.id), raw, ex=60)
    outcome = job.outcome(timeout=5)
    assert (outcome.code, outcome.job_id, outcome.batch) == (ErrorCode.INTERNAL, job.id, "b")
    assert outcome.retryable


def test_a_result_outlives_its_record(fleet: Fleet, client: redis.Redis) -> None:
    client.set(result_key("old"), json.dumps({"status": "REVOKED", "result": None}), ex=60)
    assert fleet.job("old").outcome(timeout=5).code is ErrorCode.CANCELLED


def test_a_job_redis_lost_ends_the_wait(fleet: Fleet, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandfleet.collect.polling.CHECK_SECONDS", 0.1)
    job = fleet.submit(SPEC)
    client.delete(job_key(job.id))
    with pytest.raises(JobUnknown):
        job.outcome(timeout=5)


def test_forged_names_and_counts_of_batches_hide_no_other(fleet: Fleet, client: redis.Redis) -> None:
    fleet.submit_many([SPEC], batch="b")
    client.zadd(f"{KEY_PREFIX}batches", {b"\xff\xfe": 1e15})
    for field in ("OK", "SIGNALED"):
        client.hset(f"{KEY_PREFIX}counts:b", field, "many")
    client.hset(f"{KEY_PREFIX}counts:b", b"\xc3\x84".decode(), "1")
    assert [summary.name for summary in fleet.batches()] == ["b"]
    assert fleet.batch("b").codes == {}
