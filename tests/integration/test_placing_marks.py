"""A host that an operator has marked is none that another one leaves a job to."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from placing_hosts import HostOfTest, read_why, submit, take
from sandfleet_config.queues import CORDONS, DEFAULT_QUEUE, KEY_PREFIX, job_key
from sandfleet_config.wire import join_needs
from sandfleet_worker.delivery.settlement import PutBack

if TYPE_CHECKING:
    from sandfleet import Fleet

MARK = json.dumps({"by": "ann", "at": time.time(), "reason": "a sick disk"})


@pytest.mark.parametrize("is_marked", [True, False])
def test_a_job_does_not_avoid_its_host_for_the_sake_of_a_marked_one(
    fleet: Fleet, client: Any, *, is_marked: bool
) -> None:
    one = HostOfTest(client, "one")
    HostOfTest(client, "other")
    if is_marked:
        client.hset(CORDONS, "other", MARK)
    job = submit(fleet)
    assert one.ledger.put_back(take(one), PutBack("no sandbox came up", "", avoid_host="one"))

    claim = one.claim()

    assert (claim is not None and claim.job_id == job.id) is is_marked


def test_a_job_that_only_a_marked_host_can_run_waits_apart_and_says_so(fleet: Fleet, client: Any) -> None:
    one, other = HostOfTest(client, "one"), HostOfTest(client, "other", images=("x", "y"))
    client.hset(CORDONS, "other", MARK)
    waits = [submit(fleet, image="y") for _ in range(40)]
    after = submit(fleet)

    one.takes(after)

    assert one.claim() is None
    assert read_why(fleet, waits[0]) == "needs image y, which only hosts have that are cordoned or drained"
    assert client.hget(job_key(waits[0].id), "state") == b"queued", "it does not end for want of a host"
    assert client.llen(f"{KEY_PREFIX}{DEFAULT_QUEUE}") == 0, "it stands in nobody's way"
    needs = join_needs(1, '"image":"y"}')
    assert one.ledger.has_other_host(needs, DEFAULT_QUEUE, waits[0].id), "found after the claim, it goes back, too"

    client.hdel(CORDONS, "other")
    client.zadd(f"{KEY_PREFIX}delayed", {waits[0].id: 1})
    other.takes(waits[0])
