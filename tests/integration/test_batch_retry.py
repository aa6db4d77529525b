"""A batch's failed jobs run again: chosen by code and label, as they were or changed, once."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from lasting import lasting_keys
from sandfleet import ErrorCode, Fleet, Job, Outcome, SandboxSpec, SpecInvalid
from sandfleet.channel.message import read_request
from sandfleet.channel.records import RunState
from sandfleet.results.rows import BatchRows
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, job_key, spec_key
from sandfleet_worker.delivery.claim import Claim
from sandfleet_worker.delivery.ledger import Ledger

CODES = (ErrorCode.OK, ErrorCode.EXIT_NONZERO, ErrorCode.TIMEOUT, ErrorCode.WORKER_LOST)
SPECS = f"{KEY_PREFIX}specs"
SUM = f"{KEY_PREFIX}specs_sum"


def claim_next(ledger: Ledger) -> Claim:
    claim, _ = ledger.claim(f"claim-{time.monotonic_ns()}", [DEFAULT_QUEUE])
    assert claim is not None
    return claim


def end(ledger: Ledger, code: ErrorCode) -> Claim:
    claim = claim_next(ledger)
    reason = "no attempt is left" if code is ErrorCode.WORKER_LOST else ""
    outcome = Outcome.of(code, claim.job_id, exit_code=0, attempts=claim.end_attempts(code))
    assert ledger.finish(claim, outcome, reason=reason)
    return claim


def submit(fleet: Fleet, count: int = len(CODES), **fields: Any) -> list[Job]:
    specs = [
        SandboxSpec(image="x", command=["true", str(at)], env=[f"N={at}"], labels={"at": str(at)}, **fields)
        for at in range(count)
    ]
    return fleet.submit_many(specs, batch="b")


@pytest.fixture
def jobs(fleet: Fleet, ledger: Ledger) -> list[Job]:
    """One job for each of `CODES`, ended so."""
    found = submit(fleet)
    for code in CODES:
        end(ledger, code)
    return found


def test_specs_of_what_did_not_end_ok_are_kept_as_long_as_the_outcome(client: Any, jobs: list[Job]) -> None:
    kept = [client.get(spec_key(job.id)) for job in jobs]
    assert kept[0] is None
    for at, message in enumerate(kept[1:], 1):
        request = read_request(message)
        assert request is not None
        assert request.spec.env == (f"N={at}",)
        assert 0 < client.ttl(job_key(jobs[at].id)) - client.ttl(spec_key(jobs[at].id)) + 2 < 4
    assert int(client.hget(SUM, "bytes")) == sum(len(message) + 256 for message in kept[1:])
    assert client.zcard(SPECS) == 3
    assert lasting_keys(client, ("owners", "queues")) == []


def test_a_retry_queues_what_did_not_end_ok_once(client: Any, fleet: Fleet, ledger: Ledger, jobs: list[Job]) -> None:
    plan = fleet.batch("b").plan_retry()
    assert (plan.total, plan.codes[ErrorCode.TIMEOUT], plan.not_kept) == (3, 1, 0)
    assert [facts.job_id for facts in plan.first] == [job.id for job in jobs[1:]]
    assert fleet.batch("b").counts == (4, 4), "a plan does nothing"

    assert fleet.batch("b").retry().queued == 3
    assert fleet.batch("b").retry().states == {}, "a second click finds no job"
    assert fleet.batch("b").counts == (4, 1)
    assert client.hget(SUM, "bytes") in {b"0", None}
    assert client.keys(f"{KEY_PREFIX}spec:*") == []
    assert fleet.dead.list() == []
    again = [end(ledger, ErrorCode.OK) for _ in range(3)]
    assert [(claim.job_id, claim.run) for claim in again] == [(job.id, 2) for job in jobs[1:]]
    assert fleet.batch("b").codes == {"OK": 4}
    assert jobs[2].outcome(run=1).code is ErrorCode.TIMEOUT
    assert lasting_keys(client, ("owners", "queues")) == []


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"codes": ["TIMEOUT", "worker_lost"]}, [2, 3]),
        ({"categories": ["host"]}, [3]),
        ({"labels": {"at": "1"}}, [1]),
        ({"codes": ["TIMEOUT"], "labels": {"at": "1"}}, []),
        ({"codes": ["OK"]}, []),
    ],
)
def test_a_retry_takes_those_that_match(
    fleet: Fleet, ledger: Ledger, jobs: list[Job], wanted: dict[str, Any], found: list[int]
) -> None:
    assert fleet.batch("b").plan_retry(**wanted).total == len(found)
    assert fleet.batch("b").retry(**wanted).queued == len(found)
    assert [end(ledger, ErrorCode.OK).job_id for _ in found] == [jobs[at].id for at in found]


def test_a_retry_changes_specs(client: Any, fleet: Fleet, ledger: Ledger, jobs: list[Job]) -> None:
    fingerprint = client.hget(job_key(jobs[2].id), "fingerprint")
    changes = {"timeout": 60, "resources.memory_bytes": "1GiB", "priority": 0}
    with pytest.raises(SpecInvalid, match=r"nothing was queued: resources.memory_bytes: .*and 2 more"):
        fleet.batch("b").retry(changes={"resources.memory_bytes": "7"})
    assert fleet.batch("b").retry(codes=["TIMEOUT"], changes=changes).queued == 1
    assert client.hget(job_key(jobs[2].id), "fingerprint") == fingerprint
    assert json.loads(client.hget(job_key(jobs[2].id), "needs"))["memory_bytes"] == 1 << 30
    claim = claim_next(ledger)
    request = read_request(claim.message)
    assert request is not None
    spec = request.spec
    assert (claim.job_id, spec.timeout, spec.resources.memory_bytes, spec.env) == (jobs[2].id, 60, 1 << 30, ("N=2",))
    header = json.loads(claim.message)["headers"]
    assert header["timelimit"] == [65.0, 60.0]


def test_a_job_that_cannot_be_changed_does_not_run(client: Any, fleet: Fleet, jobs: list[Job]) -> None:
    client.set(spec_key(jobs[2].id), b"no message of a job", ex=60)
    result = fleet.batch("b").retry(codes=["TIMEOUT"], changes={"timeout": 60})
    assert (result.queued, result.not_kept) == (0, 1)
    assert jobs[2].is_done


def test_ends_that_an_old_worker_recorded_are_found(client: Any, fleet: Fleet, jobs: list[Job]) -> None:
    client.hdel(job_key(jobs[2].id), "end_entry")
    client.delete(f"{KEY_PREFIX}ends:b", f"{KEY_PREFIX}counts:b")
    for job in (jobs[0], jobs[1], jobs[3]):
        client.hdel(job_key(job.id), "end_entry")
    assert fleet.batch("b").plan_retry().total == 3


def test_what_was_cancelled_in_the_queue_runs_again(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    """Its message is found in the queue behind others, or was kept when it left the queue."""
    fleet.submit(SandboxSpec(image="x", command=["other"]))
    first, *_ = jobs = submit(fleet, 3)
    for job in jobs:
        job.cancel()
    assert client.llen(f"{KEY_PREFIX}{DEFAULT_QUEUE}\x06\x166") == 4
    assert fleet.batch("b").plan_retry().not_kept == 0
    assert fleet.batch("b").retry(labels={"at": "0"}).queued == 1
    assert client.llen(f"{KEY_PREFIX}{DEFAULT_QUEUE}\x06\x166") == 2, "each message is taken out, one goes in"
    assert end(ledger, ErrorCode.OK).run == 1
    assert end(ledger, ErrorCode.OK).job_id == first.id
    assert fleet.batch("b").retry().queued == 2
    jobs[1].cancel()
    assert end(ledger, ErrorCode.OK).job_id == jobs[2].id
    assert ledger.claim("none", [DEFAULT_QUEUE])[0] is None
    assert fleet.batch("b").retry().queued == 1, "the claim kept the spec of the message that it dropped"
    assert end(ledger, ErrorCode.OK).run == 3
    assert lasting_keys(client, ("owners", "queues")) == []


def test_the_oldest_specs_go_first_and_are_counted(client: Any, fleet: Fleet, ledger: Ledger, jobs: list[Job]) -> None:
    # Specs are ordered by the millisecond in which they expire; two of one millisecond have no order.
    for job in jobs[2:]:
        (member,) = [name for name in client.zrange(SPECS, 0, -1) if name.endswith(job.id.encode())]
        client.zincrby(SPECS, 1, member)
    client.hset(SUM, "bytes", (256 << 20) - 100)
    submit(fleet, 1)
    end(ledger, ErrorCode.EXIT_NONZERO)
    assert client.get(spec_key(jobs[1].id)) is None, "the oldest was dropped"
    assert client.get(spec_key(jobs[2].id)) is not None
    assert fleet._channel.overview.count_dropped_specs() == 1
    assert fleet.batch("b").plan_retry(codes=["EXIT_NONZERO"]).not_kept == 1
    result = fleet.batch("b").retry(codes=["EXIT_NONZERO"])
    assert (result.queued, result.not_kept) == (1, 1)


def test_in_a_redis_that_is_almost_full_few_specs_are_kept(
    client: Any, fleet: Fleet, ledger: Ledger, jobs: list[Job]
) -> None:
    client.hset(SUM, "bytes", 16 << 20)
    submit(fleet, 2)
    maximum = client.config_get("maxmemory")["maxmemory"]
    try:
        client.config_set("maxmemory", int(client.info("memory")["used_memory"] / 0.85))
        last = end(ledger, ErrorCode.TIMEOUT).job_id
    finally:
        client.config_set("maxmemory", maximum)
    assert client.get(spec_key(last)) is None
    assert client.get(spec_key(jobs[1].id)) is not None, "those that are kept stay"
    assert fleet._channel.overview.count_dropped_specs() == 1
    assert client.get(spec_key(end(ledger, ErrorCode.TIMEOUT).job_id)) is not None


def test_a_spec_that_a_full_redis_does_not_keep_is_counted(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    (job,) = submit(fleet, 1)
    claim = claim_next(ledger)
    outcome = Outcome.of(ErrorCode.TIMEOUT, claim.job_id, attempts=claim.end_attempts(ErrorCode.TIMEOUT))
    maximum = client.config_get("maxmemory")["maxmemory"]
    try:
        client.config_set("maxmemory", 1 << 20)
        assert ledger.finish(claim, outcome)
    finally:
        client.config_set("maxmemory", maximum)
    assert client.get(spec_key(job.id)) is None
    assert fleet._channel.overview.count_dropped_specs() == 1
    assert client.ttl(SUM) > 0


def test_a_job_whose_record_is_gone_has_its_needs_again(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    """Its dead letter lives longer than its record."""
    (job,) = submit(fleet, 1, resources={"memory_bytes": "64MiB"}, requires={"gpu": "a"}, max_attempts=1)
    needs = client.hget(job_key(job.id), "needs")
    announce = {"host": "host", "queues": ["*"], "contract": 5, "ceilings": {}, "labels": {"gpu": "a"}}
    assert ledger.announce(json.dumps(announce), [], 600)
    end(ledger, ErrorCode.WORKER_LOST)
    client.delete(job_key(job.id))
    fleet.dead.requeue(job.id)
    assert client.hget(job_key(job.id), "needs") == needs


def test_a_job_whose_record_was_gone_is_one_row_and_one_that_ran_again_is_not_remembered(
    client: Any, fleet: Fleet, ledger: Ledger, jobs: list[Job]
) -> None:
    """The retry of the first one lists it again: it may have left the list with its record."""
    lost, again = jobs[3], jobs[2]
    client.delete(job_key(lost.id))
    assert fleet.batch("b").retry(codes=["WORKER_LOST", "TIMEOUT"]).queued == 2
    for _ in range(2):
        end(ledger, ErrorCode.WORKER_LOST)
    assert fleet.batch("b").retry(codes=["WORKER_LOST"]).queued == 2
    for _ in range(2):
        end(ledger, ErrorCode.OK)
    assert client.llen(f"{KEY_PREFIX}batch:b") == 5
    rows = BatchRows(fleet._channel, "b")
    found = [job for page in rows.read() for job in page]
    assert [job.job_id for job in found] == [job.id for job in jobs]
    assert [job.outcome.run for job in found if job.outcome and job.job_id in {lost.id, again.id}] == [3, 3]
    assert list(rows.relisted) == [lost.id]


def test_a_job_that_ended_ok_does_not_run_again(fleet: Fleet, jobs: list[Job]) -> None:
    assert fleet._channel.start_runs([(jobs[0].id, 1)]) == [RunState.NO_MESSAGE]


def test_forget_deletes_kept_specs_and_the_name(client: Any, fleet: Fleet, jobs: list[Job]) -> None:
    assert [batch.name for batch in fleet.batches()] == ["b"]
    assert fleet.batch("b").forget().forgotten == len(jobs)
    assert client.keys(f"{KEY_PREFIX}spec*") in ([], [SUM.encode()])
    assert list(fleet.batches()) == []


def test_the_needs_of_a_raised_attempt_are_in_the_record(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    """So hosts that lack the memory leave the job to others."""
    host_facts = {"host": "host", "queues": ["*"], "contract": 5, "ceilings": {"memory_bytes": 4 << 30}, "labels": {}}
    assert ledger.announce(json.dumps(host_facts), [], 600)
    (job,) = submit(fleet, 1, resources={"memory_bytes": "64MiB"}, retry_with={"memory_bytes": "1GiB"})
    before = json.loads(client.hget(job_key(job.id), "needs"))
    assert (before["contract"], before["memory_bytes"]) == (5, 64 << 20)
    needs = json.dumps({**before, "memory_bytes": 1 << 30})
    assert ledger.retry(claim_next(ledger), ErrorCode.OUT_OF_MEMORY, needs=needs)
    assert json.loads(client.hget(job_key(job.id), "needs")) == json.loads(needs)
    assert ledger.claim("small", [DEFAULT_QUEUE], {"free": 512 << 20})[0] is None
    assert client.hget(job_key(job.id), "why") == b"needs 1 GiB of memory, host has 512 MiB free"
    claim, _ = ledger.claim("large", [DEFAULT_QUEUE], {"free": 2 << 30})
    assert claim is not None
    assert [attempt.code for attempt in claim.attempts] == [ErrorCode.OUT_OF_MEMORY, None]
