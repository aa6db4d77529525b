"""Redis loses its last second: what a worker holds is put right, and repeats are counted."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from intake_stand import IntakeStand
from sandfleet import ErrorCode, Fleet, Outcome, SandboxSpec
from sandfleet_config.queues import KEY_PREFIX, job_key
from sandfleet_worker.delivery.settlement import Finish
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandfleet_worker.delivery.claim import Claim

SPEC = SandboxSpec(image="x", command=["true"])


@pytest.fixture
def stand(url: str, client: Any, tmp_path: Path) -> Iterator[IntakeStand]:
    assert client.dbsize() == 0
    stand = IntakeStand(url, tmp_path)
    yield stand
    stand.close()


def save(client: Any) -> dict[bytes, bytes]:
    """Return all keys as they are, but leases and results."""
    return {key: client.dump(key) for key in client.scan_iter("*")}


def go_back(client: Any, saved: dict[bytes, bytes]) -> None:
    """Make Redis what it was, as a fail-over to a replica that lags does; leases are renewed anyway."""
    lasting = f"{KEY_PREFIX}owners".encode()
    for key in client.scan_iter("*"):
        if key not in saved and key != lasting:
            client.delete(key)
    for key, value in saved.items():
        if key != lasting:
            client.restore(key, 0, value, replace=True)


def read_duplicates(client: Any) -> list[tuple[str, str]]:
    return [
        (fields[b"kind"].decode(), fields[b"code"].decode()) for _, fields in client.xrange(f"{KEY_PREFIX}duplicates")
    ]


def settle(stand: IntakeStand, claim: Claim) -> bool:
    return stand.intake.settle(claim, Finish(Outcome.of(ErrorCode.OK, claim.job_id, exit_code=0)))


def test_a_job_whose_end_was_lost_runs_again_and_is_counted(stand: IntakeStand, fleet: Fleet, client: Any) -> None:
    job = fleet.submit(SPEC)
    stand.open()
    wait_until(lambda: stand.got, 10, "it is claimed")
    saved = save(client)
    assert settle(stand, stand.got[0])
    assert job.is_done
    go_back(client, saved)
    assert not job.is_done

    wait_until(lambda: len(stand.got) == 2, 15, "it is claimed again")
    assert settle(stand, stand.got[1])
    assert job.outcome(timeout=5).code is ErrorCode.OK
    attempts = json.loads(client.hget(job_key(job.id), "attempts"))
    assert [(attempt["code"], attempt.get("charged", True)) for attempt in attempts] == [
        ("WORKER_LOST", False),
        ("OK", True),
    ]
    assert read_duplicates(client) == [("run", "Redis lost how the run ended")]
    assert not client.exists(f"{KEY_PREFIX}claims:{stand.intake.ledger._identity.owner}")


def test_a_run_of_which_nothing_is_left_is_told_by_the_worker_that_had_it(
    stand: IntakeStand, fleet: Fleet, client: Any
) -> None:
    job = fleet.submit(SPEC)
    saved = save(client)
    stand.intake.ledger._replicas.are_there = False
    stand.open()
    wait_until(lambda: stand.got, 10, "it is claimed")
    assert settle(stand, stand.got[0])
    assert job.is_done
    go_back(client, saved)

    wait_until(lambda: read_duplicates(client), 10, "it is told")
    assert read_duplicates(client) == [("run", "Redis lost the run")]
    time.sleep(1)
    assert len(read_duplicates(client)) == 1, "once"


def test_an_end_that_redis_has_is_not_told(stand: IntakeStand, fleet: Fleet, client: Any) -> None:
    job = fleet.submit(SPEC)
    stand.intake.ledger._replicas.are_there = False
    stand.open()
    wait_until(lambda: stand.got, 10, "it is claimed")
    assert settle(stand, stand.got[0])
    for _ in range(3):
        stand.intake.comparison._tell_lost_runs()
    assert job.is_done
    assert read_duplicates(client) == []


def test_max_attempts_of_one_is_kept_when_an_end_was_lost(stand: IntakeStand, fleet: Fleet, client: Any) -> None:
    job = fleet.submit(SPEC.model_copy(update={"max_attempts": 1}))
    stand.open()
    wait_until(lambda: stand.got, 10, "it is claimed")
    saved = save(client)
    assert settle(stand, stand.got[0])
    go_back(client, saved)
    assert job.outcome(timeout=15).code is ErrorCode.WORKER_LOST
    assert len(stand.got) == 1


def test_a_run_whose_claim_was_lost_is_ended_and_counted(stand: IntakeStand, fleet: Fleet, client: Any) -> None:
    job = fleet.submit(SPEC)
    saved = save(client)
    withdrawn: list[tuple[str, str]] = []
    stand.open(with_claims=False)
    stand.start()
    stand.intake.comparison.withdraw = lambda *words: withdrawn.append(words)
    wait_until(lambda: stand.got, 10, "it is claimed")
    first = stand.got[0]
    go_back(client, saved)

    wait_until(lambda: withdrawn, 10, "the run is ended")
    assert withdrawn[0][0] == first.claim_id
    wait_until(lambda: len(stand.got) == 2, 10, "it is claimed anew")
    assert settle(stand, first) is False, "the first run does not count"
    assert settle(stand, stand.got[1])
    assert job.outcome(timeout=5).code is ErrorCode.OK
    assert read_duplicates(client) == [("outcome", "OK")]


def test_an_end_whose_answer_is_late_is_no_lost_claim(stand: IntakeStand, fleet: Fleet, client: Any) -> None:
    fleet.submit_many([SPEC] * 2)
    withdrawn: list[str] = []
    stand.open()
    stand.intake.comparison.withdraw = lambda claim_id, _why: withdrawn.append(claim_id)
    wait_until(lambda: len(stand.got) == 2, 10, "both are claimed")
    ended, given = stand.got
    ledger, comparison = stand.intake.ledger, stand.intake.comparison
    client.hset(f"{KEY_PREFIX}cordons", "here", "{}")
    assert ledger.finish(ended, Outcome.of(ErrorCode.OK, ended.job_id))
    assert ledger.give_back(given)
    for _ in range(4):
        comparison.compare([ended, given])
    assert withdrawn == []
    client.delete(f"{KEY_PREFIX}cordons")


def test_a_lost_end_of_a_job_without_a_record_is_decided(stand: IntakeStand, fleet: Fleet, client: Any) -> None:
    job = fleet.submit(SPEC)
    stand.open()
    wait_until(lambda: stand.got, 10, "it is claimed")
    (claim,) = stand.got
    stand.intake.held_claims.remove(claim)
    client.delete(job_key(job.id))
    owner = stand.intake.ledger._identity.owner
    wait_until(lambda: not client.hexists(f"{KEY_PREFIX}claims:{owner}", claim.claim_id), 15, "it is found")
    wait_until(lambda: client.hget(job_key(job.id), "state") is not None, 15, "it is decided, and not dropped")


def test_a_lost_end_is_decided_at_maxmemory(stand: IntakeStand, fleet: Fleet, client: Any) -> None:
    fleet.submit(SPEC)
    stand.open()
    wait_until(lambda: stand.got, 10, "it is claimed")
    (claim,) = stand.got
    client.hset(f"{KEY_PREFIX}cordons", "here", "{}")
    client.config_set("maxmemory", 1)
    try:
        assert stand.intake.ledger.recover([claim.claim_id]) == [claim.job_id]
    finally:
        client.config_set("maxmemory", 0)
        client.delete(f"{KEY_PREFIX}cordons")


def test_claims_that_are_held_or_under_way_are_left_alone(stand: IntakeStand, fleet: Fleet, client: Any) -> None:
    stand.open()
    jobs = fleet.submit_many([SPEC] * 2)
    wait_until(lambda: len(stand.got) == 2, 10, "both are claimed")
    held = f"{KEY_PREFIX}claims:{stand.intake.ledger._identity.owner}"
    before = client.hkeys(held)
    beats = len(stand.got)
    for _ in range(4):
        stand.intake.comparison.compare([])
    assert client.hkeys(held) == before
    assert len(stand.got) == beats
    assert [client.hget(job_key(job.id), "state") for job in jobs] == [b"running"] * 2
    for claim in stand.got:
        settle(stand, claim)
    assert read_duplicates(client) == []
