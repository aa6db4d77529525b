"""Sender processes: killed at each step, several at once, stopped, with forged webhooks."""

from __future__ import annotations

import json
import re
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from receivers import answer, hang, open_receiver
from sandfleet import ErrorCode, Outcome, SandboxSpec
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, job_key
from sandfleet_config.webhooks import DEAD_KEY, DUE_KEY, LOG_KEY
from sandfleet_web.cli import main
from sandfleet_web.notify import sender as sending
from sandfleet_web.notify.queue import WebhookQueue
from waiting import wait_until

if TYPE_CHECKING:
    from hooks import Hooks


SPEC = SandboxSpec(image="x", command=["true"])


def read_results(client: Any) -> list[str]:
    return [fields[b"result"].decode() for _, fields in client.xrange(f"{KEY_PREFIX}webhooks:log")]


def test_a_sender_killed_while_the_receiver_thinks_is_followed_by_another(hooks: Hooks, client: Any) -> None:
    with open_receiver(hang, answer(204)) as receiver:
        endpoints = {"ci": hooks.endpoint(receiver.port)}
        hooks.end_batch()
        first = hooks.start(endpoints, deadline_seconds=1)
        wait_until(lambda: receiver.received, 60, "it is on its way")
        first.process.kill()
        hooks.start(endpoints, deadline_seconds=1)
        wait_until(lambda: "delivered" in read_results(client), 60, "the other one has sent it")
    first_try, second_try = receiver.received
    assert first_try.webhook_id == second_try.webhook_id
    assert first_try.body == second_try.body


def test_a_sender_that_died_before_or_after_its_request_loses_nothing(hooks: Hooks, client: Any) -> None:
    """A webhook taken and not settled is due again when its lease ends, sent or not."""
    hooks.end_batch()
    dead = WebhookQueue(hooks.fleet.settings)
    (taken,), _ = dead.take(1, lease_seconds=1.0, at_once=4, sending=[])
    assert dead.take(1, lease_seconds=1.0, at_once=4, sending=[]) == ([], 0), "a lease is exclusive"
    with open_receiver() as receiver, hooks.sender({"ci": hooks.endpoint(receiver.port)}):
        wait_until(lambda: receiver.received, 10, "it is sent again")
        wait_until(lambda: not client.exists(DUE_KEY), 10, "it is settled")
        assert not dead.settle(taken.webhook_id, "failed", "late"), "it is no longer the dead one's"
    dead.close()
    assert [received.webhook_id for received in receiver.received] == [taken.webhook_id]
    assert read_results(client) == ["delivered"]


def test_two_senders_send_each_webhook_once(hooks: Hooks, client: Any) -> None:
    with open_receiver() as receiver:
        endpoints = {"ci": hooks.endpoint(receiver.port)}
        with hooks.sender(endpoints), hooks.sender(endpoints):
            for _ in range(40):
                hooks.end_batch(count=1)
            wait_until(lambda: len(read_results(client)) == 40, 20, "all are delivered")
        assert len(receiver.received) == 40
        assert len({received.webhook_id for received in receiver.received}) == 40


def test_sigterm_ends_the_attempts_on_their_way_first(hooks: Hooks, client: Any) -> None:
    def think(handler: Any) -> None:
        time.sleep(1)
        answer(204)(handler)

    with open_receiver(think) as receiver:
        sender = hooks.start({"ci": hooks.endpoint(receiver.port)})
        hooks.end_batch()
        wait_until(lambda: receiver.received, 60, "it is on its way")
        sender.process.send_signal(signal.SIGTERM)
        assert sender.process.wait(20) == 0, sender.log
    assert read_results(client) == ["delivered"]
    assert "has stopped" in sender.log
    assert "/hook" not in sender.log, "a URL may hold a secret"


def end_next(hooks: Hooks, code: ErrorCode, reason: str = "") -> None:
    claim, _ = hooks.ledger.claim(f"claim-{time.monotonic_ns()}", [DEFAULT_QUEUE])
    assert claim is not None
    assert hooks.ledger.finish(claim, Outcome.of(code, claim.job_id), reason=reason)


