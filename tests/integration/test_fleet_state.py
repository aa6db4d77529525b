"""The status that workers write to Redis, and the marks of operators."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from claims import claim_next, submit
from pydantic import SecretStr
from sandfleet import Fleet, SandboxSpec, Settings
from sandfleet.channel.fleet_state import MAX_MARKS, AuditEntry, Cordon, Pause
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Outcome
from sandfleet_config.queues import AUDIT, CORDONS, DEFAULT_QUEUE, KEY_PREFIX, PAUSED, job_key, status_key
from sandfleet_worker.delivery.claim import Claim, Refused

if TYPE_CHECKING:
    from sandfleet_worker.delivery.ledger import Ledger

OWNER = "host:one:one"
STATUS = {"state": "up", "queues": ["*"], "slots": 4, "busy": 1, "running": 1, "warm": {"python": 2}, "load": 0.5}
TRUE = SandboxSpec(image="x", command=["true"])
DUPLICATES = f"{KEY_PREFIX}duplicates"


def beat(ledger: Ledger, **fields: object) -> None:
    jobs = json.dumps([["job-1", 3, 1700000000], ["job-2", -1, 0]])
    ledger.beat(6, [], json.dumps(STATUS | fields, separators=(",", ":")), jobs)


def mark(fleet: Fleet, deadline: float | None = None) -> None:
    fleet.state.cordon(Cordon("host", "ann", time.time(), "a sick disk", deadline))


@pytest.fixture(autouse=True)
def _forget_marks(client: Any) -> Any:
    """Take the marks away, which have no TTL."""
    yield
    client.delete(CORDONS, PAUSED)


def test_a_beat_tells_how_the_worker_is(fleet: Fleet, client: Any, ledger: Ledger) -> None:
    beat(ledger)

    (worker,) = fleet.state.read_summary().workers
    assert (worker.owner, worker.host, worker.state, worker.slots, worker.busy) == (OWNER, "host", "up", 4, 1)
    assert worker.warm == {"python": 2}
    assert abs(worker.seen - time.time()) < 5
    assert 3 < worker.lease_seconds <= 6
    assert 0 < client.ttl(status_key(OWNER)) <= 18
    jobs = fleet.state.running_jobs("host")
    assert [(job.job_id, job.slot, job.started) for job in jobs] == [("job-1", 3, 1700000000.0), ("job-2", -1, 0.0)]
    assert fleet.state.running_jobs("other") == []

    ledger.leave()
    assert fleet.state.read_summary().workers == ()
    assert not client.keys(f"{KEY_PREFIX}status:*") + client.keys(f"{KEY_PREFIX}running:*")


def test_a_worker_without_a_lease_is_late_and_runs_nothing(fleet: Fleet, client: Any, ledger: Ledger) -> None:
    beat(ledger)
    client.zadd(f"{KEY_PREFIX}owners", {OWNER: time.time() * 1000 - 1})
    (worker,) = fleet.state.read_summary().workers
    assert worker.state == "late"
    assert fleet.state.running_jobs("host") == []
    assert fleet.state.host_images() == {}
    (queue,) = fleet.state.read_summary().queues
    assert (queue.name, queue.is_served) == (DEFAULT_QUEUE, False)


def test_a_taken_over_worker_leaves_no_status(fleet: Fleet, client: Any, ledger: Ledger) -> None:
    beat(ledger)
    client.zadd(f"{KEY_PREFIX}owners", {"dead:1:1": 1})
    client.set(status_key("dead:1:1"), "{}", ex=60)
    client.set(f"{KEY_PREFIX}running:dead:1:1", "[]", ex=60)
    assert ledger.reap(may_take=True)[0] == "dead:1:1"
    assert [key for key in client.keys("*dead:1:1*") if b"claims" not in key] == []


def test_a_worker_of_an_earlier_release_is_shown_by_what_it_announced(
    fleet: Fleet, client: Any, ledger: Ledger
) -> None:
    ledger.announce(json.dumps({"queues": ["gpu-*"], "labels": {"arch": "x86_64"}, "budget": 7}), [], 60)
    (worker,) = fleet.state.read_summary().workers
    assert (worker.queues, worker.labels, worker.memory_budget) == (("gpu-*",), {"arch": "x86_64"}, 7)
    (queue,) = fleet.state.read_summary().queues
    assert queue.workers == 0
    mark(fleet)
    assert fleet.state.read_summary().workers[0].state == "up", "it does not obey marks"


def test_a_cordoned_host_claims_nothing_and_works_on_afterwards(fleet: Fleet, ledger: Ledger, url: str) -> None:
    (first,) = submit(url)
    claim, _ = claim_next(ledger, "before")
    assert claim is not None
    (second,) = submit(url)
    mark(fleet)

    assert claim_next(ledger, "later")[0] is None
    assert ledger.is_cordoned
    assert claim_next(ledger, "before")[0] == claim, "the answer of a claim before the mark may have got lost"
    assert ledger.beat(6, []).mark.startswith(b'{"by": "ann"')
    assert ledger.finish(claim, Outcome.of(ErrorCode.OK, first)), "running jobs go on"

    assert fleet.state.uncordon("host")
    assert not fleet.state.uncordon("host")
    assert ledger.beat(6, []).mark == b""
    found, _ = claim_next(ledger, "later")
    assert found is not None
    assert found.job_id == second
    assert not ledger.is_cordoned


def test_a_job_that_waits_does_not_start_on_a_cordoned_host(fleet: Fleet, ledger: Ledger, url: str) -> None:
    (job,) = submit(url)
    claim, _ = claim_next(ledger, "one")
    assert claim is not None
    assert ledger.wait(claim)
    mark(fleet)
    assert ledger.start(claim) is Refused.CORDONED
    assert ledger.give_back(claim)
    fleet.state.uncordon("host")
    again, _ = claim_next(ledger, "two")
    assert again is not None
    assert again.job_id == job
    assert len(again.attempts) == 1, "the wait was free"


def test_no_job_of_a_paused_queue_starts(fleet: Fleet, ledger: Ledger, url: str, client: Any) -> None:
    (paused,) = submit(url)
    fleet.state.pause(Pause(DEFAULT_QUEUE, "ann", time.time(), "a bad release"))
    assert claim_next(ledger, "one")[0] is None
    assert client.sismember(f"{KEY_PREFIX}queues", DEFAULT_QUEUE), "it still has jobs"
    (queue,) = fleet.state.read_summary().queues
    assert queue.pause is not None
    assert (queue.pause.note, queue.total) == ("a bad release", 1)
    with Fleet(Settings(redis_url=SecretStr(url), queue="other")) as others:
        other = others.submit(TRUE).id
    claim, _ = ledger.claim("two", [DEFAULT_QUEUE, "other"])
    assert claim is not None
    assert claim.job_id == other, "other queues go on"
    job = fleet.job(paused)
    job.cancel()
    assert job.outcome(timeout=5).code is ErrorCode.CANCELLED

    assert fleet.state.resume(DEFAULT_QUEUE)
    (after,) = submit(url)
    found, _ = claim_next(ledger, "three")
    assert found is not None
    assert found.job_id == after


def test_the_state_of_a_worker_follows_the_mark_at_once(fleet: Fleet, ledger: Ledger) -> None:
    beat(ledger)
    mark(fleet)
    assert fleet.state.read_summary().workers[0].state == "cordoned"
    mark(fleet, time.time() + 60)
    summary = fleet.state.read_summary()
    assert summary.workers[0].state == "draining"
    assert summary.cordons[0].reason == "a sick disk"
    beat(ledger, state="drained")
    assert fleet.state.read_summary().workers[0].state == "drained"
    fleet.state.uncordon("host")
    assert fleet.state.read_summary().workers[0].state == "up", "the mark is what counts"


def test_a_queue_says_how_many_wait_and_since_when(fleet: Fleet, client: Any, ledger: Ledger) -> None:
    began = time.time()
    jobs = [fleet.submit(TRUE.model_copy(update={"priority": step})).id for step in (9, 0, 3, 0)]
    client.hset(job_key(jobs[2]), "expires", round((began + 10) * 1000))
    beat(ledger)

    (queue,) = fleet.state.read_summary().queues

    assert dict(queue.waiting) == {0: 2, 3: 1, 6: 0, 9: 1}
    assert began - 1 < queue.oldest < time.time() + 1
    assert queue.workers == 1
    order = [jobs[1], jobs[3], jobs[2], jobs[0]]
    assert fleet.state.queued_ids(DEFAULT_QUEUE, 0, 10) == order
    assert fleet.state.queued_ids(DEFAULT_QUEUE, 1, 2) == order[1:3]
    assert fleet.state.queued_ids(DEFAULT_QUEUE, 3, 2) == order[3:]
    assert fleet.state.queued_ids("nothing", 0, 5) == []
    assert fleet.state.count_expiring(DEFAULT_QUEUE, began + 60) == 1


def test_the_age_of_a_job_that_runs_again_counts_from_its_retry(fleet: Fleet, client: Any) -> None:
    job = fleet.submit(TRUE)
    client.hset(job_key(job.id), "submitted", round((time.time() - 3600) * 1000))
    (queue,) = fleet.state.read_summary().queues
    assert 3590 < time.time() - queue.oldest < 3700


def test_peeking_at_200_queues_is_quick_and_sends_no_message(fleet: Fleet, client: Any) -> None:
    body = "x" * 250_000
    message = json.dumps({"body": body, "headers": {"id": "j", "sandfleet-submitted": 1700000000.5}})
    for number in range(250):
        client.sadd(f"{KEY_PREFIX}queues", f"q{number:03}")
        if number < 40:
            client.lpush(f"{KEY_PREFIX}q{number:03}", message)
    client.config_resetstat()
    summary = fleet.state.read_summary()
    spent = client.info("commandstats")["cmdstat_evalsha"]["usec"]
    assert len(summary.queues) == 200
    assert spent < 50_000
    assert {queue.oldest for queue in summary.queues if queue.total} == {1700000000.5}


def test_runs_that_did_not_count_are_counted_though_redis_keeps_the_newest_alone(
    fleet: Fleet, client: Any, ledger: Ledger
) -> None:
    assert fleet.state.read_summary().duplicates == 0
    fleet.submit(SandboxSpec(image="x", command=["true"]))
    claim, _ = claim_next(ledger, "mine")
    assert claim is not None
    outcome = Outcome.of(ErrorCode.OK, claim.job_id, exit_code=0)
    assert ledger.finish(claim, outcome)
    assert not ledger.finish(replace(claim, claim_id="anothers"), outcome)
    assert fleet.state.read_summary().duplicates == 1

    for _ in range(20):
        client.xadd(DUPLICATES, {"job": "x"}, maxlen=5)
    assert fleet.state.read_summary().duplicates == 21

    client.delete(DUPLICATES)
    client.set(DUPLICATES, "forged")
    assert fleet.state.read_summary().duplicates == 0


def test_entries_of_the_audit_come_newest_first_and_by_pages(fleet: Fleet, client: Any) -> None:
    for number in range(5):
        entry = AuditEntry(by="ann", role="operator", via="cli", action="cordon", target=f"host-{number}", count=number)
        fleet.state.add_audit(entry)
    first = fleet.state.read_audit(2)
    rest = fleet.state.read_audit(10, before=first[-1].entry_id)
    assert [entry.target for entry in first + rest] == [f"host-{number}" for number in (4, 3, 2, 1, 0)]
    assert (first[0].by, first[0].count, first[0].via) == ("ann", 4, "cli")
    assert abs(first[0].at - time.time()) < 5
    assert 0 < client.ttl(AUDIT) <= 365 * 86400
    assert len(fleet.state.read_audit(10, before="no id")) == 5


def test_marks_are_bounded(fleet: Fleet, client: Any) -> None:
    client.hset(CORDONS, mapping={f"h{number}": "{}" for number in range(MAX_MARKS)})
    with pytest.raises(ValueError, match="10,000 hosts are cordoned"):
        mark(fleet)
    fleet.state.cordon(Cordon("h7", "ann", 1.0, "changed"))
    assert len(fleet.state.read_summary().cordons) == MAX_MARKS
    client.delete(CORDONS)


FORGED: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[1]",
    "no UTF-8": b"\xff\xfe",
    "too deep": b"[" * 3000,
    "half a UTF-16 pair": b'{"host": "\\ud800", "state": "\\ud800", "warm": {"\\ud800": 1}, "reason": "\\ud800"}',
    "wrong types": b'{"state": 7, "queues": "x", "slots": "y", "warm": [], "load": {}, "labels": {"a": 1}, "at": "z"}',
    "endless numbers": b'{"slots": 1e999, "load": NaN, "busy": -1, "at": %s, "deadline": 1e999}' % (b"9" * 400),
    "a state of its own": b'{"state": "<script>", "queues": ["\\u202e"], "deadline": true}',
    "10 MB": b'{"reason": "%s"}' % (b"x" * 10_000_000),
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_status_or_mark_harms_nobody(fleet: Fleet, client: Any, ledger: Ledger, url: str, case: str) -> None:
    text = FORGED[case]
    (job,) = submit(url)
    for key in (status_key(OWNER), f"{KEY_PREFIX}running:{OWNER}", f"{KEY_PREFIX}host_images:host"):
        client.set(key, text, ex=60)
    client.hset(f"{KEY_PREFIX}hosts", OWNER, text)
    client.hset(CORDONS, mapping={b"host": text, b"\xff": text, b"x" * 100_000: text})
    client.hset(PAUSED, mapping={b"other": text, b"a b": text, b"\xff": text})
    client.xadd(AUDIT, {"by": text, "count": text[:1000], "forged": text})
    client.expire(AUDIT, 60)
    client.config_resetstat()

    summary = fleet.state.read_summary()
    json.dumps([summary.workers[0].warm, summary.cordons[0].reason]).encode()
    summary.cordons[0].reason.encode()
    assert "host" in [cordon.host for cordon in summary.cordons]
    assert summary.workers[0].state == "up", "it reports nothing that could be read"
    assert [queue.name for queue in summary.queues] == ["other", DEFAULT_QUEUE]
    assert fleet.state.running_jobs("host") == []
    assert fleet.state.host_images() == {"host": []}
    fleet.state.read_audit(10)
    assert client.info("stats")["total_net_output_bytes"] < 500_000, "nothing long is sent"

    assert claim_next(ledger, "one")[0] is None
    found = ledger.beat(6, [])
    assert 0 < len(found.mark) <= 4096
    client.delete(CORDONS)
    claim, _ = claim_next(ledger, "one")
    assert isinstance(claim, Claim)
    assert claim.job_id == job
    client.delete(f"{KEY_PREFIX}hosts")


@pytest.mark.parametrize("kind", ["string", "list"])
def test_keys_of_a_wrong_type_count_as_empty(fleet: Fleet, client: Any, ledger: Ledger, url: str, kind: str) -> None:
    names = ["cordons", "paused", "audit", f"status:{OWNER}", f"running:{OWNER}", "host_images:host", "hosts", "queues"]
    names += ["delayed", "dead", "ended_runs:last", "limited", "groups"]
    (job,) = submit(url)
    for name in names:
        client.delete(f"{KEY_PREFIX}{name}")
        if kind == "string":
            client.set(f"{KEY_PREFIX}{name}", "x", ex=60)
        else:
            client.rpush(f"{KEY_PREFIX}{name}", "x")
            client.expire(f"{KEY_PREFIX}{name}", 60)

    summary = fleet.state.read_summary()
    assert (len(summary.workers), summary.cordons, summary.delayed, summary.dead_letters) == (1, (), 0, 0)
    assert fleet.state.read_audit(10) == []
    claim, _ = claim_next(ledger, "one")
    assert claim is not None
    assert claim.job_id == job
    beat(ledger)
    assert fleet.state.read_summary().workers[0].slots == 4, "a beat replaces what is wrong"
    assert not fleet.state.uncordon("host")
    mark(fleet)
    fleet.state.pause(Pause("q", "ann", 1.0, ""))
    fleet.state.add_audit(AuditEntry(by="ann", via="cli", action="cordon", target="host"))
    summary = fleet.state.read_summary()
    assert summary.workers[0].state == "cordoned"
    assert len(fleet.state.read_audit(10)) == 1


def test_owners_of_a_wrong_type_show_no_workers(fleet: Fleet, client: Any) -> None:
    client.set(f"{KEY_PREFIX}owners", "x", ex=60)
    assert fleet.state.read_summary().workers == ()
    client.delete(f"{KEY_PREFIX}owners")


def test_no_queue_may_have_the_name_of_these_keys(fleet: Fleet) -> None:
    for name in ("cordons", "paused", "audit", "ended_runs", "shared_images"):
        with pytest.raises(ValueError, match="the name is taken"):
            fleet.settings.model_validate({"queue": name})
