"""Who is charged when a worker dies: told by the scripts alone, with workers of which only the ledger runs."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import redis
from pydantic import SecretStr
from sandfleet import ErrorCode, Fleet, SandboxSpec, Settings
from sandfleet_config.outcome import Outcome
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, cancel_key, job_key
from sandfleet_worker.delivery.claim import MAX_STARTS, Claim, Refused
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.delivery.sweeper import Sweeper

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_SPEC_BYTES = 1 << 18
LEASE_SECONDS = 60.0


class Scene:
    """A fleet in which only ledgers move, and time is what the test writes into Redis."""

    def __init__(self, client: Any, url: str) -> None:
        self.client, self.url = client, url
        self._claims = 0

    def submit(self, count: int = 1, **fields: Any) -> list[str]:
        spec = SandboxSpec.model_validate({"image": "x", "command": ["true"], **fields})
        with Fleet(Settings(redis_url=SecretStr(self.url))) as fleet:
            return [job.id for job in fleet.submit_many([spec] * count)]

    def worker(self, name: str, host: str = "host", boot: str = "boot-1") -> Ledger:
        ledger = Ledger(self.client, Identity(host, name, f"{host}:{name}:{name}", boot), 3600)
        ledger.register(LEASE_SECONDS)
        return ledger

    def claim(self, ledger: Ledger, **facts: object) -> Claim | None:
        """Claim the next job whose time to wait is over: all of them."""
        for job_id in self.client.zrange(f"{KEY_PREFIX}delayed", 0, -1):
            self.client.zadd(f"{KEY_PREFIX}delayed", {job_id: 1})
        self._claims += 1
        claim, _ = ledger.claim(f"claim-{self._claims}", [DEFAULT_QUEUE], facts)
        return claim

    def take(self, ledger: Ledger, count: int) -> dict[str, Claim]:
        found = [self.claim(ledger) for _ in range(count)]
        return {claim.job_id: claim for claim in found if claim is not None}

    def kill(self, dead: Ledger, successor: Ledger) -> None:
        """Let the lease of `dead` end now, and `successor` decide about its jobs."""
        now = self.now()
        self.client.zadd(f"{KEY_PREFIX}owners", {dead._identity.owner: now - 1})
        self.sweep(successor)

    def sweep(self, successor: Ledger) -> None:
        Sweeper(successor, SimpleNamespace(may_take_over=True), MAX_SPEC_BYTES, lambda _: None).sweep()  # type: ignore[arg-type]

    def now(self) -> int:
        seconds, micros = self.client.time()
        return int(seconds * 1000 + micros // 1000)

    def field(self, job_id: str, name: str) -> str:
        return (self.client.hget(job_key(job_id), name) or b"").decode()

    def attempts(self, job_id: str) -> list[dict[str, Any]]:
        text = self.field(job_id, "attempts")
        return list(json.loads(text)) if text else []

    def charged(self, job_id: str) -> list[bool]:
        return [item.get("charged", True) for item in self.attempts(job_id)]

    def is_suspect(self, job_id: str) -> bool:
        return bool(self.field(job_id, "suspect"))

    def let_started(self, job_id: str, milliseconds_ago: int) -> None:
        """Let a job have started so long ago."""
        attempts = self.attempts(job_id)
        attempts[-1]["started"] -= milliseconds_ago
        self.client.hset(job_key(job_id), "attempts", json.dumps(attempts))


@pytest.fixture
def scene(redis_server: Any) -> Iterator[Scene]:
    url = str(redis_server.url).replace("db=0", "db=4")
    with redis.Redis.from_url(url) as client:
        client.flushdb()
        yield Scene(client, url)
        client.flushdb()


def test_many_jobs_of_a_dead_worker_are_suspects_and_none_is_charged(scene: Scene) -> None:
    job_ids = scene.submit(5)
    dead, successor = scene.worker("dead"), scene.worker("successor", "other")
    claims = scene.take(dead, 4)
    waiting = job_ids[3]
    assert dead.wait(claims[waiting])
    scene.kill(dead, successor)

    for job_id in job_ids[:3]:
        assert [item["code"] for item in scene.attempts(job_id)] == ["WORKER_LOST"]
        assert scene.charged(job_id) == [False]
        assert scene.is_suspect(job_id)
        assert scene.field(job_id, "state") == "queued"
    for job_id in job_ids[3:]:
        assert scene.attempts(job_id) == []
        assert not scene.is_suspect(job_id)
        assert scene.field(job_id, "state") == "queued"


def test_the_only_job_of_a_dead_worker_is_charged_and_a_suspect(scene: Scene) -> None:
    (job_id, waiting) = scene.submit(2)
    dead, successor = scene.worker("dead"), scene.worker("successor")
    claims = scene.take(dead, 2)
    assert dead.wait(claims[waiting])
    scene.kill(dead, successor)

    assert scene.charged(job_id) == [True]
    assert scene.is_suspect(job_id)


def test_a_worker_holds_one_suspect_at_a_time_and_takes_the_jobs_behind_it(scene: Scene) -> None:
    suspects = scene.submit(24)
    dead, successor = scene.worker("dead"), scene.worker("successor")
    scene.take(dead, 24)
    scene.kill(dead, successor)
    first = scene.claim(successor)
    assert first is not None
    assert first.job_id in suspects
    assert first.suspect_seconds is not None
    (innocent,) = scene.submit()

    second = scene.claim(successor, holds_suspect=True)

    assert second is not None
    assert second.job_id == innocent
    assert second.suspect_seconds is None
    assert scene.claim(successor, holds_suspect=True) is None
    assert [scene.field(job_id, "state") for job_id in suspects].count("queued") == 23
    other = scene.worker("other")
    found = {first.job_id, *scene.take(other, 12), *scene.take(successor, 11)}
    assert found == set(suspects)


def test_a_worker_that_dies_with_one_suspect_charges_it_and_nobody_else(scene: Scene) -> None:
    guilty, *others = scene.submit(4)
    one, two = scene.worker("one"), scene.worker("two")
    scene.take(one, 1)
    scene.kill(one, two)
    assert scene.charged(guilty) == [True]
    for number in (2, 3):
        worker = scene.worker(f"worker-{number}")
        assert set(scene.take(worker, 4)) == {guilty, *others}
        scene.kill(worker, two)
        assert scene.charged(guilty) == [True] * number
        for job_id in others:
            assert scene.charged(job_id) == [False] * (number - 1)
            assert not scene.is_suspect(job_id)
    assert scene.field(guilty, "code") == "WORKER_LOST"
    assert scene.client.exists(f"{KEY_PREFIX}dead:{guilty}")


def test_a_suspect_that_outlived_its_earlier_run_is_not_blamed_for_the_next_death(scene: Scene) -> None:
    old, new = scene.submit(2)
    one, two = scene.worker("one"), scene.worker("two")
    assert set(scene.take(one, 1)) == {old}
    scene.kill(one, two)
    worker = scene.worker("worker")
    scene.take(worker, 2)
    scene.client.hset(job_key(old), "suspect_until", scene.now() - 1000 * round(LEASE_SECONDS + 1))
    scene.kill(worker, two)

    assert scene.charged(old) == [True, False]
    assert scene.charged(new) == [False]
    assert scene.is_suspect(old)
    assert scene.is_suspect(new)


def test_a_suspect_runs_apart_for_as_long_as_its_earlier_run_and_at_most_a_minute(scene: Scene) -> None:
    for milliseconds, seconds in ((20_000, 20), (300_000, 60)):
        (job_id,) = scene.submit()
        dead, successor = scene.worker("dead"), scene.worker("successor")
        scene.take(dead, 1)
        scene.let_started(job_id, milliseconds)
        scene.kill(dead, successor)
        claim = scene.claim(successor)
        assert claim is not None
        assert claim.suspect_seconds == pytest.approx(seconds, abs=2)
        assert successor.wait(claim)
        assert scene.field(job_id, "suspect_until") == ""
        started = successor.start(claim)
        assert isinstance(started, Claim)
        assert started.suspect_seconds == pytest.approx(seconds, abs=2)
        assert scene.field(job_id, "suspect_until")
        assert successor.finish(started, Outcome.of(ErrorCode.OK, job_id))


def test_after_a_power_cut_nobody_is_a_suspect(scene: Scene) -> None:
    job_ids = scene.submit(3)
    dead = scene.worker("dead")
    scene.take(dead, 3)
    successor = scene.worker("successor", boot="boot-2")  # the same host, up again
    scene.kill(dead, successor)

    for job_id in job_ids:
        assert scene.charged(job_id) == [False]
        assert not scene.is_suspect(job_id)


def test_a_host_that_comes_back_from_a_power_cut_clears_its_suspects(scene: Scene) -> None:
    """Another host takes over before it is back, and charges the only job."""
    (job_id,) = scene.submit()
    dead, successor = scene.worker("dead"), scene.worker("successor", host="other", boot="boot-9")
    scene.take(dead, 1)
    scene.kill(dead, successor)
    assert scene.charged(job_id) == [True]
    scene.worker("again", boot="boot-2")

    claim = scene.claim(successor, holds_suspect=True)

    assert claim is not None
    assert claim.suspect_seconds is None
    assert not scene.is_suspect(job_id)
    assert [attempt.charged for attempt in claim.attempts] == [False, True]
    assert scene.charged(job_id) == [False, True]
    assert scene.client.ttl(f"{KEY_PREFIX}boot:host") > 7 * 86400


def test_a_suspect_of_a_host_that_came_back_is_not_charged_for_the_next_death(scene: Scene) -> None:
    cleared, beside = scene.submit(2)
    dead, successor = scene.worker("dead"), scene.worker("successor", host="other", boot="boot-9")
    scene.take(dead, 1)
    scene.kill(dead, successor)
    worker = scene.worker("worker", host="third", boot="boot-5")
    scene.take(worker, 2)
    scene.worker("again", boot="boot-2")
    scene.kill(worker, successor)

    assert scene.charged(cleared)[1:] == [False]
    assert scene.charged(beside) == [False]


def test_a_job_is_started_twenty_times_at_most(scene: Scene) -> None:
    job_id, other = scene.submit(2)
    successor = scene.worker("successor")
    for number in range(MAX_STARTS):
        worker = scene.worker(f"worker-{number}")
        assert job_id in scene.take(worker, 2)
        for suspect in (job_id, other):  # each outlived its earlier run
            scene.client.hdel(job_key(suspect), "suspect", "suspect_until")
        scene.kill(worker, successor)
    assert scene.charged(job_id) == [False] * MAX_STARTS
    assert scene.field(job_id, "code") == "WORKER_LOST"
    reason = scene.client.hget(f"{KEY_PREFIX}dead:{job_id}", "reason")
    assert b"started 20 times, 20 starts are the most of any job" in reason


def test_max_attempts_1_is_one_start_charged_or_not_and_a_wait_is_none(scene: Scene) -> None:
    started, waiting = scene.submit(2, max_attempts=1)
    dead, successor = scene.worker("dead"), scene.worker("successor")
    claims = scene.take(dead, 2)
    assert dead.wait(claims[waiting])
    assert dead.wait(claims[waiting]), "its answer got lost"
    scene.kill(dead, successor)
    assert scene.field(started, "code") == "WORKER_LOST"
    assert b"max_attempts=1 allows one start" in scene.client.hget(f"{KEY_PREFIX}dead:{started}", "reason")
    claim = scene.claim(successor)
    assert claim is not None
    assert (claim.job_id, len(claim.attempts)) == (waiting, 1)


def test_a_job_whose_workers_die_before_it_starts_ends_after_twenty_of_them(scene: Scene) -> None:
    (job_id,) = scene.submit()
    successor = scene.worker("successor")
    for number in range(MAX_STARTS):
        assert scene.field(job_id, "state") == "queued"
        dead = scene.worker(f"dead-{number}")
        assert dead.wait(scene.take(dead, 1)[job_id])
        scene.kill(dead, successor)

    assert (scene.field(job_id, "state"), scene.field(job_id, "code")) == ("ended", "WORKER_LOST")
    assert scene.attempts(job_id) == []


def test_a_wait_takes_the_attempt_back_and_a_start_records_it(scene: Scene) -> None:
    (job_id,) = scene.submit()
    worker = scene.worker("worker")
    claim = scene.claim(worker)
    assert claim is not None
    assert worker.wait(claim)
    assert (scene.field(job_id, "state"), scene.attempts(job_id)) == ("waiting", [])
    assert worker.restore(claim), "a job that waits is held like one that runs"
    assert worker.limit_attempts(claim, 3)
    assert worker.cancel("x") == "unknown"
    for _ in range(2):  # the first answer got lost
        started = worker.start(claim)
        assert isinstance(started, Claim)
        assert [attempt.worker for attempt in started.attempts] == ["worker"]
        assert len(scene.attempts(job_id)) == 1
    assert scene.field(job_id, "state") == "running"


def test_a_wait_that_ends_keeps_the_attempts_before_it(scene: Scene) -> None:
    (job_id,) = scene.submit()
    worker = scene.worker("worker")
    claim = scene.claim(worker)
    assert claim is not None
    assert worker.retry(claim, ErrorCode.HOST_RESOURCES)
    for end in ("give back", "cancel"):
        claim = scene.claim(worker)
        assert claim is not None
        assert worker.wait(claim)
        if end == "give back":
            assert worker.give_back(claim)
        else:
            assert worker.cancel(job_id) == "running"
            assert worker.start(claim) is Refused.CANCELLED
            assert worker.finish(claim, Outcome.of(ErrorCode.CANCELLED, job_id))
        assert [item["code"] for item in scene.attempts(job_id)] == ["HOST_RESOURCES"]
    assert worker.start(claim) is Refused.FENCED
    assert not worker.wait(claim)


def test_an_expired_or_cancelled_job_ends_so_although_its_claimer_dies(scene: Scene) -> None:
    for end in (b"EXPIRED", b"CANCELLED"):
        (job_id,) = scene.submit()
        dead, successor = scene.worker("dead"), scene.worker("successor")
        if end == b"EXPIRED":
            scene.client.hset(job_key(job_id), "expires", 1)
        else:
            scene.client.set(cancel_key(job_id), "x", ex=60)
        claim = scene.claim(dead)
        assert claim is not None
        assert claim.flag.value == end.decode().lower()
        scene.client.delete(cancel_key(job_id))
        scene.kill(dead, successor)
        assert scene.client.hget(job_key(job_id), "code") == end
        assert scene.attempts(job_id) == []


def test_time_in_the_queue_is_counted_over_all_waits_and_no_run(scene: Scene) -> None:
    rows = (("give_back", 0), ("release", 30_000), ("retry", 30_000))
    for how, ran in rows:
        (job_id,) = scene.submit(queue_ttl=100)
        worker = scene.worker("worker")
        before = int(scene.field(job_id, "expires"))
        claim = scene.claim(worker)
        assert claim is not None
        scene.let_started(job_id, 30_000)
        assert worker.retry(claim, ErrorCode.INTERNAL) if how == "retry" else getattr(worker, how)(claim)
        after = int(scene.field(job_id, "expires"))
        assert after - before == pytest.approx(ran, abs=2000), how
        assert scene.client.zscore(f"{KEY_PREFIX}expiring", job_id) == after
        assert scene.charged(job_id) == {"give_back": [], "release": [False], "retry": [True]}[how]
        claim = scene.claim(worker)
        assert claim is not None
        assert worker.finish(claim, Outcome.of(ErrorCode.OK, job_id))


def test_at_maxmemory_what_has_started_is_told_and_what_has_not_goes_back(scene: Scene) -> None:
    """Each row: what a worker tells of a job that it has claimed; nothing new starts meanwhile."""
    one = scene.worker("one")
    scene.submit(6)
    held = list(scene.take(one, 5).values())
    waits = held[4]
    assert one.wait(waits)
    scene.client.config_set("maxmemory", 1)
    try:
        assert one.announce("{}", ["x"], 60)
        scene.client.hdel(f"{KEY_PREFIX}claims:host:one:one", held[0].claim_id)
        assert one.restore(held[0])
        assert one.wait(held[0])
        assert one.give_back(held[0])
        assert one.end_drained_attempt(held[1])
        assert one.finish(held[1], Outcome.of(ErrorCode.WORKER_LOST, held[1].job_id, "drained"))
        assert one.release(held[2])
        assert one.retry(held[3], ErrorCode.INTERNAL)
        for refused in (lambda: one.start(waits), lambda: scene.claim(one)):
            with pytest.raises(redis.exceptions.OutOfMemoryError):
                refused()
    finally:
        scene.client.config_set("maxmemory", 0)
    assert [scene.field(claim.job_id, "state") for claim in held] == ["queued", "ended", "queued", "queued", "waiting"]
    assert scene.attempts(held[0].job_id) == []
    assert scene.charged(held[1].job_id) == [False]
    successor = scene.worker("successor")
    scene.client.zadd(f"{KEY_PREFIX}owners", {one._identity.owner: scene.now() - 1})
    scene.client.config_set("maxmemory", 1)
    try:
        scene.sweep(successor)
    finally:
        scene.client.config_set("maxmemory", 0)
    assert scene.field(waits.job_id, "state") == "queued"


def test_a_start_is_told_although_the_job_expires_before_the_next(scene: Scene) -> None:
    one = scene.worker("one")
    (job_id,) = scene.submit(queue_ttl=600)
    assert one.release(scene.take(one, 1)[job_id])
    scene.client.zadd(f"{KEY_PREFIX}expiring", {job_id: 1})
    scene.sweep(one)
    assert scene.field(job_id, "code") == "EXPIRED"
    with Fleet(Settings(redis_url=SecretStr(scene.url))) as fleet:
        (attempt,) = fleet.job(job_id).outcome(5).attempts
    assert (attempt.code, attempt.charged) == (ErrorCode.WORKER_LOST, False)
