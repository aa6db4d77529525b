"""No worker is half dead: a thread recovers from what can pass, wherever it calls out, and otherwise the worker ends."""

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
from failing_calls import Failing, Forward
from pydantic import SecretStr
from sandfleet import Fleet, SandboxSpec, Settings
from sandfleet_config.codes import ErrorCode
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, cancel_key, job_key
from sandfleet_config.settings import WorkerSettings
from sandfleet_worker.delivery import sweeper as sweep
from sandfleet_worker.delivery import watchdog, worker_exit
from sandfleet_worker.delivery.host_slots import HostSlots
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.intake import Intake
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.delivery.worker_exit import EXIT_LOST, EXIT_STALLED
from sandfleet_worker.host import connect
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandfleet_worker.delivery.claim import Claim

LEASE_SECONDS = 1.0
TIMES = 2
PASSING = (OSError(errno.EMFILE, "Too many open files"), redis.ConnectionError("gone"))
PLACES: dict[str, Callable[[Any], tuple[Any, str]]] = {
    "claimer, a place": lambda intake: (intake.held_claims, "take_capacity"),
    "claimer, a slot": lambda intake: (intake.claimer._slots, "acquire"),
    "claimer, the queues": lambda intake: (intake.claimer._ledger, "read_queues"),
    "claimer, whose turn": lambda intake: (intake.claimer._rotation, "update"),
    "claimer, turns": lambda intake: (intake.claimer._rotation, "names"),
    "claimer, the claim": lambda intake: (intake.claimer._ledger, "claim"),
    "claimer, holding it": lambda intake: (intake.held_claims, "add"),
    "claimer, served": lambda intake: (intake.claimer._rotation, "served"),
    "claimer, the wait": lambda intake: (intake.claimer._redis, "xread"),
    "lease, what runs": lambda intake: (intake.lease, "_claims"),
    "lease, the beat": lambda intake: (intake.lease._ledger, "beat"),
    "lease, a deleted claim": lambda intake: (intake.lease._ledger, "restore"),
    "lease, a cancel": lambda intake: (intake, "_end_job"),
    "sweeper, the lease": lambda intake: (intake.lease._ledger, "read_uptime"),
    "sweeper, the dead": lambda intake: (intake.ledger, "reap"),
    "sweeper, a decision": lambda intake: (intake.ledger, "retry"),
    "sweeper, the expired": lambda intake: (intake.ledger, "find_expired"),
    "sweeper, an end": lambda intake: (intake.ledger, "end_queued"),
    "sweeper, dead letters": lambda intake: (intake.ledger, "drop_stale_dead"),
    "watchdog, what hangs": lambda intake: (intake.held_claims, "overdue_job_ids"),
    "watchdog, a stall": lambda intake: (intake.watchdog, "find_stall"),
}
HANDLED = {"claimer, served", "sweeper, a decision"}
"""Whatever is raised here costs that job an attempt or a wait, and is told; the thread goes on."""


class Fleetlet:
    """An `Intake` on a real Redis with all its threads, whose process is the test's: `left` says with which code it would end."""

    def __init__(self, url: str, folder: Path) -> None:
        self.settings = WorkerSettings.model_validate(
            {"redis_url": url, "lease_seconds": LEASE_SECONDS, "concurrency": 2, "drain_seconds": 0}
        )
        self.slots = HostSlots(folder, 2)
        self.left: list[int] = []
        self.got: list[Claim] = []
        self.cancelled: list[str] = []
        self.is_ended = threading.Event()
        self.intake = Intake(
            self.settings,
            Identity.new("here"),
            self.slots,
            lambda seconds: connect(self.settings, seconds),
            self.left.append,
        )
        for part in (self.intake.claimer, self.intake.lease, self.intake.sweeper, self.intake.watchdog):
            part._thread._backoff._longest = 0.05

    def open(self, *, with_claims: bool = True) -> None:
        self.intake.open()
        if with_claims:
            self.start()

    def start(self) -> None:
        end_job: Any = Forward(self, "_on_cancel")
        self.intake.start(self.got.append, is_stopping=lambda: False, end_job=end_job, end_all=self.is_ended.set)
        self.intake.watchdog._ticked = float("inf")  # there is no loop of Celery's

    def _on_cancel(self, job_ids: list[str]) -> None:
        self.cancelled += job_ids

    def close(self) -> None:
        self.intake.give_up()
        self.intake.close()
        self.slots.close()


