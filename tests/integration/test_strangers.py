"""Forged messages and keys in Redis stop no worker and harm no good job."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from pydantic import SecretStr
from sandfleet import Fleet, SandboxSpec, Settings
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Outcome
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, cancel_key, job_key, result_key
from sandfleet_config.scripts import read_script
from sandfleet_worker.delivery import ledger as ledger_module
from sandfleet_worker.delivery.claim import Claim, Flag
from sandfleet_worker.delivery.envelope import open_message
from sandfleet_worker.delivery.ledger import MAX_QUEUES, Ledger
from sandfleet_worker.delivery.queue_rotation import QueueRotation
from sandfleet_worker.delivery.read_message import read_message
from sandfleet_worker.delivery.sweeper import Sweeper

MALFORMED = 100_000
MAX_KEPT, MAX_KEPT_BYTES = 1000, 8192


def submit(url: str, count: int = 1, **options: Any) -> list[str]:
    with Fleet(Settings(redis_url=SecretStr(url))) as fleet:
        return [job.id for job in fleet.submit_many([SandboxSpec(image="x", command=["true"])] * count, **options)]


def claim_next(ledger: Ledger, claim_id: str, limit: int = 1000) -> tuple[Claim | None, int]:
    """Claim as the claimer does; return the claim and the calls that it took."""
    for calls in range(1, limit):
        claim, may_be_more = ledger.claim(claim_id, [DEFAULT_QUEUE])
        if claim is not None or not may_be_more:
            return claim, calls
    raise AssertionError("no end of the claims")


def test_a_hundred_thousand_malformed_messages_are_set_aside_in_bulk(
    url: str, client: Any, ledger: Ledger, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_module, "LOG_SECONDS", 0.0)
    (good,) = submit(url)
    list_key = next(key for key in client.keys(f"{KEY_PREFIX}{DEFAULT_QUEUE}*") if client.type(key) == b"list")
    kinds = [b"{}", b"no JSON", b'{"headers": {"id": "a b"}}', b"[" * 10_000]
    for start in range(0, MALFORMED, 10_000):
        client.rpush(list_key, *(kinds[number % 3] + b" " * (number % 7) for number in range(start, start + 10_000)))
    client.rpush(list_key, kinds[3])

    began = time.monotonic()
    claim, calls = claim_next(ledger, "claim")
    took = time.monotonic() - began

    assert claim is not None
    assert claim.job_id == good
    assert calls <= MALFORMED // 300 + 2
    assert took < 20, "5 s on a machine that is not busy"
    assert client.get(f"{KEY_PREFIX}malformed_count") == str(MALFORMED + 1).encode()
    told = [record.args for record in caplog.records if getattr(record, "action", "") == "message_set_aside"]
    assert [sum(column) for column in zip(*told, strict=True)] == [MALFORMED + 1, MAX_KEPT]
    letters = client.keys(f"{KEY_PREFIX}dead:*")
    assert len(letters) == client.zcard(f"{KEY_PREFIX}dead") == client.zcard(f"{KEY_PREFIX}malformed") == MAX_KEPT
    longest = client.hgetall(f"{KEY_PREFIX}dead:message-1")
    assert longest[b"message"] == kinds[3][:MAX_KEPT_BYTES]
    assert b"10000 bytes" in longest[b"reason"]
    assert all(client.ttl(key) > 0 for key in [*letters, f"{KEY_PREFIX}malformed", f"{KEY_PREFIX}malformed_count"])
    with Fleet(Settings(redis_url=SecretStr(url))) as fleet:
        assert len(list(fleet.dead.list(limit=MAX_KEPT))) == MAX_KEPT
        fleet.dead.purge()
    client.rpush(list_key, b"later")
    claim_next(ledger, "later")
    assert client.hget(f"{KEY_PREFIX}dead:message-{MALFORMED + 2}", "message") == b"later", (
        "a purge gives the room back"
    )


def test_messages_of_great_size_are_read_a_few_a_call(client: Any, ledger: Ledger) -> None:
    client.rpush(f"{KEY_PREFIX}{DEFAULT_QUEUE}", *[b"x" * (1 << 20)] * 9)
    _, calls = claim_next(ledger, "claim")
    assert calls == 4, "4 MiB a call"


CJSON_ONLY = {
    "hex": b'{"headers": {"id": "%s"}, "x": 0x10}',
    "no UTF-8": b'{"headers": {"id": "%s"}, "x": "\xff\xfe"}',
    "5,000 digits": b'{"headers": {"id": "%s"}, "x": ' + b"9" * 5000 + b"}",
    "900 levels": b'{"headers": {"id": "%s"}, "x": ' + b"[" * 990 + b"]" * 990 + b"}",
    "infinity": b'{"headers": {"id": "%s"}, "x": inf}',
    "body": b'{"headers": {"id": "%s", "task": "sandfleet.run"}, "body": 0x10}',
}


def test_what_lua_reads_and_python_does_not_is_an_invalid_spec(client: Any, ledger: Ledger) -> None:
    for number, (case, message) in enumerate(CJSON_ONLY.items()):
        client.lpush(f"{KEY_PREFIX}{DEFAULT_QUEUE}", message % f"job-{number}".encode())
        claim, _ = claim_next(ledger, f"claim-{number}")
        assert claim is not None, case

        job_message = read_message(open_message(claim), 1 << 18)

        assert job_message is not None, case
        assert job_message.job_id == f"job-{number}"
        assert job_message.refusal is not None, case
        assert job_message.refusal.code is ErrorCode.SPEC_INVALID
        assert ledger.finish(claim, Outcome.of(ErrorCode.SPEC_INVALID, claim.job_id, "x")), case


def test_the_id_of_a_claim_is_the_one_that_was_claimed() -> None:
    claim = Claim("c", "one", Flag.START, b'{"headers": {"id": "two", "task": "sandfleet.run"}}')
    job_message = read_message(open_message(claim), 1 << 18)
    assert job_message is not None
    assert job_message.job_id == "one"


REFUSING = ("batch:b", "done:b", "ends:b", "counts:b", "expiring")
"""Keys that a submit checks, and refuses where they have a wrong type."""
SPOILT = (
    *("queues", "wake", "delayed", "duplicates", "dead", "dead_sizes", "dead_bytes", "dead_dropped"),
    *("malformed", "malformed_count", "claims:host:one:one", *REFUSING),
)


def spoil(client: Any, name: str) -> None:
    """Give the key `name` a type that it must not have."""
    key = KEY_PREFIX + name
    client.delete(key)
    if name in {"queues", *REFUSING[:-1]} or name.startswith(DEFAULT_QUEUE):
        client.zadd(key, {"a": 1})
    else:
        client.rpush(key, "x")


def test_a_key_of_a_wrong_type_stops_nobody(url: str, client: Any, ledger: Ledger) -> None:
    """Each in turn: a job is submitted, claimed, and its outcome recorded, or the submit is refused and has queued nothing."""
    lists = [f"{KEY_PREFIX}{DEFAULT_QUEUE}{step}" for step in ("", "\x06\x163", "\x06\x166", "\x06\x169")]
    lists = [name.removeprefix(KEY_PREFIX) for name in lists]
    for number, name in enumerate([*SPOILT, *lists]):
        client.flushdb()
        ledger.register(600)
        (before,) = submit(url)
        if client.type(KEY_PREFIX + name) == b"list":
            continue  # the list of the job itself
        spoil(client, name)
        client.rpush(f"{KEY_PREFIX}{DEFAULT_QUEUE}\x06\x166", b"malformed")

        if name in (*REFUSING, *lists):
            keys = set(client.keys(f"{KEY_PREFIX}job:*"))
            with pytest.raises(Exception, match="must be a"):
                submit(url, batch="b")
            assert set(client.keys(f"{KEY_PREFIX}job:*")) == keys, f"{name}: nothing is queued"
        else:
            submit(url)
        claim, _ = claim_next(ledger, f"claim-{number}")
        assert claim is not None, name
        assert claim.job_id == before, name
        assert ledger.beat(600, [claim])[0] == [], name
        assert ledger.finish(claim, Outcome.of(ErrorCode.OK, claim.job_id)), name
        assert client.exists(result_key(before)), name


def test_a_record_of_a_wrong_type_costs_its_own_job_only(url: str, client: Any, ledger: Ledger) -> None:
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


def test_spoilt_fields_of_a_record_stop_neither_claim_nor_end(url: str, client: Any, ledger: Ledger) -> None:
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


def test_an_expired_job_whose_record_is_none_does_not_come_first_for_ever(
    url: str, client: Any, ledger: Ledger
) -> None:
    (good,) = submit(url)
    for number in range(3):
        client.set(job_key(f"spoilt-{number}"), "x")
        client.zadd(f"{KEY_PREFIX}expiring", {f"spoilt-{number}": number})
    client.zadd(f"{KEY_PREFIX}expiring", {good: 5})
    lease: Any = type("Steady", (), {"may_take_over": True})

    Sweeper(ledger, lease, 1 << 18, lambda _: None).sweep()

    assert client.hget(job_key(good), "code") == b"EXPIRED"
    assert not client.exists(f"{KEY_PREFIX}expiring")


def test_of_many_queues_a_worker_reads_a_bounded_number_and_says_so(
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
    assert len(seen) > 2 * MAX_QUEUES, "others each time"
    (told,) = [record for record in caplog.records if getattr(record, "action", "") == "queues_bounded"]
    assert "200000" in told.getMessage()
    assert "1000" in told.getMessage()
    client.delete(f"{KEY_PREFIX}queues")
    client.sadd(f"{KEY_PREFIX}queues", "ok", "owners", "wake", "a b", b"\xff")
    assert ledger.read_queues() == ["ok"]


def test_a_cancel_of_an_unknown_id_spares_the_job_that_is_submitted_later(
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


def test_a_producer_sees_past_a_record_of_a_wrong_type(url: str, client: Any) -> None:
    with Fleet(Settings(redis_url=SecretStr(url))) as fleet:
        jobs = fleet.submit_many([SandboxSpec(image="x", command=["true"])] * 3)
        client.delete(job_key(jobs[0].id))
        client.set(job_key(jobs[0].id), "x")
        jobs[1].cancel()
        jobs[0].cancel()

        (ended,) = list(fleet.as_completed(jobs[1:2], timeout=5))
        assert ended.code is ErrorCode.CANCELLED
    assert client.hget(job_key(jobs[2].id), "state") == b"queued"


def test_a_cancel_parses_a_bounded_part_of_the_queue_at_a_time(client: Any) -> None:
    """It parsed up to 500 messages of 256 KB in one call, and Redis served nobody meanwhile."""
    script = client.register_script(read_script("trim"))
    for number in range(12):
        client.hset(job_key(f"ended-{number}"), "state", "ended")
        message = json.dumps({"headers": {"id": f"ended-{number}"}, "body": "x" * (1 << 18)})
        client.lpush(f"{KEY_PREFIX}{DEFAULT_QUEUE}", message)
    answers: list[int] = []
    left: list[int] = []
    while not answers or answers[-1]:
        answers.append(script(args=[KEY_PREFIX, DEFAULT_QUEUE, 500]))
        left.append(client.llen(f"{KEY_PREFIX}{DEFAULT_QUEUE}"))
    assert answers == [1, 1, 1, 0]
    assert left == [8, 4, 0, 0]


def test_a_dead_letter_survives_a_requeue_into_a_queue_that_is_none(url: str, client: Any, ledger: Ledger) -> None:
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
