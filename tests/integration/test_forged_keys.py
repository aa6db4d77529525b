"""Forged or damaged keys in Redis stop no worker and harm no good job."""

from __future__ import annotations

import contextlib
import json
import time
from typing import Any

import pytest
import redis
from claims import claim_next, submit
from pydantic import SecretStr
from sandfleet import BatchLimits, Fleet, SandboxSpec, Settings
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Outcome
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, cancel_key, job_key, result_key
from sandfleet_worker.delivery.claim import Flag
from sandfleet_worker.delivery.ledger import MAX_QUEUES, Ledger
from sandfleet_worker.delivery.queue_rotation import QueueRotation
from sandfleet_worker.delivery.sweeper import Sweeper

LISTS = tuple(f"{DEFAULT_QUEUE}{step}" for step in ("", "\x06\x163", "\x06\x166", "\x06\x169"))
BATCH_KEYS = ("batch:b", "done:b", "ends:b", "counts:b")
REFUSING = frozenset((*BATCH_KEYS, "expiring", *LISTS))
"""Keys that a submit needs: with a wrong type it is refused."""
IGNORED = ("wake", "delayed", "duplicates", "dead", "dead_sizes", "dead_bytes", "dead_dropped")
KEYS = ("queues", *IGNORED, "malformed", "malformed_count", "claims:host:one:one", *sorted(REFUSING))


def set_wrong_type(client: Any, name: str) -> None:
    """Replace the key `name` by one of a type that it never has."""
    client.delete(KEY_PREFIX + name)
    if name in {"queues", *BATCH_KEYS, *LISTS}:
        client.zadd(KEY_PREFIX + name, {"a": 1})
    else:
        client.rpush(KEY_PREFIX + name, "x")


def assert_refused(url: str, client: Any, name: str) -> None:
    """Check that a submit is refused and queues nothing."""
    keys = set(client.keys(f"{KEY_PREFIX}job:*"))
    with pytest.raises(Exception, match="must be a"):
        submit(url, batch="b")
    assert set(client.keys(f"{KEY_PREFIX}job:*")) == keys, f"{name}: nothing is queued"


@pytest.mark.parametrize("name", KEYS)
def test_a_key_of_a_wrong_type_stops_neither_claim_nor_end(url: str, client: Any, ledger: Ledger, name: str) -> None:
    ledger.register(600)
    (before,) = submit(url)
    if client.type(KEY_PREFIX + name) == b"list":
        return  # the list of the job itself
    set_wrong_type(client, name)
    client.rpush(f"{KEY_PREFIX}{DEFAULT_QUEUE}\x06\x166", b"malformed")
    if name in REFUSING:
        assert_refused(url, client, name)
    else:
        submit(url)

    claim, _ = claim_next(ledger, "claim")

    assert claim is not None
    assert claim.job_id == before
    assert ledger.beat(600, [claim])[0] == {}
    assert ledger.finish(claim, Outcome.of(ErrorCode.OK, claim.job_id))
    assert client.exists(result_key(before))


def test_a_record_of_a_wrong_type_harms_only_its_own_job(url: str, client: Any, ledger: Ledger) -> None:
    spoilt, good, running = submit(url, 3)
    client.delete(job_key(spoilt))
    client.set(job_key(spoilt), "x")

    claim, _ = claim_next(ledger, "one")
    assert claim is not None
    assert claim.job_id == good
    (letter,) = [client.hgetall(key) for key in client.keys(f"{KEY_PREFIX}dead:*")]
    assert json.loads(letter[b"message"])["headers"]["id"] == spoilt
    claim, _ = claim_next(ledger, "two")
    assert claim is not None
    client.delete(job_key(running))
    client.set(job_key(running), "x")
    assert ledger.finish(claim, Outcome.of(ErrorCode.OK, running)), "its outcome is recorded all the same"
    assert client.hget(job_key(running), "state") == b"ended"


def test_damaged_fields_of_a_record_stop_neither_claim_nor_end(url: str, client: Any, ledger: Ledger) -> None:
    (job,) = submit(url)
    client.hset(job_key(job), mapping={"attempts": "{", "avoid": "host", "avoid_until": "x", "max_attempts": "x"})
    claim, _ = claim_next(ledger, "one")
    assert claim is not None
    assert len(claim.attempts) == 1
    client.hset(job_key(job), "attempts", "7")
    assert ledger.retry(claim, ErrorCode.INTERNAL)
    claim, _ = claim_next(ledger, "two")
    assert claim is not None
    client.hset(job_key(job), "attempts", "[7]")
    assert ledger.finish(claim, Outcome.of(ErrorCode.OK, job))


def test_an_expired_job_without_a_record_does_not_block_the_others(url: str, client: Any, ledger: Ledger) -> None:
    (good,) = submit(url)
    for number in range(3):
        client.set(job_key(f"spoilt-{number}"), "x")
        client.zadd(f"{KEY_PREFIX}expiring", {f"spoilt-{number}": number})
    client.zadd(f"{KEY_PREFIX}expiring", {good: 5})
    lease: Any = type("Steady", (), {"may_take_over": True})

    Sweeper(ledger, lease, 1 << 18, lambda _: None).sweep()

    assert client.hget(job_key(good), "code") == b"EXPIRED"
    assert not client.exists(f"{KEY_PREFIX}expiring")


