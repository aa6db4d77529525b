"""Which host a job goes to, by what it needs and what hosts say they have: the scripts alone, with leases but no sandboxes."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet import Fleet, SpecInvalid
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, job_key
from sandfleet_config.wire import join_needs
from sandfleet_worker.delivery.claim import Claim, Flag
from sandfleet_worker.delivery.envelope import open_message
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.delivery.read_message import read_message
from sandfleet_worker.delivery.settlement import PutBack
from waiting import wait_until

if TYPE_CHECKING:
    from sandfleet import Job
MIB = 1 << 20
FREE = 1 << 40


class HostOfTest:
    """A worker's ledger on a host that has what the test says."""

    def __init__(self, client: Any, name: str, *, images: tuple[str, ...] = ("x",), **facts: Any) -> None:
        self.name, self._images, self._calls = name, images, 0
        ceilings = {"memory_bytes": 512 * MIB, "timeout": 3600, "cpu_quota": 200_000}
        self._facts = {
            "queues": [DEFAULT_QUEUE],
            "contract": 3,
            "budget": 1024 * MIB,
            "ceilings": ceilings,
            "labels": {},
            "has_all_images": True,
        } | facts
        self.ledger = Ledger(client, Identity(name, f"{name}.1", f"{name}:1:1"), 3600)
        self.ledger.register(600_000)
        self.announce()

    def announce(self, **facts: Any) -> None:
        self._facts |= facts
        assert self.ledger.announce(json.dumps(self._facts), self._images, 600)

    def claim(self, free: int = FREE) -> Claim | None:
        self._calls += 1
        claim_id = f"{self.name}-{self._calls}"
        while True:
            claim, may_be_more = self.ledger.claim(claim_id, [DEFAULT_QUEUE], {"free": free})
            if claim is not None or not may_be_more:
                return claim

    def takes(self, job: Job, free: int = FREE) -> None:
        claim = self.claim(free)
        assert claim is not None
        assert claim.job_id == job.id


def submit(fleet: Fleet, **fields: Any) -> Job:
    return fleet.submit({"image": "x", "command": ["true"], **fields})


def read_why(fleet: Fleet, job: Job) -> str:
    record = fleet.record(job.id)
    assert record is not None
    return record.why


def needs_memory(mib: int) -> dict[str, Any]:
    return {"resources": {"memory_bytes": mib * MIB}}


def test_a_job_goes_where_its_needs_are_met(fleet: Fleet, client: Any) -> None:
    """Each row: what the job needs, what one host has, what another has instead, and why the job waits for that one."""
    digest = f"sha256:{'a' * 64}"
    for fields, facts, images, why in (
        ({"image": "y"}, {}, ("x", "y"), "needs image y, which one does not have"),
        ({"image": "y:latest"}, {}, ("y",), "needs image y, which one does not have"),
        ({"image": f"x@{digest}"}, {}, ("x", digest), f"needs image x@{digest}, which one does not have"),
        (
            needs_memory(600),
            {"ceilings": {"memory_bytes": 1 << 30}},
            ("x",),
            "needs 600 MiB of memory, which one does not let a job have",
        ),
        (
            {"timeout": 7200},
            {"ceilings": {"timeout": 9000}},
            ("x",),
            "needs a timeout of 7200 s, which one does not let a job have",
        ),
        (
            {"resources": {"cpu_quota": 250_000}},
            {"ceilings": {"cpu_quota": 400_000}},
            ("x",),
            "needs 2.5 cores, which one does not let a job have",
        ),
        ({"requires": {"gpu": "yes"}}, {"labels": {"gpu": "yes"}}, ("x",), "needs gpu=yes, which one does not have"),
    ):
        client.flushdb()
        one = HostOfTest(client, "one")
        other = HostOfTest(client, "other", images=images, **facts)
        job, after = submit(fleet, **fields), submit(fleet)
        one.takes(after)
        assert (read_why(fleet, job), client.hget(job_key(job.id), "state")) == (why, b"queued")
        other.takes(job)
        assert client.hmget(job_key(job.id), "why", "why_at") == [None, None]


