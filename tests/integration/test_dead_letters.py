"""Dead letters are bounded in number and in bytes, the oldest go first, and people are told."""

from __future__ import annotations

import time
from typing import Any

import pytest
import redis
from sandfleet import Fleet, SandboxSpec
from sandfleet.cli import main
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Outcome
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX
from sandfleet_worker.delivery import end_calls
from sandfleet_worker.delivery.ledger import Ledger

DEAD, SIZES, BYTES = f"{KEY_PREFIX}dead", f"{KEY_PREFIX}dead_sizes", f"{KEY_PREFIX}dead_bytes"


def bury(ledger: Ledger, fleet: Fleet, count: int, stdin: str = "") -> list[str]:
    """Submit jobs and end them as dead letters, one after the other."""
    spec = SandboxSpec.model_validate({"image": "x", "command": ["true"], "stdin": stdin} if stdin else {"image": "x"})
    jobs = [job.id for job in fleet.submit_many([spec] * count)]
    for job_id in jobs:
        claim, _ = ledger.claim(f"claim-{job_id}", [DEFAULT_QUEUE])
        assert claim is not None
        assert claim.job_id == job_id
        assert ledger.finish(claim, Outcome.of(ErrorCode.WORKER_LOST, job_id), reason="no attempt is left")
        time.sleep(0.002)  # letters of the same millisecond have no order
    return jobs


def kept(fleet: Fleet) -> list[str]:
    return [letter.job_id for letter in fleet.dead.list()][::-1]


def check_sum(client: Any) -> int:
    """Compare the sum that the scripts keep with the letters that there are; return it."""
    letters = {key.decode().removeprefix(f"{DEAD}:"): client.hgetall(key) for key in client.keys(f"{DEAD}:*")}
    names = (b"message", b"reason", b"attempts")
    sizes = {name: sum(len(fields[key]) for key in names) for name, fields in letters.items()}
    assert {name.decode(): int(size) for name, size in client.hgetall(SIZES).items()} == sizes
    assert int(client.get(BYTES) or 0) == sum(sizes.values())
    assert set(letters) == {name.decode() for name in client.zrange(DEAD, 0, -1)}
    assert all(client.ttl(key) > 0 for key in client.keys(f"{DEAD}*"))
    return sum(sizes.values())


def test_the_oldest_of_too_many_dead_letters_are_dropped_and_counted(
    client: Any,
    fleet: Fleet,
    ledger: Ledger,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(end_calls, "MAX_DEAD_LETTERS", 4)
    first = bury(ledger, fleet, 4)
    assert kept(fleet) == first
    assert fleet.dead.count_dropped() == 0
    assert main(["dead", "list"]) == 0
    assert "dropped" not in capfd.readouterr().err

    second = bury(ledger, fleet, 3)

    assert kept(fleet) == [first[3], *second]
    check_sum(client)
    assert fleet.dead.count_dropped() == 3
    assert main(["dead", "list"]) == 0
    told = capfd.readouterr().err
    assert "3 older dead letters were dropped" in told
    assert "10,000" in told
    assert "64 MiB" in told
    assert fleet.job(first[0]).outcome(timeout=5).code is ErrorCode.WORKER_LOST, "an outcome outlives the letter"


def test_dead_letters_are_bounded_in_bytes(
    client: Any, fleet: Fleet, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    (small,) = bury(ledger, fleet, 1)
    one = check_sum(client)
    fleet.dead.purge()
    assert check_sum(client) == 0
    monkeypatch.setattr(end_calls, "MAX_DEAD_BYTES", 18 * one)
    smalls = bury(ledger, fleet, 8)
    large = bury(ledger, fleet, 1, "x" * 8 * one)[0]

    assert kept(fleet)[-1] == large
    assert kept(fleet) == [*smalls, large][-len(kept(fleet)) :], "the oldest went"
    assert len(kept(fleet)) < 9
    assert check_sum(client) <= 18 * one
    assert fleet.dead.count_dropped() == 9 - len(kept(fleet))
    assert small not in kept(fleet)


def test_the_sum_of_dead_letters_follows_every_way_that_one_goes(client: Any, fleet: Fleet, ledger: Ledger) -> None:
    revived, purged, stale, deleted = jobs = bury(ledger, fleet, 4)
    assert kept(fleet) == jobs
    whole = check_sum(client)
    fleet.dead.requeue(revived)
    rest = check_sum(client)
    assert 0 < rest < whole
    assert fleet.dead.purge([purged, "no-such", ""]) == 1
    assert check_sum(client) < rest
    client.zadd(DEAD, {stale: 1}, xx=True)
    client.delete(f"{DEAD}:{deleted}")  # a stranger: the letter counts until its time is over
    ledger.drop_stale_dead()
    assert client.zrange(DEAD, 0, -1) == [deleted.encode()]
    claim, _ = ledger.claim("again", [DEFAULT_QUEUE])
    assert claim is not None
    assert claim.job_id == revived
    ledger.finish(claim, Outcome.of(ErrorCode.WORKER_LOST, revived), reason="once more")
    assert fleet.dead.purge([deleted]) == 1
    assert check_sum(client) > 0
    assert fleet.dead.count_dropped() == 0


def test_an_end_counts_although_old_dead_letters_cannot_be_dropped(
    fleet: Fleet, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise redis.ResponseError("ERR a script that fails")

    monkeypatch.setattr(ledger, "drop_stale_dead", fail)
    (job,) = bury(ledger, fleet, 1)
    assert kept(fleet) == [job]