YEARS = ("9999", "1900", "0001")
FORGED_FIELDS: dict[str, dict[str, str | bytes]] = {
    "a batch that is no UTF-8": {"batch": b"\xff"},
    "a reason that is no UTF-8": {"why": b"\xff"},
    "a run that is no number": {"run": "x"},
    "attempts that are too deep": {"attempts": "[" * 100_000},
    "a record that is too deep": {"record": "[" * 100_000},
    "labels that are no text": {"record": '{"labels": {"a": 1}, "spec_sha256": {}}'},
    "half a UTF-16 pair": {"record": '{"labels": {"a": "\\ud800"}, "spec_sha256": "\\ud800"}'},
    "a time that is no number": {"record": '{"submitted": "x"}'},
    "an endless time": {"record": '{"submitted": %s}' % ("9" * 400)},
    "an endless time of a later run": {"submitted": "9" * 400},
    "attempts at the edge of time": {
        "attempts": json.dumps([{"host": "h", "worker": "w", "started": f"{year}-01-01T00:00:00"} for year in YEARS])
    },
    "more digits than Python reads": {"submitted": "9" * 5000, "needs": '{"memory_bytes": %s}' % ("9" * 5000)},
    "needs that are too deep": {"needs": f'{{"image": {"[" * 900}{"]" * 900}}}'},
    "memory that is no size": {"needs": '{"memory_bytes": NaN, "image": 7}', "queue": b"\xff"},
    "half a UTF-16 pair in a line": {"record": '{"line": "\\ud800\\u0000"}', "needs": '{"image": "\\udc00"}'},
}


def test_a_forged_field_of_a_queued_job_ends_no_sweep(url: str, client: Any, ledger: Ledger) -> None:
    """An error of the sweeper that is none of Redis would end this worker, and then each other one."""
    lease: Any = type("Steady", (), {"may_take_over": True})
    sweeper = Sweeper(ledger, lease, 1 << 18, lambda _: None)
    for case, fields in FORGED_FIELDS.items():
        for code in ("EXPIRED", "CANCELLED"):
            client.flushdb()
            ledger.register(600)
            spoilt, good = submit(url, 2, batch="b", limits=BatchLimits(at_most=1))
            client.hset(job_key(spoilt), mapping=fields)
            if code == "EXPIRED":
                client.zadd(f"{KEY_PREFIX}expiring", {b"\xff": 1, spoilt: 2, good: 3})
            else:
                client.hset(f"{KEY_PREFIX}limits:b", mapping={"stopped": b"for a test \xff"})
                client.zadd(f"{KEY_PREFIX}limited", {b"\xff": 1, "b": 1})
            sweeper._next_expire = 0.0
            for _ in range(3):
                ledger.has_due_jobs = True
                sweeper.sweep()
            ends = [client.hget(job_key(job), "code") for job in (spoilt, good)]
            assert ends == [code.encode()] * 2, case
            assert not client.exists(f"{KEY_PREFIX}expiring"), case


SWEPT = (
    *("limited", "groups", "limits:b", "active:b", "parked:b", *BATCH_KEYS, "on_done:b", "awaited:batch:b"),
    *("delayed", "dead", "dead_sizes", "dead_bytes", "hosts", "claims:dead", "claims:host:one:one", "boot:host"),
    *("kept_specs", "webhooks:due", "webhooks:awaiting", "webhooks:log", "wake", "queues", "expiring"),
)


