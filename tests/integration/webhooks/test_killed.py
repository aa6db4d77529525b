"""A sender is killed at each step between taking a webhook and recording its end."""

from __future__ import annotations

import contextlib
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from dying_sender import STEPS
from receivers import SECRET, answer, open_receiver
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.webhooks import DEAD_KEY, DUE_KEY
from sandfleet_web.notify.sender import MOST_ATTEMPTS
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from waiting import wait_until

if TYPE_CHECKING:
    from hooks import Hooks
    from receivers import Received, Receiver

BATCHES = 4
DEADLINE_SECONDS = 0.5
LEASE_SECONDS = 2 * DEADLINE_SECONDS + 1


def read_due(client: Any) -> list[str]:
    return [name.decode() for name in client.zrange(DUE_KEY, 0, -1)]


def read_log(client: Any) -> list[tuple[str, str]]:
    found = client.xrange(f"{KEY_PREFIX}webhooks:log")
    return [(fields[b"id"].decode(), fields[b"result"].decode()) for _, fields in found]


def read_whole(receiver: Receiver) -> list[Received]:
    """Return what a receiver would believe: requests whose signature is right."""
    found = []
    for received in list(receiver.received):
        with contextlib.suppress(WebhookVerificationError, json.JSONDecodeError):
            Webhook(SECRET).verify(received.body, received.headers)
            found.append(received)
    return found


def assert_nothing_left(client: Any, *, dead: int = 0) -> None:
    """Assert that no webhook is due, or is in Redis without being in a list."""
    assert read_due(client) == []
    assert client.zcard(DEAD_KEY) == dead
    assert len(list(client.scan_iter(f"{KEY_PREFIX}webhook:*"))) == dead
    for key in client.scan_iter(f"{KEY_PREFIX}webhook*"):
        assert client.ttl(key) > 0, key


def run_to_its_death(hooks: Hooks, step: str, endpoints: dict[str, Any]) -> None:
    doomed = hooks.start(endpoints, step=step, deadline_seconds=DEADLINE_SECONDS)
    assert doomed.process.wait(30) == -9, doomed.log


@pytest.mark.parametrize("step", STEPS)
def test_each_webhook_arrives_with_its_id_at_whichever_step_a_sender_dies(hooks: Hooks, client: Any, step: str) -> None:
    batches = {hooks.end_batch() for _ in range(BATCHES)}
    webhook_ids = set(read_due(client))
    assert len(webhook_ids) == BATCHES
    with open_receiver() as receiver:
        endpoints = {"ci": hooks.endpoint(receiver.port)}
        run_to_its_death(hooks, step, endpoints)
        assert set(read_due(client)) | {name for name, _ in read_log(client)} == webhook_ids, "none is lost"
        died = time.monotonic()
        with hooks.sender(endpoints, deadline_seconds=DEADLINE_SECONDS):
            wait_until(lambda: not read_due(client), LEASE_SECONDS + 5, "another sender has sent the others")
        assert time.monotonic() - died < LEASE_SECONDS + 3, "a lease is all that a death costs"
        arrived = read_whole(receiver)
    assert {received.webhook_id for received in arrived} == webhook_ids
    assert {received.payload["data"]["batch"] for received in arrived} == batches
    bodies = {(received.webhook_id, received.body) for received in arrived}
    assert len(bodies) == BATCHES, "what comes twice is the same"
    assert sorted(name for name, result in read_log(client) if result == "delivered") == sorted(webhook_ids)
    assert_nothing_left(client)


@pytest.mark.parametrize("step", ["answered", "recorded"])
@pytest.mark.parametrize(("status", "result"), [(500, "failed"), (410, "dead")])
def test_a_sender_killed_around_a_refusal_leaves_it_to_the_next(
    hooks: Hooks, client: Any, step: str, status: int, result: str
) -> None:
    for _ in range(2):
        hooks.end_batch()
    webhook_ids = set(read_due(client))
    # The dying sender gets the two refusals; after 410 the next one gets a second one, if it asks.
    with open_receiver(answer(status), answer(status), answer(204 if status == 500 else 410)) as receiver:
        endpoints = {"ci": hooks.endpoint(receiver.port)}
        run_to_its_death(hooks, step, endpoints)
        with hooks.sender(endpoints, deadline_seconds=DEADLINE_SECONDS):
            wait_until(lambda: not read_due(client), LEASE_SECONDS + 10, "each has an end")
        assert {received.webhook_id for received in receiver.received} == webhook_ids
    told = read_log(client)
    if result == "dead":
        assert sorted(told) == sorted((name, "dead") for name in webhook_ids), "one end each"
        assert_nothing_left(client, dead=2)
    else:
        assert {name for name, found in told if found == "delivered"} == webhook_ids
        assert_nothing_left(client)


def test_a_webhook_at_which_all_senders_die_is_given_up_after_its_time(hooks: Hooks, client: Any) -> None:
    hooks.end_batch("kills")
    (webhook_id,) = read_due(client)
    long_ago = round(time.time() * 1000) - 2 * 86_400_000
    client.hset(f"{KEY_PREFIX}webhook:{webhook_id}", mapping={"attempts": MOST_ATTEMPTS, "first": long_ago})
    with open_receiver() as receiver, hooks.sender({"kills": hooks.endpoint(receiver.port)}):
        wait_until(lambda: read_log(client), 10, "it has an end")
        assert receiver.received == []
    assert read_log(client) == [(webhook_id, "dead")]
    assert b"no sender lived to record" in client.hget(f"{KEY_PREFIX}webhook:{webhook_id}", "reason")
    assert_nothing_left(client, dead=1)


def test_a_webhook_that_was_taken_once_is_sent_however_late_the_next_sender_comes(hooks: Hooks, client: Any) -> None:
    hooks.end_batch()
    (webhook_id,) = read_due(client)
    long_ago = round(time.time() * 1000) - 2 * 86_400_000
    client.hset(f"{KEY_PREFIX}webhook:{webhook_id}", mapping={"attempts": 1, "first": long_ago, "token": "dead"})
    with open_receiver() as receiver, hooks.sender({"ci": hooks.endpoint(receiver.port)}):
        wait_until(lambda: read_log(client), 10, "it has an end")
    assert read_log(client) == [(webhook_id, "delivered")]
