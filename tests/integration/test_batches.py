"""Batches in Redis: stream of ended jobs, counts, seal, TTLs, forget; two releases on one batch."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from lasting import lasting_keys
from sandfleet import BatchUnknown, ErrorCode, Fleet, JobUnknown, Outcome, ResultTimeout, SandboxSpec
from sandfleet.cli import main
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, job_key, result_key
from sandfleet_config.scripts import stored_result
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.ledger import Ledger
from waiting import wait_until

SPEC = SandboxSpec(image="x", command=["true"])
OK, BAD = ErrorCode.OK, ErrorCode.EXIT_NONZERO


def new_ledger(client: Any, ttl: int, name: str = "one") -> Ledger:
    found = Ledger(client, Identity("host", name, f"host:{name}:1"), ttl)
    found.register(600)
    return found


def end_next(ledger: Ledger, code: ErrorCode = OK) -> str:
    """Claim the next job and end it; return its id."""
    claim, _ = ledger.claim(f"claim-{time.monotonic_ns()}", [DEFAULT_QUEUE])
    assert claim is not None
    assert ledger.finish(claim, Outcome.of(code, claim.job_id, exit_code=0))
    return claim.job_id


def end_as_old_worker(client: Any, job_id: str, batch: str, code: ErrorCode = OK) -> None:
    """Leave what `finish.lua` of release e5bcdee leaves: no entry in the stream, no counts."""
    for raw in client.lrange(f"{KEY_PREFIX}{DEFAULT_QUEUE}\x06\x166", 0, -1):
        if job_id.encode() in raw:
            client.lrem(f"{KEY_PREFIX}{DEFAULT_QUEUE}\x06\x166", 1, raw)
    result = stored_result(Outcome.of(code, job_id, exit_code=0))
    client.set(result_key(job_id), result, ex=3600)
    client.publish(result_key(job_id), result)
    client.zrem(f"{KEY_PREFIX}expiring", job_id)
    client.hset(job_key(job_id), mapping={"state": "ended", "code": code.value, "ended": 1, "ended_by": "old"})
    client.expire(job_key(job_id), 3600)
    if client.rpush(f"{KEY_PREFIX}done:{batch}", job_id) >= client.llen(f"{KEY_PREFIX}batch:{batch}"):
        client.expire(f"{KEY_PREFIX}batch:{batch}", 3600)
        client.expire(f"{KEY_PREFIX}done:{batch}", 3600)


def read_stream(client: Any, batch: str) -> list[tuple[str, str, str]]:
    entries = client.xrange(f"{KEY_PREFIX}ends:{batch}")
    return [tuple(fields[name].decode() for name in (b"id", b"run", b"code")) for _, fields in entries]


def test_ended_jobs_are_a_stream_and_are_counted_by_code(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    fleet.submit_many([SPEC] * 3, batch="b")
    batch = fleet.batch("b")
    assert (batch.counts, batch.codes, batch.is_sealed) == ((3, 0), {}, True)
    first = end_next(ledger, BAD)
    second = end_next(ledger)
    assert read_stream(client, "b") == [(first, "1", "EXIT_NONZERO"), (second, "1", "OK")]
    assert (batch.counts, batch.codes) == ((3, 2), {"EXIT_NONZERO": 1, "OK": 1})
    end_next(ledger)
    assert batch.codes == {"EXIT_NONZERO": 1, "OK": 2}
    assert batch.is_done
    assert [0 < client.ttl(f"{KEY_PREFIX}{name}:b") <= 3600 for name in ("batch", "ends", "counts", "done")] == [
        True
    ] * 4


def test_a_complete_submit_seals_its_batch(fleet: Fleet, ledger: Ledger) -> None:
    fleet.submit(SPEC, batch="b")
    batch = fleet.batch("b")
    assert not batch.is_sealed, "more may follow"
    chunks = fleet.submit_chunks(iter([SPEC] * 600), batch="b")
    next(chunks)
    assert not batch.is_sealed
    list(chunks)
    assert batch.is_sealed
    fleet.submit(SPEC, batch="b")
    assert not batch.is_sealed, "a submit takes it back"
    batch.seal()
    assert batch.is_sealed
    asyncio.run(fleet.submit_many_async(iter([SPEC]), batch="c"))
    assert fleet.batch("c").is_sealed
    for _ in range(603):
        end_next(ledger)
    assert len(list(batch.as_completed(timeout=20))) == 602


def test_a_name_used_as_a_standing_label_does_not_grow(client: Any, fleet: Fleet) -> None:
    """Jobs with expired outcomes leave the batch, although it always has a queued job."""
    ledger = new_ledger(client, 1)
    for _ in range(4):
        fleet.submit_many([SPEC] * 50, batch="label")
        for _ in range(49):
            end_next(ledger)
        keys = [f"{KEY_PREFIX}{name}:label" for name in ("batch", "done")]
        assert max(client.llen(key) for key in keys) <= 101
        assert client.xlen(f"{KEY_PREFIX}ends:label") <= 100
        time.sleep(1.1)  # the records are gone
    batch = fleet.batch("label")
    total, ended = batch.counts
    assert (total - ended, ended) == (4, 0), "those that wait are never dropped"
    assert batch.codes == {}
    assert sum(batch.codes.values()) == client.xlen(f"{KEY_PREFIX}ends:label")
    with pytest.raises(ResultTimeout):
        list(batch.as_completed(timeout=0.1))  # and those that are gone are no fault
    for _ in range(4):
        end_next(ledger)
    assert batch.is_done
    wait_until(lambda: not client.keys(f"{KEY_PREFIX}*:label"), 5, "the keys are gone")
    assert lasting_keys(client, ("owners", "queues")) == []


def test_forget_deletes_the_ended_jobs_of_a_batch(
    client: Any, fleet: Fleet, ledger: Ledger, capfd: pytest.CaptureFixture[str]
) -> None:
    keyed = [SandboxSpec(image="x", idempotency_key=f"key-{number}") for number in range(1203)]
    jobs = fleet.submit_many(keyed, batch="b")
    ended = [end_next(ledger) for _ in range(1200)]
    assert main(["batch", "forget", "b"]) == 2
    assert "--yes" in capfd.readouterr().err
    assert fleet.batch("b").counts == (1203, 1200)

    assert main(["batch", "forget", "b", "--yes"]) == 0

    assert capfd.readouterr().out == "b\t1200 forgotten, 3 kept: they have not ended\n"
    left = [job.id for job in jobs if job.id not in ended]
    assert fleet.batch("b").job_ids == left
    assert (fleet.batch("b").counts, fleet.batch("b").codes) == ((3, 0), {})
    assert len(client.keys(f"{KEY_PREFIX}job:*")) == len(client.keys(f"{KEY_PREFIX}idem:*")) == 3
    assert client.keys(f"{KEY_PREFIX}celery-task-meta-*") == []
    assert client.llen(f"{KEY_PREFIX}done:b") == 0
    with pytest.raises(JobUnknown):
        fleet.job(ended[0])
    assert fleet.submit(keyed[0], batch="b").id != ended[0], "its key is free again"
    for _ in range(4):
        end_next(ledger)
    assert fleet.batch("b").forget() == (4, 0)
    assert client.keys(f"{KEY_PREFIX}*b") == []
    with pytest.raises(BatchUnknown):
        fleet.batch("b")


def test_a_new_producer_finds_the_ended_jobs_of_old_workers(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    jobs = fleet.submit_many([SPEC] * 6, batch="b")
    end_as_old_worker(client, jobs[0].id, "b")
    batch = fleet.batch("b")
    assert batch.counts == (6, 1)
    seen: list[str] = []

    def collect() -> None:
        seen.extend(outcome.job_id for outcome in batch.as_completed(timeout=40))

    thread = threading.Thread(target=collect)
    thread.start()
    wait_until(lambda: len(seen) == 1, 20, "the first is seen")
    for job in jobs[1:4]:
        end_as_old_worker(client, job.id, "b")
    wait_until(lambda: len(seen) == 4, 20, "a look at the list finds the others")
    for _ in range(2):
        end_next(ledger)
    thread.join()
    assert seen[4:] == [job.id for job in jobs[4:]]
    assert batch.codes == {"OK": 6}
    assert sorted(read_stream(client, "b")) == sorted((job.id, "1", "OK") for job in jobs)
    assert client.lrange(f"{KEY_PREFIX}done:b", 0, -1) == [job.id.encode() for job in jobs], (
        "an old producer reads this"
    )
    assert lasting_keys(client, ("owners", "queues")) == []


def test_the_keys_of_a_batch_go_together_though_an_old_worker_ended_the_last_job(client: Any, fleet: Fleet) -> None:
    for job in fleet.submit_many([SPEC] * 3, batch="b"):
        end_as_old_worker(client, job.id, "b")
    assert len(list(fleet.batch("b").as_completed(timeout=20))) == 3
    assert [0 < client.ttl(f"{KEY_PREFIX}{name}:b") <= 3600 for name in ("batch", "ends", "counts", "done")] == [
        True
    ] * 4


def test_a_batch_of_an_old_fleet_is_read_and_goes_on(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    """Its keys are a list of members and one of ends; nothing else is there."""
    jobs = fleet.submit_many([SPEC] * 5, batch="b")
    client.delete(f"{KEY_PREFIX}counts:b")
    client.persist(f"{KEY_PREFIX}batch:b")
    for job in jobs[:3]:
        end_as_old_worker(client, job.id, "b", BAD)
    assert (fleet.batch("b").counts, fleet.batch("b").codes) == ((5, 3), {"EXIT_NONZERO": 3})
    assert len(fleet.batch("b").outcomes()) == 3
    for _ in range(2):
        end_next(ledger)
    assert len(list(fleet.batch("b").as_completed(timeout=20))) == 5
    assert lasting_keys(client, ("owners", "queues")) == []
