"""A worker records attempts and ends of jobs while Redis is down."""

from __future__ import annotations

import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from celery.worker import state as celery_state
from sandfleet import Fleet, Settings
from sandfleet_config.queues import job_key
from sandfleet_config.settings import WorkerSettings
from sandfleet_worker.delivery.claim import Claim, Flag
from sandfleet_worker.delivery.host_slots import HostSlots
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.intake import Intake
from sandfleet_worker.delivery.settlement import WorkerStops
from sandfleet_worker.host import connect
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLAIM = Claim("c1", "j1", Flag.START, b"")


class OwnRedis:
    """A server that a test may kill and start again."""

    def __init__(self, folder: Path, binary: str) -> None:
        self.socket = folder / "redis.sock"
        self._command = [binary, "--port", "0", "--unixsocket", str(self.socket), "--dir", str(folder), "--save", ""]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        wait_until(self.socket.exists, 10, "redis-server has its socket")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @property
    def url(self) -> str:
        return f"unix://{self.socket}?db=0"


@pytest.fixture
def own_redis(redis_server: object) -> Iterator[OwnRedis]:
    with tempfile.TemporaryDirectory(prefix="sft-") as folder:
        own = OwnRedis(Path(folder), "redis-server")
        own.start()
        yield own
        own.kill()


@pytest.fixture
def intake(own_redis: OwnRedis, tmp_path: Path) -> Iterator[Intake]:
    slots = HostSlots(tmp_path, 1)
    settings = WorkerSettings.model_validate({"redis_url": own_redis.url})
    # A Redis that comes back empty has no lease: the worker would end, and the tests with it.
    intake = Intake(settings, Identity.new("here"), slots, lambda seconds: connect(settings, seconds), lambda _: None)
    intake.open()
    yield intake
    intake.close()
    slots.close()
    flags: Any = celery_state
    flags.should_stop = flags.should_terminate = None


def test_the_attempts_of_a_stock_job_are_noted_once_redis_is_back(
    intake: Intake, own_redis: OwnRedis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    own_redis.kill()
    noting = threading.Thread(target=intake.limit_attempts, args=(CLAIM, 7, 60.0))
    noting.start()
    time.sleep(1.5)
    assert noting.is_alive(), "an outage ends no job"
    own_redis.start()
    noting.join(10)

    assert not noting.is_alive()
    actions = [getattr(record, "action", "") for record in caplog.records]
    assert [action for action in actions if action.startswith("start_")] == ["start_interrupted", "start_resumed"]


def test_the_attempts_of_a_job_that_another_worker_has_stay_as_they_are(intake: Intake, own_redis: OwnRedis) -> None:
    with redis.Redis.from_url(own_redis.url, protocol=2) as client:
        record = {"state": "running", "claim": CLAIM.claim_id, "owner": intake.lease._ledger._identity.owner}
        for changed, expected in (
            ({}, b"7"),
            ({"claim": "c2"}, None),
            ({"owner": "x"}, None),
            ({"state": "ended"}, None),
        ):
            client.delete(job_key("j1"))
            client.hset(job_key("j1"), mapping=record | changed)
            intake.limit_attempts(CLAIM, 7, 60.0)
            assert client.hget(job_key("j1"), "max_attempts") == expected, changed
        client.delete(job_key("j1"))
        intake.limit_attempts(CLAIM, 7, 60.0)
        assert not client.exists(job_key("j1")), "no key without an end is left"


def test_a_job_that_is_claimed_while_the_worker_stops_goes_back_free(intake: Intake, own_redis: OwnRedis) -> None:
    """A cold stop shuts the pool of threads; a job with one attempt must not end by that."""
    with Fleet(Settings.model_validate({"redis_url": own_redis.url})) as fleet:
        job = fleet.submit({"image": "busybox", "command": ["true"], "max_attempts": 1})
    received: list[Claim] = []

    def receive(claim: Claim) -> None:
        received.append(claim)
        if len(received) == 1:
            raise WorkerStops

    nothing: Any = lambda *_: None  # noqa: E731
    intake.start(receive, is_stopping=lambda: False, end_job=nothing, end_all=nothing, withdraw=nothing)
    wait_until(lambda: len(received) == 2, 10, "it is claimed again")
    assert [(claim.job_id, claim.flag, len(claim.attempts)) for claim in received] == [(job.id, Flag.START, 1)] * 2


def _lose_an_answer(intake: Intake, monkeypatch: pytest.MonkeyPatch, and_then: Callable[[], None]) -> None:
    """Let Redis take a job for this worker, and lose the answer; then call `and_then`."""
    ledger, taken = intake.claimer._ledger, list[bool]()
    claim = ledger.claim

    def claim_and_lose(*words: Any) -> tuple[Claim | None, bool]:
        found = claim(*words)
        if found[0] is None or taken:
            return found
        taken.append(True)
        and_then()
        raise redis.ConnectionError("the answer got lost")

    monkeypatch.setattr(ledger, "claim", claim_and_lose)
    nothing: Any = lambda *_: None  # noqa: E731
    intake.start(nothing, is_stopping=lambda: False, end_job=nothing, end_all=nothing, withdraw=nothing)
    wait_until(lambda: taken, 10, "Redis has given it a job")


@pytest.mark.parametrize("held_up_by", ["a stop", "a pause"])
def test_a_claim_whose_answer_is_lost_goes_back_free_whatever_comes_first(
    intake: Intake, own_redis: OwnRedis, monkeypatch: pytest.MonkeyPatch, held_up_by: str
) -> None:
    with Fleet(Settings.model_validate({"redis_url": own_redis.url})) as fleet:
        job = fleet.submit({"image": "busybox", "command": ["true"], "max_attempts": 1})
    claimer = intake.claimer
    _lose_an_answer(intake, monkeypatch, claimer.pause if held_up_by == "a pause" else claimer.end)
    if held_up_by == "a stop":
        intake.stop()
    with redis.Redis.from_url(own_redis.url, protocol=2) as client:
        wait_until(lambda: client.hget(job_key(job.id), "state") == b"queued", 5, "it is in its queue")
        assert client.hget(job_key(job.id), "attempts") == b""
    wait_until(lambda: claimer.claim_id == "", 5, "the claim is settled")


def test_a_worker_that_gives_up_waits_for_redis_no_longer(intake: Intake, own_redis: OwnRedis) -> None:
    own_redis.kill()
    noting = threading.Thread(target=intake.limit_attempts, args=(CLAIM, 7, 60.0))
    noting.start()
    time.sleep(0.3)
    intake.give_up()
    noting.join(2)
    assert not noting.is_alive()
    own_redis.start()
