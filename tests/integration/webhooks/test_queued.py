"""A done batch queues one webhook in Redis: at its last end or its seal, again after a retry."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet import ErrorCode, Fleet, Outcome, SandboxSpec
from sandfleet.cli import main
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX
from sandfleet_config.webhooks import DUE_KEY, MAX_WEBHOOKS, WEBHOOK_ID

if TYPE_CHECKING:
    from pathlib import Path

    from sandfleet_worker.delivery.ledger import Ledger

SPEC = SandboxSpec(image="x", command=["true"])
LOST = ErrorCode.WORKER_LOST


def end_next(ledger: Ledger, code: ErrorCode = ErrorCode.OK, reason: str = "") -> str:
    """Claim the next job and end it; return its id. With a reason it is a dead letter."""
    claim, _ = ledger.claim(f"claim-{time.monotonic_ns()}", [DEFAULT_QUEUE])
    assert claim is not None
    assert ledger.finish(claim, Outcome.of(code, claim.job_id), reason=reason)
    return claim.job_id


def read_due(client: Any) -> list[dict[str, Any]]:
    """Return the webhooks that are due, in the order of their time."""
    found = []
    for name in client.zrange(DUE_KEY, 0, -1):
        assert WEBHOOK_ID.match(name.decode())
        fields = {
            key.decode(): value.decode()
            for key, value in client.hgetall(f"{KEY_PREFIX}webhook:{name.decode()}").items()
        }
        found.append({"id": name.decode(), **fields, "codes": json.loads(fields["codes"])})
    return found


def test_the_last_end_of_a_sealed_batch_queues_one_webhook(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    fleet.submit_many([SPEC] * 3, batch="nightly", on_done="ci")
    end_next(ledger)
    end_next(ledger, ErrorCode.TIMEOUT)
    assert read_due(client) == []
    end_next(ledger)
    (webhook,) = read_due(client)
    assert {name: webhook[name] for name in ("batch", "endpoint", "total", "codes")} == {
        "batch": "nightly",
        "endpoint": "ci",
        "total": "3",
        "codes": {"OK": 2, "TIMEOUT": 1},
    }
    assert abs(int(webhook["at"]) / 1000 - time.time()) < 60
    fleet.batch("nightly").seal()
    assert len(read_due(client)) == 1, "a second seal changes nothing"


def test_jobs_that_end_before_the_seal_are_told_at_the_seal(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    fleet.submit(SPEC, batch="b")
    end_next(ledger)
    batch = fleet.batch("b")
    batch.seal()
    assert read_due(client) == [], "nobody is to be told"
    batch.seal(on_done="ci")
    batch.seal(on_done="ci")
    assert [webhook["codes"] for webhook in read_due(client)] == [{"OK": 1}]


def test_new_jobs_are_told_after_the_next_seal(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    fleet.submit_many([SPEC], batch="b", on_done="ci")
    end_next(ledger)
    fleet.submit(SPEC, batch="b")
    end_next(ledger)
    assert len(read_due(client)) == 1, "the batch is not sealed"
    fleet.submit_many([SPEC], batch="b")
    assert len(read_due(client)) == 1
    end_next(ledger)
    first, second = read_due(client)
    assert first["id"] != second["id"]
    assert (first["total"], second["total"]) == ("1", "3")


def test_a_submit_that_is_repeated_tells_nothing_twice(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    for _ in range(2):
        fleet.submit_many([SPEC] * 2, batch="b", idempotent=True, on_done="ci")
        while client.llen(f"{KEY_PREFIX}{DEFAULT_QUEUE}\x06\x166"):
            end_next(ledger)
    assert len(read_due(client)) == 1


def test_a_retry_is_told_when_its_run_has_ended(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    fleet.submit_many([SPEC] * 2, batch="b", on_done="ci")
    end_next(ledger)
    lost = end_next(ledger, LOST, "lost")
    fleet.dead.requeue(lost)
    assert len(read_due(client)) == 1, "the next run has not ended"
    end_next(ledger)
    assert [webhook["codes"] for webhook in read_due(client)] == [{"OK": 1, "WORKER_LOST": 1}, {"OK": 2}]


def test_cancelled_jobs_end_a_batch_too(client: Any, fleet: Fleet) -> None:
    fleet.submit_many([SPEC] * 2, batch="b", on_done="ci")
    fleet.batch("b").cancel()
    assert [webhook["codes"] for webhook in read_due(client)] == [{"CANCELLED": 2}]


def test_a_batch_without_on_done_leaves_no_key_of_webhooks(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    fleet.submit_many([SPEC], batch="b")
    end_next(ledger)
    assert [*client.scan_iter(f"{KEY_PREFIX}webhook*"), *client.scan_iter(f"{KEY_PREFIX}on_done*")] == []


def test_what_is_due_is_bounded_and_what_is_dropped_is_logged(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    client.zadd(DUE_KEY, {f"old-{number}": number for number in range(MAX_WEBHOOKS)})
    fleet.submit_many([SPEC], batch="b", on_done="ci")
    end_next(ledger)
    assert client.zcard(DUE_KEY) == MAX_WEBHOOKS
    ((_, entry),) = client.xrange(f"{KEY_PREFIX}webhooks:log")
    assert (entry[b"id"], entry[b"result"]) == (b"old-0", b"dropped")
    keys = [b"webhooks:due", b"webhooks:log"]
    assert [0 < client.ttl(f"{KEY_PREFIX}{name.decode()}") <= 8 * 86400 for name in keys] == [True] * 2


@pytest.mark.parametrize("name", ["webhooks:due", "webhooks:log", "webhooks:awaiting", "on_done:b"])
def test_a_key_of_a_wrong_type_stops_no_job(client: Any, fleet: Fleet, ledger: Ledger, name: str) -> None:
    client.set(f"{KEY_PREFIX}{name}", "x" * 100, ex=600)
    job, *_ = fleet.submit_many([SPEC], batch="b", on_done="ci")
    client.delete(f"{KEY_PREFIX}{name}")
    client.set(f"{KEY_PREFIX}{name}", "x" * 100, ex=600)
    end_next(ledger)
    assert job.outcome(timeout=5).is_ok
    fleet.batch("b").seal(on_done="ci")
    assert fleet.batch("b").is_sealed


def test_forget_deletes_the_endpoint_of_a_batch(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    fleet.submit_many([SPEC], batch="b", on_done="ci")
    end_next(ledger)
    assert 0 < client.ttl(f"{KEY_PREFIX}on_done:b") <= 3600
    fleet.batch("b").forget()
    assert not client.exists(f"{KEY_PREFIX}on_done:b")


@pytest.mark.parametrize("name", ["https://example.com/hook", "CI", "", "a" * 65, "a b"])
def test_the_command_line_wants_the_name_of_an_endpoint(
    name: str, fleet: Fleet, client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "jobs.jsonl"
    file.write_text('{"image": "x", "command": ["true"]}\n')
    status = main(["submit", str(file), "--batch", "b", "--on-done", name])
    if name:
        assert status == 2
        assert "on_done is the name of an endpoint" in " ".join(capsys.readouterr().err.replace("│", "").split())
        assert client.llen(f"{KEY_PREFIX}{DEFAULT_QUEUE}\x06\x166") == 0
    else:
        assert status == 0
    with pytest.raises(ValueError, match="give its name"):
        fleet.submit_many([SPEC], on_done="ci")
