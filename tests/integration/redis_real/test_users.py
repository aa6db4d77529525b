"""The users of deploy/redis: each does its own work, and is refused the rest."""

from __future__ import annotations

import base64
import contextlib
import re
from typing import TYPE_CHECKING, Any

import pytest
import redis
from flower_pages import running_flower
from pydantic import SecretStr
from redis.exceptions import NoPermissionError
from sandfleet import ErrorCode, Fleet, FleetUnavailable, Settings
from sandfleet.actions import Actor
from sandfleet.history.words import parse_words
from sandfleet_config.queues import KEY_PREFIX, job_key, result_key
from stage import Stage
from stand_in import shell
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from redis_servers import UserServer

MARKER = "PLANTED-SECRET"
SHAPES = (MARKER, *(base64.b64encode(b"x" * at + MARKER.encode()).decode()[4:-4] for at in range(3)))
"""The secret as it is, and in a message's body."""
READS: dict[str, list[tuple[Any, ...]]] = {
    "string": [("GET",), ("GETRANGE", 0, -1), ("STRLEN",), ("MGET",), ("SUBSTR", 0, -1)],
    "list": [("LRANGE", 0, -1), ("LINDEX", 0), ("LPOP",)],
    "hash": [("HGETALL",), ("HVALS",), ("HGET", "message"), ("HMGET", "message"), ("HSCAN", 0)],
    "stream": [("XRANGE", "-", "+"), ("XREVRANGE", "+", "-")],
    "zset": [("ZRANGE", 0, -1), ("ZSCAN", 0)],
    "set": [("SMEMBERS",), ("SSCAN", 0)],
}
"""Commands that show what a key of a type has."""
PAGES_OF_FLEET = (
    "",
    "hosts",
    "queues",
    "queue?name=sandfleet",
    "batches",
    "batch?name=users",
    "jobs?q=batch:users",
    "images",
    "failures",
    "audit",
    "metrics",
    "act?verb=pause&target=sandfleet",
)


def shows_secret(answer: object) -> bool:
    return any(shape in repr(answer) for shape in SHAPES)


def new_fleet(users: UserServer, user: str, **settings: Any) -> Fleet:
    return Fleet(Settings.model_validate({"redis_url": SecretStr(users.url(user)), **settings}))


@pytest.fixture(scope="module")
def stage(users: UserServer, short_folder: Path, images_root: Path) -> Iterator[Stage]:
    stage = Stage(short_folder, images_root, users.url("worker"), users.admin)
    try:
        stage.start(3, SANDFLEET_LEASE_SECONDS="3").wait_ready()
        yield stage
    finally:
        stage.close()


def act_as_operator(users: UserServer) -> None:
    """Do each act of an operator as the user `web`, and read the audit."""
    with new_fleet(users, "web") as fleet:
        ann = fleet.operator(Actor("ann"))
        assert ann.preview_queue("sandfleet").waiting == 0
        ann.pause("sandfleet", "a test")
        ann.cordon("nowhere", "a test")
        waiting = fleet.submit(shell("true"))
        assert ann.cancel_jobs(ann.select_open(parse_words("queue:sandfleet"))).done == 1
        assert waiting.outcome(timeout=20).code is ErrorCode.CANCELLED
        assert ann.retry_jobs(ann.select_jobs([waiting.id])).done == 1
        ann.drain("nowhere", "a test", 60)
        ann.uncordon("nowhere")
        ann.resume("sandfleet")
        assert waiting.outcome(timeout=20, run=2).code is ErrorCode.OK
        ann.purge_dead(ann.select_dead())
        acts = [line.action for line in fleet.state.read_audit(20)][::-1]
    assert acts == ["pause", "cordon", "cancel", "retry", "drain", "uncordon", "resume", "purge dead"]


