"""Forged messages in a queue stop no worker and harm no good job.

No worker runs here; `test_forged.py` has real ones.
"""

from __future__ import annotations

import json
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from claims import claim_next, submit
from pydantic import SecretStr
from sandfleet import Fleet, Settings
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import SpecInvalid
from sandfleet_config.outcome import Outcome
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, job_key
from sandfleet_config.scripts import read_script
from sandfleet_worker.celery_worker.refusal import refuse
from sandfleet_worker.delivery import ledger as ledger_module
from sandfleet_worker.delivery.claim import Claim, Flag
from sandfleet_worker.delivery.envelope import open_message
from sandfleet_worker.delivery.read_message import read_message

if TYPE_CHECKING:
    import pytest
    from sandfleet_worker.delivery.ledger import Ledger

MALFORMED = 100_000
MAX_KEPT = 1000
MAX_KEPT_BYTES = 8192
CJSON_ONLY = {
    "hex": b'{"headers": {"id": "%s"}, "x": 0x10}',
    "no UTF-8": b'{"headers": {"id": "%s"}, "x": "\xff\xfe"}',
    "5,000 digits": b'{"headers": {"id": "%s"}, "x": ' + b"9" * 5000 + b"}",
    "900 levels": b'{"headers": {"id": "%s"}, "x": ' + b"[" * 990 + b"]" * 990 + b"}",
    "infinity": b'{"headers": {"id": "%s"}, "x": inf}',
    "body": b'{"headers": {"id": "%s", "task": "sandfleet.run"}, "body": 0x10}',
}


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
        newest = [letter.job_id for letter in fleet.dead.list(limit=MAX_KEPT)][:400]
        fleet.dead.purge(newest)
        assert client.zcard(f"{KEY_PREFIX}malformed") == MAX_KEPT - len(newest), "each gives its place back"
        fleet.dead.purge()
    client.rpush(list_key, b"later")
    claim_next(ledger, "later")
    assert client.hget(f"{KEY_PREFIX}dead:message-{MALFORMED + 2}", "message") == b"later", (
        "a purge gives the room back"
    )


def test_large_messages_are_read_a_few_per_call(client: Any, ledger: Ledger) -> None:
    client.rpush(f"{KEY_PREFIX}{DEFAULT_QUEUE}", *[b"x" * (1 << 20)] * 9)
    _, calls = claim_next(ledger, "claim")
    assert calls == 4, "4 MiB a call"


def test_a_message_that_only_lua_can_read_is_an_invalid_spec(client: Any, ledger: Ledger) -> None:
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


def test_a_refused_message_whose_attempts_are_forged_ends_too(url: str, client: Any, ledger: Ledger) -> None:
    (job,) = submit(url)
    client.hset(job_key(job), "attempts", "[7]")
    claim, _ = claim_next(ledger, "claim")
    assert claim is not None
    assert claim.attempts == ()
    intake: Any = SimpleNamespace(settle=lambda claim, how, **_: ledger.settle(claim, how))
    message: Any = SimpleNamespace(submitted=None)
    refuse(intake, claim, message, SpecInvalid.of("forged"), None)
    assert client.hget(job_key(job), "code") == b"SPEC_INVALID"


def test_the_id_inside_a_message_does_not_change_the_claimed_id() -> None:
    claim = Claim("c", "one", Flag.START, b'{"headers": {"id": "two", "task": "sandfleet.run"}}')
    job_message = read_message(open_message(claim), 1 << 18)
    assert job_message is not None
    assert job_message.job_id == "one"


def test_a_cancel_parses_a_bounded_part_of_the_queue_per_call(client: Any) -> None:
    """It parsed up to 500 messages of 256 KB in one call, and Redis served nobody meanwhile."""
    script = client.register_script(read_script("drop_ended_messages"))
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