def test_what_no_live_host_has_ends_where_it_is_a_mistake_and_waits_where_it_is_a_label(
    fleet: Fleet, client: Any
) -> None:
    one = HostOfTest(client, "one")
    HostOfTest(client, "elsewhere", images=("y",), labels={"gpu": "yes"}, queues=["other*"])
    for fields in ({"image": "y"}, needs_memory(600)):
        one.takes(submit(fleet, **fields))  # to end it with its code

    waits = submit(fleet, requires={"gpu": "yes", "zone": "a"})
    after = submit(fleet)
    one.takes(after)
    assert one.claim() is None
    assert read_why(fleet, waits).startswith("no live host")
    assert client.llen(f"{KEY_PREFIX}{DEFAULT_QUEUE}") == 0, "it stands in nobody's way"
    one.announce(labels={"gpu": "yes", "zone": "a"})
    client.zadd(f"{KEY_PREFIX}delayed", {waits.id: 1})
    one.takes(waits)


def test_many_jobs_that_no_host_can_run_hold_up_no_other(fleet: Fleet, client: Any) -> None:
    one = HostOfTest(client, "one")
    spec = {"image": "x", "requires": {"gpu": "yes"}}
    many = fleet.submit_many([spec] * 1000, batch="gpu")
    after = submit(fleet)
    one.takes(after)
    assert client.zcard(f"{KEY_PREFIX}delayed") == len(many)
    assert many[0].cancel().is_ended
    assert client.zcard(f"{KEY_PREFIX}delayed") == len(many) - 1


def test_a_newer_contract_is_put_back_and_never_ended(fleet: Fleet, client: Any) -> None:
    old = HostOfTest(client, "old", contract=2)
    job = submit(fleet, requires={})
    client.hset(job_key(job.id), "needs", json.dumps({"contract": 4, "image": "x"}))
    assert old.claim() is None
    assert read_why(fleet, job) == "no live host speaks contract version 4"
    new = HostOfTest(client, "new", contract=4)
    client.zadd(f"{KEY_PREFIX}delayed", {job.id: 1})
    assert old.claim() is None
    new.takes(job)


def test_a_stock_producers_newer_message_is_for_whoever_speaks_it(client: Any) -> None:
    one = HostOfTest(client, "one")
    for contract, newer in ((4, 4), (3, 0), (0, 0), ("4", 0), (True, 0), (10**9, 0)):
        text = json.dumps({"contract": contract, "spec": {"image": ""}})
        body = json.dumps([[text], {}, {}])
        headers = {"id": "stock", "task": "sandfleet.run"}
        message = {"body": body, "content-type": "application/json", "content-encoding": "utf-8", "headers": headers}
        claim = Claim("claim", "stock", Flag.START, json.dumps(message).encode())
        job_message = read_message(open_message(claim), 1000)
        assert job_message is not None
        assert (job_message.newer_contract, job_message.request) == (newer, None)
    needs = join_needs(4)
    assert not one.ledger.has_other_host(needs, DEFAULT_QUEUE, "stock")
    other = HostOfTest(client, "other", contract=4)
    assert one.ledger.has_other_host(needs, DEFAULT_QUEUE, "stock")
    assert not one.ledger.has_other_host(needs, "another", "stock")
    other.ledger.leave()
    assert not one.ledger.has_other_host(needs, DEFAULT_QUEUE, "stock")


def test_a_worker_of_an_older_release_counts_as_one_that_may_have_everything_of_contract_2(
    fleet: Fleet, client: Any
) -> None:
    one = HostOfTest(client, "one")
    older = Ledger(client, Identity("older", "older.1", "older:1:1"), 3600)
    older.register(600_000)
    job = submit(fleet, image="y")
    assert one.claim() is None
    assert read_why(fleet, job) == "needs image y, which one does not have"
    older.leave()
    one.takes(job)
    fleet.submit({"image": "x", "resources": {"memory_bytes": "1GiB"}})