def test_producer_worker_and_flower_do_their_work_and_are_refused_nothing(
    users: UserServer, stage: Stage, tmp_path: Path
) -> None:
    users.read_refusals()
    secret = {"env": [f"SECRET={MARKER}"], "stdin": MARKER}
    with new_fleet(users, "producer") as fleet:
        live = fleet.submit(shell("cat; sleep 0.5; exit 3", output={"live": True}, **secret))
        assert b"".join(chunk.data for chunk in live.stream()) == MARKER.encode()
        assert live.outcome(timeout=20).code is ErrorCode.EXIT_NONZERO

        jobs = fleet.submit_many([shell(f"exit {at % 2}", idempotency_key=f"k{at}") for at in range(4)], batch="users")
        assert [outcome.exit_code for outcome in fleet.as_completed(jobs, timeout=30)].count(1) == 2
        batch = fleet.batch("users")
        batch.seal()
        batch.retry()
        assert len(list(fleet.as_completed(jobs, timeout=30))) == 4
        assert [view.job_id for view in batch.find_jobs()] == [job.id for job in jobs]
        waits_for_it = fleet.submit(shell("true", after={"jobs": [jobs[0].id]}))
        assert waits_for_it.outcome(timeout=20).code is ErrorCode.OK

        running, *queued = (fleet.submit(shell("sleep 30")) for _ in range(5))
        wait_until(lambda: stage.has_started(running.id), 20, "it runs")
        for job in [*queued, running]:
            job.cancel()
        assert {job.outcome(timeout=20).code for job in [*queued, running]} == {ErrorCode.CANCELLED}

        fails = fleet.submit({"image": "nowhere", "command": ["true"], "stdin": MARKER, "max_attempts": 1})
        assert fails.outcome(timeout=20).code is ErrorCode.IMAGE_NOT_FOUND
        assert fleet.has_workers(5)
        assert [summary.name for summary in fleet.batches()] == ["users"]
    assert users.read_refusals() == []
    history = str(tmp_path / "history.db")
    with running_flower(stage, SANDFLEET_REDIS_URL=users.url("web"), SANDFLEET_WEB__HISTORY__FILE=history) as flower:
        wait_until(lambda: stage.workers[0].log and flower.get_json("/api/workers"), 20, "Flower knows the worker")
        assert {"name": "sandfleet", "messages": 0} in flower.get_json("/api/queues/length")["active_queues"]
        assert ">sandfleet<" in flower.get("/broker")
        for page in PAGES_OF_FLEET:
            assert flower.ask(f"/fleet/{page}", password=flower.password)[0] == 200, page
        wait_until(lambda: "EXIT_NONZERO" in flower.get("/fleet/jobs?q=code:EXIT_NONZERO"), 20, "a history is written")
    assert users.read_refusals() == []
    act_as_operator(users)
    assert users.read_refusals() == []


def test_the_viewer_reads_no_output_environment_or_stdin_by_any_command(users: UserServer, stage: Stage) -> None:
    for worker in stage.workers:
        worker.stop()
    spec = shell("cat", env=[f"SECRET={MARKER}"], stdin=MARKER, output={"live": True})
    with new_fleet(users, "producer") as fleet:
        fleet.submit(spec)  # stays in the queue
    users.admin.hset(job_key("waits-for-its-next-attempt"), mapping={"state": "queued", "message": MARKER})
    users.admin.xadd(f"{KEY_PREFIX}live:one", {"data": MARKER})
    users.admin.hset(f"{KEY_PREFIX}claims:one", "claim", MARKER)
    users.admin.hset(f"{KEY_PREFIX}dead:one", "message", MARKER)
    viewer, places, seen = users.connect("viewer"), set(), 0
    for key in users.admin.scan_iter("*"):
        (first, *others) = READS[users.admin.type(key).decode()]
        if shows_secret(users.admin.execute_command(first[0], key, *first[1:])):
            places.add(re.sub(r"^sandfleet:(celery-task-meta-|[^:]+:?).*", r"\1", key.decode(), flags=re.DOTALL))
        for name, *rest in (first, *others):
            with contextlib.suppress(NoPermissionError):
                assert not shows_secret(viewer.execute_command(name, key, *rest)), key
                seen += 1
    planted = {"celery-task-meta-", "job:", "spec:", "live:", "claims:", "dead:", "sandfleet\x06\x166"}
    assert planted <= places, "the test has planted enough"
    assert seen > 3, "the viewer reads something"
    # In other ways.
    for words in (
        ("EVAL", "return redis.call('GET', KEYS[1])", 1, "x"),
        ("SCAN", 0),
        ("KEYS", "*"),
        ("RANDOMKEY",),
        ("SUBSCRIBE", f"{KEY_PREFIX}{result_key('x')}"),
        ("MONITOR",),
        ("DUMP", job_key("waits-for-its-next-attempt")),
        ("SORT", f"{KEY_PREFIX}owners", "BY", "nosort", "GET", f"{KEY_PREFIX}celery-task-meta-*"),
        ("XREAD", "STREAMS", f"{KEY_PREFIX}live:one", "0"),
        ("COPY", job_key("waits-for-its-next-attempt"), "y"),
    ):
        with pytest.raises(NoPermissionError):
            viewer.execute_command(*words)
    assert viewer.llen(f"{KEY_PREFIX}sandfleet\x06\x166") == 1, "it sees how long a queue is"
    with pytest.raises(NoPermissionError):
        viewer.set(f"{KEY_PREFIX}owners", "x")