def test_a_key_of_a_wrong_type_keeps_no_sweep_from_what_comes_after_it(
    url: str, client: Any, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    lease: Any = type("Steady", (), {"may_take_over": True})
    dropped: list[bool] = []
    monkeypatch.setattr(ledger, "drop_stale_dead", lambda: dropped.append(True))
    for name in SWEPT:
        client.flushdb()
        ledger.register(600)
        submit(url, 3, batch="b", limits=BatchLimits(at_most=1))
        client.hset(f"{KEY_PREFIX}limits:b", mapping={"stopped": "for a test", "stop_code": "CANCELLED"})
        (expired,) = submit(url)
        client.zadd(f"{KEY_PREFIX}expiring", {expired: 1})
        for key, member in (("limited", "b"), ("groups", "g"), ("owners", "dead")):
            client.zadd(f"{KEY_PREFIX}{key}", {member: 1})
        client.delete(f"{KEY_PREFIX}{name}")
        client.rpush(f"{KEY_PREFIX}{name}", "x")
        with contextlib.suppress(redis.ResponseError) if name == "expiring" else contextlib.nullcontext():
            Sweeper(ledger, lease, 1 << 18, lambda _: None).sweep()
        assert dropped.pop(), name
        assert client.hget(job_key(expired), "code") == (None if name == "expiring" else b"EXPIRED"), name


def test_a_forged_name_of_a_dead_worker_or_a_claim_ends_no_sweep(url: str, client: Any, ledger: Ledger) -> None:
    ledger.register(600)
    (job,) = submit(url)
    claim, _ = claim_next(ledger, "one")
    assert claim is not None
    client.zadd(f"{KEY_PREFIX}owners", {b"dead \xff": 1})
    client.hset(f"{KEY_PREFIX}claims:host:one:one", b"taken-\xff", claim.message)
    for _ in range(2):
        dead, taken = ledger.reap(may_take=True)
        assert taken == []
        assert dead in {"dead \ufffd", ""}
    assert client.hkeys(f"{KEY_PREFIX}claims:host:one:one") == [b"one"]
    assert ledger.finish(claim, Outcome.of(ErrorCode.OK, job))


def test_a_worker_reads_a_bounded_number_of_queues_and_says_so(
    client: Any, ledger: Ledger, caplog: pytest.LogCaptureFixture
) -> None:
    for start in range(0, 200_000, 10_000):
        client.sadd(f"{KEY_PREFIX}queues", *(f"q-{number}" for number in range(start, start + 10_000)))
    rotation, seen = QueueRotation(DEFAULT_QUEUE, ("*",)), set[str]()

    began = time.monotonic()
    for _ in range(5):
        rotation.update(ledger.read_queues())
        assert len(rotation.names()) <= MAX_QUEUES + 1
        seen |= set(rotation.names())
        ledger.claim("claim", rotation.names())
    took = time.monotonic() - began

    assert took < 5
    assert DEFAULT_QUEUE in rotation.names()
    exact = QueueRotation("own", ("high", "batch:b", "q-7*"))
    exact.update(ledger.read_queues())
    assert exact.names()[:2] == ["own", "high"], "a queue that is named exactly is never left out"
    assert "batch:b" not in exact.names(), "it is the key of something else"
    assert len(seen) > 2 * MAX_QUEUES, "others each time"
    (told,) = [record for record in caplog.records if getattr(record, "action", "") == "queues_bounded"]
    assert "200000" in told.getMessage()
    assert "1000" in told.getMessage()
    client.delete(f"{KEY_PREFIX}queues")
    client.sadd(f"{KEY_PREFIX}queues", "ok", "owners", "wake", "a b", b"\xff")
    assert ledger.read_queues() == ["ok"]


def test_a_cancel_of_an_unknown_id_does_not_cancel_a_job_that_is_submitted_later(
    url: str, client: Any, ledger: Ledger
) -> None:
    with Fleet(Settings(redis_url=SecretStr(url))) as fleet:
        job = fleet.submit(SandboxSpec(image="x", command=["true"]))
        client.delete(job_key(job.id), *client.keys(f"{KEY_PREFIX}{DEFAULT_QUEUE}*"))
        assert ledger.cancel(job.id) == "unknown"
        assert 0 < client.ttl(cancel_key(job.id)) <= 86400
        args = [KEY_PREFIX, DEFAULT_QUEUE, 0, "", 1]
        script = fleet._channel._script("submit")  # type: ignore[attr-defined]  # its id is the caller's there
        message = json.dumps({"headers": {"id": job.id}})
        assert script(args=[*args, job.id, message, "", "print", "0 60000 3", "{}", "{}"])[0] == b"new"

    claim, _ = claim_next(ledger, "one")
    assert claim is not None
    assert claim.flag is Flag.START
    assert ledger.cancel(job.id) == "running"
    assert client.ttl(cancel_key(job.id)) > 86400


def test_a_producer_skips_a_record_of_a_wrong_type(url: str, client: Any) -> None:
    with Fleet(Settings(redis_url=SecretStr(url))) as fleet:
        jobs = fleet.submit_many([SandboxSpec(image="x", command=["true"])] * 3)
        client.delete(job_key(jobs[0].id))
        client.set(job_key(jobs[0].id), "x")
        jobs[1].cancel()
        jobs[0].cancel()

        (ended,) = list(fleet.as_completed(jobs[1:2], timeout=5))
        assert ended.code is ErrorCode.CANCELLED
    assert client.hget(job_key(jobs[2].id), "state") == b"queued"


def test_a_dead_letter_stays_when_its_queue_has_a_wrong_type(url: str, client: Any, ledger: Ledger) -> None:
    (job,) = submit(url)
    claim, _ = claim_next(ledger, "one")
    assert claim is not None
    assert ledger.finish(claim, Outcome.of(ErrorCode.INTERNAL, job), reason="it failed")
    client.set(f"{KEY_PREFIX}{DEFAULT_QUEUE}\x06\x166", "x")
    with Fleet(Settings(redis_url=SecretStr(url))) as fleet:
        with pytest.raises(Exception, match="has a wrong type"):
            fleet.dead.requeue(job)
        client.delete(f"{KEY_PREFIX}{DEFAULT_QUEUE}\x06\x166")
        fleet.dead.requeue(job)
    assert client.hget(job_key(job), "state") == b"queued"