def test_a_job_waits_for_memory_at_its_place_and_says_so(fleet: Fleet, client: Any) -> None:
    one = HostOfTest(client, "one")
    large, small, untold = submit(fleet, **needs_memory(400)), submit(fleet, **needs_memory(100)), submit(fleet)
    one.takes(small, free=300 * MIB)
    assert read_why(fleet, large) == "needs 400 MiB of memory, one has 300 MiB free"
    assert one.claim(free=399 * MIB) is None
    assert one.ledger.lacks_memory
    client.hdel(job_key(large.id), "why_at")
    assert one.claim(free=400 * MIB - 1) is None
    assert read_why(fleet, large) == "needs 419430400 bytes of memory, one has 419430399 bytes free"
    assert read_why(fleet, untold) == "needs 512 MiB of memory, one has 399 MiB free"
    one.takes(large, free=400 * MIB)
    assert one.claim(free=400 * MIB) is None, "a job that does not say gets as much as the host lets it have"
    one.takes(untold, free=512 * MIB)
    assert not one.ledger.lacks_memory


def test_a_host_keeps_its_memory_for_a_job_that_waited_long_and_only_one_does(fleet: Fleet, client: Any) -> None:
    one, other = HostOfTest(client, "one"), HostOfTest(client, "other")
    large = submit(fleet, **needs_memory(400))
    first, second, third = (submit(fleet, **needs_memory(100)) for _ in range(3))
    one.takes(first, free=300 * MIB)
    client.hincrby(job_key(large.id), "short_since", -10_000)

    assert one.claim(free=300 * MIB) is None
    assert read_why(fleet, second) == f"one keeps its memory for job {large.id}"
    other.takes(second, free=300 * MIB)
    urgent = submit(fleet, priority=0, **needs_memory(100))
    one.takes(urgent, free=300 * MIB)
    assert 0 < client.pttl(f"{KEY_PREFIX}keeps:one") <= 5000
    one.takes(large, free=400 * MIB)
    assert not client.exists(f"{KEY_PREFIX}keeps:one")
    one.takes(third, free=300 * MIB)


def test_a_kept_job_that_is_gone_frees_the_host(fleet: Fleet, client: Any) -> None:
    one = HostOfTest(client, "one")
    large, small = submit(fleet, **needs_memory(400)), submit(fleet, **needs_memory(100))
    client.hset(job_key(large.id), "short_since", 1)
    assert one.claim(free=300 * MIB) is None
    assert large.cancel().is_ended
    one.takes(small, free=300 * MIB)


def test_what_is_put_back_by_its_worker_was_never_started(fleet: Fleet, client: Any) -> None:
    one = HostOfTest(client, "one")
    job = submit(fleet, queue_ttl=50)
    client.hdel(job_key(job.id), "needs")
    before = client.hget(job_key(job.id), "expires")
    claim = one.claim()
    assert claim is not None
    needs = json.dumps({"contract": 1, "image": "x", "memory_bytes": 64 * MIB})
    why = PutBack("for want of memory", needs)
    assert one.ledger.put_back(claim, why)
    assert one.ledger.put_back(claim, why), "a repeated call tells the same"
    assert read_why(fleet, job) == "for want of memory"
    assert client.hmget(job_key(job.id), "state", "attempts", "expires") == [b"queued", b"", before]
    assert client.zscore(f"{KEY_PREFIX}expiring", job.id) == float(before)
    assert one.claim(free=63 * MIB) is None, "its needs are known now"
    assert client.hget(job_key(job.id), "why") == b"for want of memory", "told once a second"
    one.takes(job, free=64 * MIB)