def test_a_retry_fires_again(hooks: Hooks) -> None:
    with open_receiver() as receiver, hooks.sender({"ci": hooks.endpoint(receiver.port)}):
        (job,) = hooks.fleet.submit_many([SPEC], batch="b", on_done="ci")
        end_next(hooks, ErrorCode.WORKER_LOST, "lost")
        wait_until(lambda: len(receiver.received) == 1, 10, "its end is told")
        hooks.fleet.dead.requeue(job.id)
        end_next(hooks, ErrorCode.OK)
        wait_until(lambda: len(receiver.received) == 2, 10, "the retry's end is told")
    assert [received.payload["data"]["codes"] for received in receiver.received] == [{"WORKER_LOST": 1}, {"OK": 1}]
    assert receiver.received[0].webhook_id != receiver.received[1].webhook_id


def test_a_batch_that_a_worker_of_an_older_release_ended_is_told_too(hooks: Hooks, client: Any) -> None:
    with open_receiver() as receiver, hooks.sender({"ci": hooks.endpoint(receiver.port)}):
        (job,) = hooks.fleet.submit_many([SPEC], batch="b", on_done="ci")
        # As `finish.lua` of release e5bcdee: an entry in the list `done`, and no more.
        client.delete(f"{KEY_PREFIX}{DEFAULT_QUEUE}\x06\x166")
        client.zrem(f"{KEY_PREFIX}expiring", job.id)
        client.hset(job_key(job.id), mapping={"state": "ended", "code": "TIMEOUT", "ended": 1, "ended_by": "old"})
        client.expire(job_key(job.id), 3600)
        client.rpush(f"{KEY_PREFIX}done:b", job.id)
        client.expire(f"{KEY_PREFIX}done:b", 3600)
        client.zadd(f"{KEY_PREFIX}webhooks:awaiting", {"b": 1}, xx=True)
        wait_until(lambda: receiver.received, 10, "its end is told")
    assert receiver.received[0].payload["data"] == {"batch": "b", "total": 1, "codes": {"TIMEOUT": 1}}
    assert not client.exists(f"{KEY_PREFIX}webhooks:awaiting")


def forge(client: Any, number: int, **fields: Any) -> str:
    name = f"msg_{number:040x}"
    client.hset(
        f"{KEY_PREFIX}webhook:{name}",
        mapping={"batch": "b", "endpoint": "ci", "at": 1, "total": 1, "codes": "{}"} | fields,
    )
    client.expire(f"{KEY_PREFIX}webhook:{name}", 600)
    client.zadd(DUE_KEY, {name: number})
    return name


def test_forged_webhooks_hurt_nobody(hooks: Hooks, client: Any) -> None:
    forged: list[dict[str, Any]] = [
        {"codes": "[" * 4000},
        {"codes": "{"},
        {"codes": '{"OK": "many"}'},
        {"batch": "x" * 5_000_000},
        {"endpoint": "e" * 60},
        {"at": "never"},
        {"at": "9" * 31},
        {"attempts": "-99999999", "codes": "7"},
        {"batch": b"\xff\x1b[31m\n", "endpoint": "no-such"},
    ]
    for number, fields in enumerate(forged):
        forge(client, number, **fields)
    client.zadd(DUE_KEY, {"": 0, "../../x": 0, "y" * 1_000_000: 0, f"msg_{99:040x}": 0})
    client.set(f"{KEY_PREFIX}webhook:msg_{98:040x}", "no hash", ex=600)
    client.zadd(DUE_KEY, {f"msg_{98:040x}": 0})
    with open_receiver() as receiver, hooks.sender({"ci": hooks.endpoint(receiver.port)}):
        hooks.end_batch(name="good")
        wait_until(lambda: receiver.received, 20, "the good one is delivered")
        wait_until(lambda: not client.exists(DUE_KEY), 20, "nothing is due")
    assert [received.payload["data"]["batch"] for received in receiver.received] == ["good"]


