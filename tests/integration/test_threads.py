"""A worker's thread goes on after an error that can pass; after any other the worker ends."""

from __future__ import annotations

import errno
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import redis
from celery.worker import state
from intake_stand import LEASE_SECONDS, Failing, IntakeStand
from pydantic import SecretStr
from sandfleet import BatchLimits, Fleet, SandboxSpec, Settings
from sandfleet_config.codes import ErrorCode
from sandfleet_config.queues import CORDONS, DEFAULT_QUEUE, KEY_PREFIX, cancel_key, job_key
from sandfleet_worker.delivery import sweeper as sweep
from sandfleet_worker.delivery import watchdog, worker_exit
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.delivery.worker_exit import EXIT_LOST, EXIT_STALLED
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandfleet_worker.delivery.claim import Claim

TIMES = 2
PASSING = (OSError(errno.EMFILE, "Too many open files"), redis.ConnectionError("gone"))
PLACES: dict[str, Callable[[Any], tuple[Any, str]]] = {
    "claimer, a place": lambda intake: (intake.held_claims, "take_capacity"),
    "claimer, Redis's memory": lambda intake: (intake.claimer._memory, "is_high"),
    "claimer, an end to come": lambda intake: (intake.claimer._slots, "expect_release"),
    "claimer, a slot": lambda intake: (intake.claimer._slots, "acquire"),
    "claimer, the queues": lambda intake: (intake.claimer._ledger, "read_queues"),
    "claimer, whose turn": lambda intake: (intake.claimer._rotation, "update"),
    "claimer, turns": lambda intake: (intake.claimer._rotation, "names"),
    "claimer, the claim": lambda intake: (intake.claimer._ledger, "claim"),
    "claimer, holding it": lambda intake: (intake.held_claims, "add"),
    "claimer, served": lambda intake: (intake.claimer._rotation, "served"),
    "claimer, the wait": lambda intake: (intake.claimer._redis, "xread"),
    "lease, what runs": lambda intake: (intake.held_claims, "claims"),
    "lease, the status": lambda intake: (intake.report, "encode_status"),
    "lease, its jobs": lambda intake: (intake.report, "encode_jobs"),
    "lease, the beat": lambda intake: (intake.lease._ledger, "beat"),
    "lease, the host's mark": lambda intake: (intake.report.mark, "note"),
    "lease, a deleted claim": lambda intake: (intake.lease._ledger, "restore"),
    "lease, claims in Redis": lambda intake: (intake.lease._ledger, "read_claim_ids"),
    "lease, the pause": lambda intake: (intake.report.mark, "limit_pause"),
    "lease, a cancel": lambda intake: (intake, "_end_job"),
    "sweeper, the lease": lambda intake: (intake.lease._ledger, "read_uptime"),
    "sweeper, the dead": lambda intake: (intake.ledger, "reap"),
    "sweeper, a decision": lambda intake: (intake.ledger, "retry"),
    "sweeper, parked jobs": lambda intake: (intake.ledger, "sweep_parked"),
    "sweeper, their records": lambda intake: (intake.sweeper._parked, "_read_fields"),
    "sweeper, their ends": lambda intake: (intake.ledger, "end_all_queued"),
    "sweeper, the expired": lambda intake: (intake.ledger, "find_expired"),
    "sweeper, an end": lambda intake: (intake.ledger, "end_queued"),
    "sweeper, dead letters": lambda intake: (intake.ledger, "drop_stale_dead"),
    "announcer, the host": lambda intake: (intake.announcer, "_read_facts"),
    "announcer, the call": lambda intake: (intake.announcer._ledger, "announce"),
    "announcer, what it measures": lambda intake: (intake.report, "measure"),
    "announcer, the images": lambda intake: (intake.announcer._ledger, "tell_images"),
    "watchdog, what hangs": lambda intake: (intake.held_claims, "overdue_job_ids"),
    "watchdog, a stall": lambda intake: (intake.watchdog, "find_stall"),
}
RARE: dict[str, Callable[[Any], tuple[Any, str]]] = {
    "the drain's deadline": lambda intake: (intake.report.mark, "withdraw"),
    "a lost claim": lambda intake: (intake.comparison, "withdraw"),
    "a lost end": lambda intake: (intake.comparison._ledger, "recover"),
}
"""What the lease's thread does where Redis says so."""
ANNOUNCER = {
    *("announcer, the host", "announcer, the call", "announcer, what it measures", "announcer, the images"),
}
LATE = {"lease, a cancel", *ANNOUNCER}
"""Of the announcer the first call is the start of the worker, which fails with it."""
SLOW = {"sweeper, their records", "sweeper, their ends"}
"""After an error the next try is 10 s later: sweep_parked.lua."""
HANDLED = {"claimer, served", "sweeper, a decision"}
"""An error raised here costs its job an attempt or a wait, and is logged; the thread goes on."""