def test_a_stock_producers_job_that_waits_for_a_host_expires_like_any_other(client: Any) -> None:
    one = HostOfTest(client, "one")
    message = json.dumps({"headers": {"id": "stock", "task": "sandfleet.run"}})
    client.lpush(f"{KEY_PREFIX}{DEFAULT_QUEUE}", message)
    claim = one.claim()
    assert claim is not None
    needs = json.dumps({"contract": 3, "image": "x", "requires": {"gpu": "yes"}})
    assert one.ledger.put_back(claim, PutBack("needs gpu=yes", needs, 0.01))
    wait_until(one.ledger.find_expired, 2, "its time is over")
    found = one.claim()
    assert found is not None
    assert (found.job_id, found.flag) == ("stock", "expired")


def test_a_job_too_large_for_every_live_host_is_refused_at_submit(fleet: Fleet, client: Any) -> None:
    large = {"image": "x", "resources": {"memory_bytes": "1GiB"}}
    fleet.submit(large)  # no host is known
    fleet.close()
    HostOfTest(client, "small", budget=300 * MIB)
    HostOfTest(client, "larger", budget=700 * MIB)

    def refusal() -> str:
        try:
            fleet.submit(large)
        except SpecInvalid as error:
            return error.message
        return ""

    wait_until(refusal, 3, "the hosts are seen")
    assert (
        refusal()
        == "resources.memory_bytes: 1 GiB is more than any live host has for its jobs: the largest has 700 MiB"
    )
    with pytest.raises(
        SpecInvalid, match=r"nothing was queued, 1 of 2 specs are faulty: specs\[1\].resources.memory_bytes"
    ):
        fleet.submit_many([{"image": "x"}, large])
    fleet.submit({"image": "x", "resources": {"memory_bytes": "700MiB"}})


def test_what_a_worker_said_goes_with_its_lease(client: Any) -> None:
    left, dead, one = (HostOfTest(client, name) for name in ("left", "dead", "one"))
    assert client.hlen(f"{KEY_PREFIX}hosts") == 3
    left.ledger.leave()
    client.zadd(f"{KEY_PREFIX}owners", {"dead:1:1": 1})
    assert one.ledger.reap(may_take=True)[0] == "dead:1:1"
    assert client.hkeys(f"{KEY_PREFIX}hosts") == [b"one:1:1"]
    assert client.keys(f"{KEY_PREFIX}images:*") == [f"{KEY_PREFIX}images:one:1:1".encode()]
    assert not left.ledger.announce("{}", ["x"], 600), "without a lease nothing is said"
    assert dead.claim is not None


def test_hosts_that_each_found_that_they_cannot_run_a_job_do_not_hand_it_to_each_other_for_ever(
    fleet: Fleet, client: Any
) -> None:
    one, other = (HostOfTest(client, name, has_all_images=False) for name in ("one", "other"))
    job = submit(fleet, image="nowhere")
    why = PutBack("needs an image that it does not have", join_needs(1, '"image":"nowhere"}'))
    claim = one.claim()
    assert claim is not None
    assert one.ledger.has_other_host(why.needs, DEFAULT_QUEUE, job.id)
    assert one.ledger.put_back(claim, replace(why, avoid_host="one"))
    claim = other.claim()
    assert claim is not None
    assert not other.ledger.has_other_host(why.needs, DEFAULT_QUEUE, job.id), "the other one was tried"
    third = HostOfTest(client, "third")
    assert not other.ledger.has_other_host(why.needs, DEFAULT_QUEUE, job.id)
    third.ledger.leave()
    HostOfTest(client, "fourth", images=("nowhere",))
    assert other.ledger.has_other_host(why.needs, DEFAULT_QUEUE, job.id)