@pytest.fixture
def new_fleetlet(
    url: str, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Fleetlet]]:
    monkeypatch.setattr(worker_exit, "RELEASE_SECONDS", 0.1)
    monkeypatch.setattr(worker_exit, "MARGIN_SECONDS", 0.1)
    monkeypatch.setattr(watchdog, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(watchdog, "STALL_SECONDS", 2.0)
    monkeypatch.setattr(sweep, "DEAD_SECONDS", 0.1)
    opened: list[Fleetlet] = []

    def new() -> Fleetlet:
        while opened:
            opened.pop().close()
        client.flushdb()
        opened.append(Fleetlet(url, Path(tempfile.mkdtemp(dir=tmp_path))))
        return opened[-1]

    yield new
    for fleetlet in opened:
        fleetlet.close()
    flags: Any = state
    flags.should_stop = flags.should_terminate = None


def submit(url: str, count: int, **fields: Any) -> list[str]:
    with Fleet(Settings(redis_url=SecretStr(url))) as fleet:
        return [job.id for job in fleet.submit_many([SandboxSpec(image="x", command=["true"], **fields)] * count)]


def prepare(url: str, client: Any) -> tuple[str, str]:
    """Leave a dead worker's job, and one that has expired in a queue that nobody reads; return their ids."""
    ledger = Ledger(client, Identity("dead", "dead.1", "dead:1:1"), 3600)
    ledger.register(60)
    (taken,) = submit(url, 1)
    claim, _ = ledger.claim("claim", [DEFAULT_QUEUE])
    assert claim is not None
    client.zadd(f"{KEY_PREFIX}owners", {"dead:1:1": 1})
    (expired,) = submit(url, 1)
    client.delete(*client.keys(f"{KEY_PREFIX}{DEFAULT_QUEUE}*"))
    client.zadd(f"{KEY_PREFIX}expiring", {expired: 1})
    return taken, expired


def test_every_thread_goes_on_after_errors_that_pass_wherever_it_calls_out(
    url: str, client: Any, new_fleetlet: Callable[[], Fleetlet]
) -> None:
    for error in PASSING:
        fleetlet = new_fleetlet()
        taken, expired = prepare(url, client)
        intake = fleetlet.intake
        failing = {
            place: Failing(*find(intake), error, TIMES)
            for place, find in PLACES.items()
            if place != "lease, a cancel" and not (place.startswith("watchdog") and isinstance(error, redis.RedisError))
        }
        fleetlet.open()
        failing["lease, a cancel"] = Failing(*PLACES["lease, a cancel"](intake), error, TIMES)
        (job,) = submit(url, 1)

        wait_until(lambda: fleetlet.got, 15, "a job is claimed")  # noqa: B023  called at once
        running = fleetlet.got[0]
        client.set(cancel_key(running.job_id), "x", ex=60)
        client.delete(f"{KEY_PREFIX}claims:{intake.ledger._identity.owner}")

        for place, fault in failing.items():
            wait_until(lambda: fault.calls > TIMES, 20, f"{place} is tried again")  # noqa: B023
        wait_until(lambda: fleetlet.cancelled, 10, "the cancel is heard of")  # noqa: B023
        wait_until(lambda: client.hget(job_key(expired), "code") == b"EXPIRED", 10, "the expired job has ended")  # noqa: B023
        wait_until(lambda: len(fleetlet.got) == 2, 10, "the dead worker's job is claimed")  # noqa: B023
        assert {claim.job_id for claim in fleetlet.got} == {job, taken}
        assert intake.exit.code is None
        assert fleetlet.left == []
        assert not intake.lease.is_lost
        wait_until(lambda: intake.lease.steady_seconds > 0, 5, "the lease is kept")  # noqa: B023


def test_an_error_that_cannot_pass_ends_the_worker_wherever_it_comes_from(
    url: str, client: Any, new_fleetlet: Callable[[], Fleetlet]
) -> None:
    for place, find in PLACES.items():
        if place in HANDLED:
            continue
        fleetlet = new_fleetlet()
        prepare(url, client)
        fault = KeyError("no such thing")
        if place != "lease, a cancel":
            Failing(*find(fleetlet.intake), fault, float("inf"))
        fleetlet.open()
        if place == "lease, a cancel":
            Failing(*find(fleetlet.intake), fault, float("inf"))
        submit(url, 1)
        if place.startswith("lease, a"):
            wait_until(lambda: fleetlet.got, 5, "a job is claimed")  # noqa: B023
            client.set(cancel_key(fleetlet.got[0].job_id), "x", ex=60)
            client.delete(f"{KEY_PREFIX}claims:{fleetlet.intake.ledger._identity.owner}")

        wait_until(lambda: fleetlet.left, 10, f"{place}: the worker ends")  # noqa: B023

        assert fleetlet.left == [EXIT_STALLED], place
        if place.startswith("lease"):
            wait_until(fleetlet.is_ended.is_set, 10, f"{place}: its jobs are ended")
        else:
            assert not fleetlet.is_ended.is_set(), place


def test_a_worker_that_loses_its_lease_before_its_consumer_starts_ends(
    client: Any, new_fleetlet: Callable[[], Fleetlet]
) -> None:
    fleetlet = new_fleetlet()
    fleetlet.open(with_claims=False)
    client.delete(f"{KEY_PREFIX}owners")

    wait_until(lambda: fleetlet.left, 10, "the process would have ended")

    assert fleetlet.left == [EXIT_LOST]
    flags: Any = state
    assert flags.should_terminate == EXIT_LOST, "and in order, where Celery's loop begins before that"
    fleetlet.start()
    assert fleetlet.is_ended.is_set(), "what would run is ended, although the claims begin after the loss"


def test_a_job_that_cannot_be_started_while_redis_is_away_goes_back_once_it_is_there(
    url: str, client: Any, new_fleetlet: Callable[[], Fleetlet]
) -> None:
    fleetlet = new_fleetlet()
    away = Failing(fleetlet.intake.ledger, "retry", redis.ConnectionError("gone"), 3)
    errors = [OSError(errno.EMFILE, "Too many open files"), KeyError("x")]

    def receive(claim: Claim) -> None:
        fleetlet.got.append(claim)
        if errors:
            raise errors.pop(0)

    fleetlet.open(with_claims=False)
    fleetlet.intake.start(receive, is_stopping=lambda: False, end_job=lambda _: None, end_all=lambda: None)
    fleetlet.intake.watchdog._ticked = float("inf")
    (job,) = submit(url, 1)

    wait_until(lambda: len(fleetlet.got) == 3, 15, "it is started again")

    assert away.calls == 5
    assert [claim.job_id for claim in fleetlet.got] == [job] * 3
    codes = [attempt.code for attempt in fleetlet.got[-1].attempts]
    assert codes == [ErrorCode.HOST_RESOURCES, ErrorCode.INTERNAL, None]
    assert fleetlet.intake.held_claims.job_ids() == [job]


def test_the_lease_is_renewed_while_other_threads_hang(new_fleetlet: Callable[[], Fleetlet], client: Any) -> None:
    fleetlet, release = new_fleetlet(), threading.Event()
    fleetlet.intake.ledger.reap = lambda **_: release.wait(10) or ("", [])  # type: ignore[assignment,method-assign]
    fleetlet.open()
    time.sleep(2 * LEASE_SECONDS)

    assert client.zscore(f"{KEY_PREFIX}owners", fleetlet.intake.ledger._identity.owner) > time.time() * 1000
    assert fleetlet.intake.exit.code is None
    release.set()


def test_an_exit_in_order_is_asked_of_celery_and_enforced_by_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
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
