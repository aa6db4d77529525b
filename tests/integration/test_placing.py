"""Which host a job goes to, by its needs and what hosts say they have.

Runs the scripts alone, with leases but no sandboxes.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from typing import Any

import pytest
from placing_hosts import MIB, HostOfTest, needs_memory, read_why, submit
from sandfleet import Fleet
from sandfleet_config.codes import ErrorCode
from sandfleet_config.image_names import normalize_image, split_pattern
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, job_key
from sandfleet_config.wire import join_needs
from sandfleet_worker.delivery.claim import Claim, Flag
from sandfleet_worker.delivery.envelope import open_message
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.delivery.read_message import read_message
from sandfleet_worker.delivery.settlement import PutBack
from waiting import wait_until


def test_a_job_goes_where_its_needs_are_met(fleet: Fleet, client: Any) -> None:
    """Each row: the job's need, what one host has, what another has, why the job waits for it."""
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


def test_a_job_goes_to_a_host_that_has_its_image_or_may_pull_it(fleet: Fleet, client: Any) -> None:
    """Each row: the job's image, what one host may pull, what the other host has or may pull."""
    digest, name = f"sha256:{'a' * 64}", "docker://docker.io/library/python:3"
    for image, ours, images, theirs in (
        ("docker://python:3", (), (), ("python",)),
        ("docker://python:3", ("team/*",), (), ("*",)),
        ("docker://python:3", ("python:2",), (), ("python:3*",)),
        ("docker://python:3", (), (name,), ()),
        (f"docker://python@{digest}", ("registry.example",), (digest,), ()),
        ("docker://registry.example/team/app", ("evil.com",), (), ("registry.example/team/*",)),
        ("docker://evil.com/x.example/app", ("*.example",), (), ("evil.com",)),
    ):
        client.flushdb()
        one = HostOfTest(client, "one", contract=4, pull_from=[split_pattern(pattern) for pattern in ours])
        pull_from = [split_pattern(pattern) for pattern in theirs]
        other = HostOfTest(client, "other", images=images, contract=4, pull_from=pull_from)
        job, after = submit(fleet, image=image), submit(fleet)
        one.takes(after)
        assert read_why(fleet, job) == f"needs image {normalize_image(image)}, which one does not have"
        other.takes(job)


def test_a_job_goes_to_a_host_that_has_its_datasets_and_mounts_them(fleet: Fleet, client: Any) -> None:
    """Each row: the job's datasets, what each of two hosts has, why the job awaits the first."""
    hex_digest = "a" * 64
    names = ("x", "/data/corpus", f"/data/sha256:{hex_digest}")
    rows: tuple[tuple[list[Any], dict[str, Any], str], ...] = (
        ([{"name": "corpus"}], {}, "dataset corpus"),
        ([{"sha256": hex_digest, "path": "/data/a"}], {}, f"dataset sha256:{hex_digest}"),
        ([{"name": "corpus", "sha256": hex_digest}], {}, f"dataset corpus@sha256:{hex_digest}"),
        ([{"name": "corpus"}], {"mounts_datasets": False}, "a runsc that mounts datasets"),
    )
    for datasets, ours, why in rows:
        client.flushdb()
        one = HostOfTest(client, "one", contract=4, has_all_datasets=True)
        one.announce(**ours)
        other = HostOfTest(client, "other", images=names, contract=4, has_all_datasets=True, mounts_datasets=True)
        job, after = submit(fleet, datasets=datasets), submit(fleet)
        one.takes(after)
        assert read_why(fleet, job) == f"needs {why}, which one does not have"
        other.takes(job)
        other.ledger.leave()
        job = submit(fleet, datasets=datasets)
        one.takes(job)  # no host has it: it ends with its code


def test_a_host_that_does_not_say_which_datasets_it_has_may_have_them(fleet: Fleet, client: Any) -> None:
    one = HostOfTest(client, "one", contract=4)
    HostOfTest(client, "other", images=("x", "/data/corpus"), contract=4, has_all_datasets=True)
    one.takes(submit(fleet, datasets=[{"name": "corpus"}]))
    rows: tuple[Any, ...] = ("x", 5, {"a": "b"}, [[]], [{}])
    for forged in rows:
        job = submit(fleet, datasets=[{"name": "corpus"}])
        client.hset(job_key(job.id), "needs", json.dumps({"contract": 4, "image": "x", "datasets": forged}))
        one.announce(has_all_datasets=forged)
        one.takes(job)


def test_the_first_job_of_a_batch_says_what_a_name_means(client: Any) -> None:
    ledger = HostOfTest(client, "one").ledger
    first, second = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
    assert ledger.pin_image("nightly", "python") == ""
    assert ledger.pin_image("nightly", "python", first) == first
    assert ledger.pin_image("nightly", "python", second) == first
    assert ledger.pin_image("nightly", "python") == first
    assert ledger.pin_image("weekly", "python", second) == second
    assert 29 * 86400 < client.ttl(f"{KEY_PREFIX}pins:nightly") <= 30 * 86400
    client.hset(f"{KEY_PREFIX}pins:nightly", mapping={f"name-{number}": first for number in range(1000)})
    assert ledger.pin_image("nightly", "one-more", second) == second, "the run goes on, unrecorded"
    assert client.hlen(f"{KEY_PREFIX}pins:nightly") == 1001
    client.set(f"{KEY_PREFIX}pins:forged", "no hash")
    assert ledger.pin_image("forged", "python", second) == second


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


def test_a_job_that_names_a_preparation_waits_for_a_host_that_knows_the_field(fleet: Fleet, client: Any) -> None:
    old = HostOfTest(client, "old", contract=5)
    job = submit(fleet, prepared="sci")
    assert old.claim() is None
    assert read_why(fleet, job) == "no live host speaks contract version 6"
    plain = submit(fleet)
    old.takes(plain)
    new = HostOfTest(client, "new", contract=6)
    client.zadd(f"{KEY_PREFIX}delayed", {job.id: 1})
    assert old.claim() is None
    new.takes(job)


def test_a_stock_producers_newer_message_is_for_whoever_speaks_it(client: Any) -> None:
    one = HostOfTest(client, "one")
    for contract, newer in ((7, 7), (4, 0), (0, 0), ("5", 0), (True, 0), (10**9, 0)):
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


@pytest.mark.parametrize("queue_ttl_seconds", [None, 600.0])
@pytest.mark.parametrize("how", ["release", "give_back", "retry"])
def test_a_stock_producers_job_that_goes_back_expires_too(
    client: Any, how: str, queue_ttl_seconds: float | None
) -> None:
    one = HostOfTest(client, "one")
    client.lpush(f"{KEY_PREFIX}{DEFAULT_QUEUE}", json.dumps({"headers": {"id": "stock", "task": "sandfleet.run"}}))
    claim = one.claim()
    assert claim is not None
    if queue_ttl_seconds:
        assert one.ledger.limit_attempts(claim, 3, queue_ttl_seconds)
    assert one.ledger.retry(claim, ErrorCode.HOST_RESOURCES) if how == "retry" else getattr(one.ledger, how)(claim)
    left = client.zscore(f"{KEY_PREFIX}expiring", "stock") / 1000 - time.time()
    assert 0 < (queue_ttl_seconds or 86400.0) - left < 60


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