OTHERS_KEYS: list[tuple[Any, ...]] = [
    ("HDEL", "claims:host:1:a", "claim"),
    ("DEL", "claims:host:1:a"),
    ("HVALS", "claims:host:1:a"),
    ("ZREM", "owners", "host:1:a"),
    ("HSET", "hosts", "host:1:a", "{}"),
    ("SADD", "images:host:1:a", "x"),
    ("SET", "status:host:1:a", "{}"),
    ("SET", "keeps:host", "job"),
    ("HSET", "shared_images", "python", "evil"),
    ("XADD", "live:one", "*", "data", "x"),
    ("RENAME", "owners", "job:x"),
    ("LPUSH", "other-queue", "x"),
]
OPERATORS_KEYS: list[tuple[Any, ...]] = [
    ("HSET", "cordons", "host", "{}"),
    ("HSET", "paused", "sandfleet", "{}"),
    ("XADD", "audit", "*", "by", "me"),
]
DANGEROUS: list[tuple[Any, ...]] = [
    ("FLUSHALL",),
    ("CONFIG", "GET", "requirepass"),
    ("ACL", "LIST"),
    ("KEYS", "*"),
    ("SHUTDOWN",),
    ("REPLICAOF", "127.0.0.1", "1"),
    ("SCRIPT", "FLUSH"),
    ("CLIENT", "KILL", "ID", "1"),
    ("SWAPDB", "0", "1"),
    ("MONITOR",),
]


@pytest.fixture
def others(users: UserServer) -> Iterator[None]:
    """A claim, a lease."""
    users.admin.hset(f"{KEY_PREFIX}claims:host:1:a", "claim", "x")
    users.admin.zadd(f"{KEY_PREFIX}owners", {"host:1:a": 1})
    yield
    assert users.admin.hexists(f"{KEY_PREFIX}claims:host:1:a", "claim")
    assert users.admin.zscore(f"{KEY_PREFIX}owners", "host:1:a")


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize("user", ["producer", "web"])
@pytest.mark.parametrize("words", OTHERS_KEYS, ids=lambda words: " ".join(words[:2]))
def test_claims_leases_and_hosts_are_the_workers_own(users: UserServer, user: str, words: tuple[Any, ...]) -> None:
    name, key, *rest = words
    client = users.connect(user)
    with pytest.raises(NoPermissionError):
        client.execute_command(name, f"{KEY_PREFIX}{key}", *rest)
    arguments = ", ".join(f"'{word}'" for word in (name, f"{KEY_PREFIX}{key}", *rest))
    with pytest.raises(redis.ResponseError, match="The user executing the script"):
        client.execute_command("EVAL", f"return redis.call({arguments})", 0)


@pytest.mark.parametrize("words", OPERATORS_KEYS, ids=lambda words: words[1])
def test_operators_use_the_web_user(users: UserServer, words: tuple[Any, ...]) -> None:
    name, key, *rest = words
    for user in ("producer", "viewer"):
        with pytest.raises(NoPermissionError):
            users.connect(user).execute_command(name, f"{KEY_PREFIX}{key}", *rest)
    users.connect("web").execute_command(name, f"{KEY_PREFIX}{key}", *rest)
    users.admin.delete(f"{KEY_PREFIX}{key}")


@pytest.mark.parametrize("user", ["producer", "web", "worker", "viewer"])
@pytest.mark.parametrize("words", DANGEROUS, ids=lambda words: words[0])
def test_nobody_but_the_admin_changes_redis_itself(users: UserServer, user: str, words: tuple[Any, ...]) -> None:
    with pytest.raises(NoPermissionError):
        users.connect(user).execute_command(*words)


def test_the_worker_has_no_other_keys(users: UserServer) -> None:
    with pytest.raises(NoPermissionError):
        users.connect("worker").set("another-program's", "x")


def test_a_submit_to_a_queue_without_a_rule_says_what_to_do(users: UserServer) -> None:
    with (
        new_fleet(users, "producer", queue="unknown") as fleet,
        pytest.raises(FleetUnavailable, match="each queue must be named"),
    ):
        fleet.submit(shell("true"))


def test_no_password_and_the_default_user_are_refused(users: UserServer) -> None:
    url = f"redis://127.0.0.1:{users.server.port}/0"
    with Fleet(Settings(redis_url=SecretStr(url))) as fleet, pytest.raises(FleetUnavailable, match="user or password"):
        fleet.ping()