def test_a_host_keeps_no_memory_for_a_job_that_it_does_not_reach(fleet: Fleet, client: Any) -> None:
    one = HostOfTest(client, "one")
    large = submit(fleet, **needs_memory(400))
    client.hset(job_key(large.id), "short_since", 1)
    assert one.claim(free=300 * MIB) is None
    kept = f"{KEY_PREFIX}keeps:one"
    assert client.get(kept) == large.id.encode()
    queued = f"{KEY_PREFIX}{DEFAULT_QUEUE}\x06\x166"
    for _ in range(20):
        submit(fleet, **needs_memory(100))
        assert client.lmove(queued, queued, "LEFT", "RIGHT"), "as a job that is given back"
    client.pexpire(kept, 1000)
    assert one.claim() is None
    assert client.pttl(kept) <= 1000, "nobody sees the job: the key's time goes on"
    client.delete(kept)
    assert one.claim() is not None


def test_a_worker_of_other_queues_does_not_make_its_host_keep_memory(fleet: Fleet, client: Any) -> None:
    one = HostOfTest(client, "one")
    large = submit(fleet, **needs_memory(400))
    client.hset(job_key(large.id), "short_since", 1)
    assert one.claim(free=300 * MIB) is None
    kept = f"{KEY_PREFIX}keeps:one"
    client.pexpire(kept, 1000)
    neighbour = Ledger(client, Identity("one", "one.2", "one:2:2"), 3600)
    neighbour.register(600_000)
    assert neighbour.claim("neighbour-1", ["another"], {"free": FREE}) == (None, False)
    assert client.pttl(kept) <= 1000, "it cannot know whether the job is still waited for"


def test_many_jobs_of_another_host_hold_up_none_of_this_one(fleet: Fleet, client: Any) -> None:
    one, other = HostOfTest(client, "one"), HostOfTest(client, "other", labels={"gpu": "yes"})
    many = fleet.submit_many([{"image": "x", "requires": {"gpu": "yes"}}] * 1000, batch="gpu")
    after = submit(fleet)
    one.takes(after)
    for _ in range(10):  # so many keep their place
        claim = other.claim()
        assert claim is not None
        assert claim.job_id in {job.id for job in many}
    assert one.claim() is None


def test_a_large_job_is_helped_although_one_for_another_host_stands_before_it(fleet: Fleet, client: Any) -> None:
    one, _ = HostOfTest(client, "one"), HostOfTest(client, "other", labels={"gpu": "yes"})
    submit(fleet, requires={"gpu": "yes"})
    large, larger = submit(fleet, **needs_memory(400)), submit(fleet, **needs_memory(500))
    submit(fleet, **needs_memory(100))
    client.hset(job_key(large.id), "short_since", 1)
    client.hset(job_key(larger.id), "short_since", 1)
    assert one.claim(free=300 * MIB) is None
    assert client.get(f"{KEY_PREFIX}keeps:one") == large.id.encode()
    one.takes(large, free=400 * MIB)


def test_what_nobody_can_read_of_a_host_or_of_a_jobs_needs_costs_no_job(fleet: Fleet, client: Any) -> None:
    """Each row: what stands there instead, of the host that claims and of another."""
    rows: tuple[dict[str, Any], ...] = (
        {"labels": 5, "ceilings": {"memory_bytes": "x", "timeout": None}},
        {"labels": "a", "ceilings": 5, "contract": "x", "queues": 5},
        {"labels": {"gpu": ["yes"]}, "ceilings": {"memory_bytes": {}}, "queues": [{}], "has_all_images": "x"},
    )
    for facts in rows:
        client.flushdb()
        one = HostOfTest(client, "one")
        HostOfTest(client, "other", **facts)
        one.takes(submit(fleet, image="x"))
        one.announce(**facts)
        job = submit(fleet, image="x")
        one.takes(job)
        waits = submit(fleet, requires={"gpu": "yes"})
        assert one.claim() is None
        assert client.hget(job_key(waits.id), "state") == b"queued"
        assert client.zcard(f"{KEY_PREFIX}dead") == 0
    client.flushdb()
    one = HostOfTest(client, "one")
    for needs in ('{"requires":5}', '{"memory_bytes":{},"image":5,"contract":[]}', "5", "x", '{"timeout":"x"}'):
        job = submit(fleet)
        client.hset(job_key(job.id), "needs", needs)
        one.takes(job)