@pytest.fixture
def new_stand(
    url: str, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., IntakeStand]]:
    monkeypatch.setattr(worker_exit, "RELEASE_SECONDS", 0.1)
    monkeypatch.setattr(worker_exit, "MARGIN_SECONDS", 0.1)
    monkeypatch.setattr(watchdog, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(watchdog, "STALL_SECONDS", 2.0)
    monkeypatch.setattr(sweep, "DEAD_SECONDS", 0.1)
    opened: list[IntakeStand] = []

    def new() -> IntakeStand:
        while opened:
            opened.pop().close()
        client.flushdb()
        opened.append(IntakeStand(url, Path(tempfile.mkdtemp(dir=tmp_path))))
        return opened[-1]

    yield new
    for stand in opened:
        stand.close()
    flags: Any = state
    flags.should_stop = flags.should_terminate = None


def submit(url: str, count: int, **fields: Any) -> list[str]:
    with Fleet(Settings(redis_url=SecretStr(url))) as fleet:
        return [job.id for job in fleet.submit_many([SandboxSpec(image="x", command=["true"], **fields)] * count)]


def prepare(url: str, client: Any) -> tuple[str, str]:
    """Leave a dead worker's job, and an expired one in a queue nobody reads; return their ids."""
    ledger = Ledger(client, Identity("dead", "dead.1", "dead:1:1"), 3600)
    ledger.register(60)
    (taken,) = submit(url, 1)
    claim, _ = ledger.claim("claim", [DEFAULT_QUEUE])
    assert claim is not None
    client.zadd(f"{KEY_PREFIX}owners", {"dead:1:1": 1})
    (expired,) = submit(url, 1)
    client.delete(*client.keys(f"{KEY_PREFIX}{DEFAULT_QUEUE}*"))
    client.zadd(f"{KEY_PREFIX}expiring", {expired: 1})
    with Fleet(Settings(redis_url=SecretStr(url))) as fleet:
        fleet.submit_many([SandboxSpec(image="x", command=["true"])], batch="b", limits=BatchLimits(at_most=1))
    client.hset(f"{KEY_PREFIX}limits:b", mapping={"stopped": "for a test", "stop_code": "CANCELLED"})
    client.zadd(f"{KEY_PREFIX}limited", {"b": 1})
    return taken, expired


def announce_again(intake: Any) -> None:
    """Let the announcer call Redis: it announces only what is new, or was said long ago."""
    intake.announcer._announced_at = intake.announcer._next_images = -60.0


def test_every_thread_goes_on_after_errors_that_can_pass(
    url: str, client: Any, new_stand: Callable[[], IntakeStand]
) -> None:
    for error in PASSING:
        stand = new_stand()
        taken, expired = prepare(url, client)
        intake = stand.intake
        failing = {
            place: Failing(*find(intake), error, TIMES)
            for place, find in PLACES.items()
            if place not in LATE | SLOW and not (place.startswith("watchdog") and isinstance(error, redis.RedisError))
        }
        stand.open()
        announce_again(intake)
        failing |= {place: Failing(*PLACES[place](intake), error, TIMES) for place in sorted(LATE)}
        (job,) = submit(url, 1)

        wait_until(lambda: stand.got, 15, "a job is claimed")  # noqa: B023  called at once
        running = stand.got[0]
        client.set(cancel_key(running.job_id), "x", ex=60)
        client.delete(f"{KEY_PREFIX}claims:{intake.ledger._identity.owner}")

        for place, fault in failing.items():
            wait_until(lambda: fault.calls > TIMES, 20, f"{place} is tried again")  # noqa: B023
        wait_until(lambda: stand.cancelled, 10, "the cancel is heard of")  # noqa: B023
        wait_until(lambda: client.hget(job_key(expired), "code") == b"EXPIRED", 10, "the expired job has ended")  # noqa: B023
        wait_until(lambda: len(stand.got) == 2, 10, "the dead worker's job is claimed")  # noqa: B023
        assert {claim.job_id for claim in stand.got} == {job, taken}
        assert intake.exit.code is None
        assert stand.left == []
        assert not intake.lease.is_lost
        wait_until(lambda: intake.lease.steady_seconds > 0, 5, "the lease is kept")  # noqa: B023


def test_an_error_that_cannot_pass_ends_the_worker(url: str, client: Any, new_stand: Callable[[], IntakeStand]) -> None:
    for place, find in PLACES.items():
        if place in HANDLED:
            continue
        stand = new_stand()
        prepare(url, client)
        fault = KeyError("no such thing")
        if place not in LATE:
            Failing(*find(stand.intake), fault, float("inf"))
        stand.open()
        if place in LATE:
            announce_again(stand.intake)
            Failing(*find(stand.intake), fault, float("inf"))
        submit(url, 1)
        if place.startswith("lease, a"):
            wait_until(lambda: stand.got, 5, "a job is claimed")  # noqa: B023
            client.set(cancel_key(stand.got[0].job_id), "x", ex=60)
            client.delete(f"{KEY_PREFIX}claims:{stand.intake.ledger._identity.owner}")

        wait_until(lambda: stand.left, 10, f"{place}: the worker ends")  # noqa: B023

        assert stand.left == [EXIT_STALLED], place
        if place.startswith("lease"):
            wait_until(stand.is_ended.is_set, 10, f"{place}: its jobs are ended")
        else:
            assert not stand.is_ended.is_set(), place


def cause(place: str, client: Any, claim: Claim, owner: str) -> None:
    """Let Redis say what makes the lease's thread call `place`."""
    claims = f"{KEY_PREFIX}claims:{owner}"
    match place:
        case "the drain's deadline":
            client.hset(CORDONS, "here", '{"by": "ann", "reason": "a test", "deadline": 1}')
        case "a lost claim":
            client.hset(job_key(claim.job_id), "claim", "another")
            client.hdel(claims, claim.claim_id)
        case "a lost end":
            client.hset(claims, "unheld", claim.message.replace(claim.job_id.encode(), b"other"))


@pytest.mark.parametrize("error", [*PASSING, KeyError("no such thing")], ids=repr)
@pytest.mark.parametrize("place", RARE)
def test_the_lease_goes_on_after_errors_in_what_follows_a_beat(
    url: str, client: Any, new_stand: Callable[[], IntakeStand], place: str, error: Exception
) -> None:
    stand = new_stand()
    stand.intake.comparison.withdraw = lambda _claim_id, _why: None
    stand.open()
    submit(url, 1)
    wait_until(lambda: stand.got, 15, "a job is claimed")
    can_pass = error in PASSING
    failing = Failing(*RARE[place](stand.intake), error, TIMES if can_pass else float("inf"))
    cause(place, client, stand.got[0], stand.intake.ledger._identity.owner)
    if can_pass:
        wait_until(lambda: failing.calls > TIMES, 15, f"{place} is tried again")
        assert (stand.left, stand.intake.lease.is_lost) == ([], False)
    else:
        wait_until(lambda: stand.left, 10, f"{place}: the worker ends")
        assert stand.left == [EXIT_STALLED]
        wait_until(stand.is_ended.is_set, 10, "its jobs are ended")
    client.delete(CORDONS)


def test_a_forged_record_keeps_no_worker_from_a_cancel_and_a_drain(
    url: str, client: Any, new_stand: Callable[[], IntakeStand]
) -> None:
    stand = new_stand()
    stand.open()
    spoilt, good = submit(url, 2)
    wait_until(lambda: len(stand.got) == 2, 15, "both are claimed")
    (claim,) = [claim for claim in stand.got if claim.job_id == spoilt]
    client.delete(job_key(spoilt))
    client.set(job_key(spoilt), "x")
    client.hdel(f"{KEY_PREFIX}claims:{stand.intake.ledger._identity.owner}", claim.claim_id)
    client.set(cancel_key(good), "x", ex=60)
    client.hset(CORDONS, "here", '{"deadline": 1}')

    wait_until(lambda: good in stand.cancelled, 10, "the cancel is heard of")
    wait_until(lambda: stand.withdrawn, 10, "the deadline is kept")
    client.delete(CORDONS)


def test_a_worker_that_loses_its_lease_before_its_consumer_starts_ends(
    client: Any, new_stand: Callable[[], IntakeStand]
) -> None:
    stand = new_stand()
    stand.open(with_claims=False)
    client.delete(f"{KEY_PREFIX}owners")

    wait_until(lambda: stand.left, 10, "the process would have ended")

    assert stand.left == [EXIT_LOST]
    flags: Any = state
    assert flags.should_terminate == EXIT_LOST, "and in order, where Celery's loop begins before that"
    stand.start()
    assert stand.is_ended.is_set(), "what would run is ended, although the claims begin after the loss"


def test_a_job_that_fails_to_start_while_redis_is_away_is_tried_again_later(
    url: str, client: Any, new_stand: Callable[[], IntakeStand]
) -> None:
    stand = new_stand()
    away = Failing(stand.intake.ledger, "retry", redis.ConnectionError("gone"), 3)
    errors = [OSError(errno.EMFILE, "Too many open files"), KeyError("x")]

    def receive(claim: Claim) -> None:
        stand.got.append(claim)
        if errors:
            raise errors.pop(0)

    stand.open(with_claims=False)
    stand.intake.start(
        receive,
        is_stopping=lambda: False,
        end_job=lambda _: None,
        end_all=lambda: None,
        withdraw=lambda _ids, _why: None,
    )
    stand.intake.watchdog._ticked = float("inf")
    (job,) = submit(url, 1)

    wait_until(lambda: len(stand.got) == 3, 15, "it is started again")

    assert away.calls == 5
    assert [claim.job_id for claim in stand.got] == [job] * 3
    codes = [attempt.code for attempt in stand.got[-1].attempts]
    assert codes == [ErrorCode.HOST_RESOURCES, ErrorCode.INTERNAL, None]
    assert stand.intake.held_claims.job_ids() == [job]


def test_the_lease_is_renewed_while_other_threads_hang(new_stand: Callable[[], IntakeStand], client: Any) -> None:
    stand, release = new_stand(), threading.Event()
    stand.intake.ledger.reap = lambda **_: release.wait(10) or ("", [])  # type: ignore[assignment,method-assign]
    stand.open()
    time.sleep(2 * LEASE_SECONDS)

    assert client.zscore(f"{KEY_PREFIX}owners", stand.intake.ledger._identity.owner) > time.time() * 1000
    assert stand.intake.exit.code is None
    release.set()


def test_an_orderly_exit_goes_through_celery_and_has_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_exit, "RELEASE_SECONDS", 0.0)
    monkeypatch.setattr(worker_exit, "MARGIN_SECONDS", 0.2)
    flags, left = SimpleNamespace(should_stop=None, should_terminate=None), list[int]()
    monkeypatch.setattr(worker_exit, "state", flags)
    ending = worker_exit.WorkerExit(0.1, left.append)

    ending.drain("a thread has failed")
    ending.drain("another one, too")
    assert (flags.should_stop, flags.should_terminate) == (EXIT_STALLED, None)
    assert left == []
    wait_until(lambda: left, 5, "the deadline ends it")
    assert left == [EXIT_STALLED]
    ending.withdraw("the lease is lost", EXIT_LOST)
    assert flags.should_terminate == EXIT_LOST
