"""Jobs that wait for the memory of a host: the scripts alone, with leases but no sandboxes."""

from __future__ import annotations

from typing import Any

import pytest
from placing_hosts import FREE, MIB, HostOfTest, needs_memory, read_why, submit
from sandfleet import Fleet, SpecInvalid
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, job_key
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.ledger import Ledger
from waiting import wait_until


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