def test_a_fault_of_the_sender_itself_is_tried_again_given_up_and_told_without_the_url(
    hooks: Hooks, client: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def break_inside(*_: object) -> None:
        raise ValueError("https://hooks.example/s3cret-path")

    monkeypatch.setattr(sending, "send", break_inside)
    with hooks.sender({"ci": hooks.endpoint(1)}, retry_seconds=0.3):
        hooks.end_batch()
        wait_until(lambda: client.zcard(DEAD_KEY) == 1, 10, "it is given up")
    assert {"failed", "dead"} == set(read_results(client))
    assert "ValueError" in caplog.text
    assert "s3cret" not in caplog.text
    assert "s3cret" not in str(client.xrange(LOG_KEY))


def test_a_forged_first_attempt_in_the_future_does_not_keep_a_webhook_for_ever(hooks: Hooks, client: Any) -> None:
    name = forge(client, 1, first=1 << 46)
    with (
        open_receiver(*[answer(500)] * 20) as receiver,
        hooks.sender({"ci": hooks.endpoint(receiver.port)}, retry_seconds=0.5),
    ):
        wait_until(lambda: client.zscore(DEAD_KEY, name) is not None, 10, "it is given up")


def test_keys_of_a_wrong_type_do_not_stop_a_sender(hooks: Hooks, client: Any) -> None:
    client.set(DUE_KEY, "x", ex=600)
    client.set(f"{KEY_PREFIX}webhooks:awaiting", "x", ex=600)
    client.set(f"{KEY_PREFIX}webhooks:log", "x", ex=600)
    client.set(DEAD_KEY, "x", ex=600)
    with open_receiver(answer(410), answer(200)) as receiver, hooks.sender({"ci": hooks.endpoint(receiver.port)}):
        time.sleep(0.5)
        client.delete(DUE_KEY)
        hooks.end_batch()
        wait_until(lambda: receiver.received, 10, "it goes on")


def test_dead_letters_are_listed_sent_again_and_the_log_tells_all(
    hooks: Hooks, client: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*words: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["notify", *words])
        return int(str(ended.value.code)), capsys.readouterr().out

    with open_receiver(answer(410), answer(200)) as receiver, hooks.sender({"ci": hooks.endpoint(receiver.port)}):
        hooks.end_batch(name="nightly")
        wait_until(lambda: client.zcard(DEAD_KEY) == 1, 10, "it is a dead letter")
        status, out = call("dead", "--json")
        found = json.loads(out)
        assert (status, found["endpoint"], found["batch"], found["attempts"]) == (0, "ci", "nightly", 1)
        assert "410" in found["reason"]
        assert call("requeue", found["id"]) == (0, "1 of 1 are due again\n")
        wait_until(lambda: "delivered" in read_results(client), 10, "it is delivered")
    assert {received.webhook_id for received in receiver.received} == {found["id"]}
    assert call("dead") == (0, "")
    assert call("requeue", found["id"])[0] == 1
    assert call("requeue")[0] == 2
    rows = [line.split("\t") for line in call("log")[1].splitlines()]
    assert [row[4] for row in rows] == ["dead", "delivered"]


def test_the_sender_says_which_setting_is_wrong(
    hooks: Hooks, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = hooks.endpoint(1)["secret_file"]
    (hooks.folder / "open.secret").write_text("whsec_x")
    (hooks.folder / "short.secret").write_text("whsec_aaaa\n")
    (hooks.folder / "short.secret").chmod(0o600)
    faults = {
        "WEB__ENDPOINTS.*CI.*": {"CI": {"url": "https://x.example/", "secret_file": secret}},
        "url must begin with https://": {"ci": {"url": "http://x.example/", "secret_file": secret}},
        "no user, password": {"ci": {"url": "https://me:hidden@x.example/", "secret_file": secret}},
        "chmod 600": {"ci": {"url": "https://x.example/", "secret_file": str(hooks.folder / "open.secret")}},
        "24 to 64 random bytes": {
            "ci": {"url": "https://x.example/", "secret_file": str(hooks.folder / "short.secret")}
        },
        "No such file": {"ci": {"url": "https://x.example/", "secret_file": "/no/such"}},
    }
    for pattern, endpoints in faults.items():
        monkeypatch.setenv("SANDFLEET_WEB__ENDPOINTS", json.dumps(endpoints))
        with pytest.raises(SystemExit, match="1"):
            main(["notify"])
        told = capsys.readouterr().err
        assert re.search(pattern, told), told
        assert "hidden" not in told
