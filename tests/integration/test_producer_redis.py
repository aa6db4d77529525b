"""What the producer leaves in Redis, what it makes of what it finds there, and what it says when Redis is away."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import lasting
import pytest
from celery import Celery
from celery.contrib.testing.worker import start_worker
from pydantic import SecretStr
from sandfleet import (
    ErrorCode,
    Fleet,
    FleetError,
    FleetRunner,
    FleetUnavailable,
    JobUnknown,
    Payload,
    QueueFull,
    ResultTimeout,
    SandboxSpec,
    SandboxTimeout,
    Settings,
    SettingsInvalid,
)
from sandfleet.channel.records import CancelState
from sandfleet.errors import JobExists
from sandfleet_config.celery import shared_options
from sandfleet_config.queues import TASK_NAME, cancel_key, job_key, result_key
from sandfleet_config.wire import decode_job
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import redis

SPEC = SandboxSpec.model_validate(
    {
        "image": "x",
        "command": ["sh", "-c", "true"],
        "env": ["KEY=s3cret-env"],
        "stdin": "s3cret-stdin",
        "labels": {"name": "n"},
        "timeout": 1.5,
        "grace": 0.25,
    }
)


@pytest.fixture
def client(redis_server: Any) -> redis.Redis:
    found: redis.Redis = redis_server.client
    return found


@pytest.fixture
def fleet(redis_server: Any, client: redis.Redis) -> Iterator[Fleet]:
    """A fleet without workers."""
    with Fleet(Settings(redis_url=SecretStr(redis_server.url))) as fleet:
        yield fleet
    forget_jobs(client)


def forget_jobs(client: redis.Redis) -> None:
    """Drop what waits for ever where no worker is."""
    for key in [key for key in client.scan_iter("sandfleet:*") if b"_kombu" not in key]:
        client.delete(key)


LIST = "sandfleet:sandfleet\x06\x166"
"""The queue's list of priority 6, the default."""


def read_message(client: redis.Redis, key: str = LIST) -> dict[str, Any]:
    raw: Any = client.rpop(key)
    found: dict[str, Any] = json.loads(raw)
    return found


def hget(client: redis.Redis, job_id: str, field: str) -> bytes:
    found: Any = client.hget(job_key(job_id), field)
    assert isinstance(found, bytes)
    return found


def test_a_submit_is_a_record_and_a_stock_celery_message(fleet: Fleet, client: redis.Redis) -> None:
    job = fleet.submit(SPEC, batch="b")
    message = read_message(client)
    headers = message["headers"]
    assert (headers["task"], headers["id"]) == ("sandfleet.run", job.id)
    assert headers["timelimit"] == [1.75, 1.5]
    assert headers["argsrepr"] == "n: x sh -c true"
    assert not headers["ignore_result"]
    assert headers["eta"] is headers["expires"] is None
    (text,), kwargs, embed = json.loads(base64.b64decode(message["body"]))
    assert (decode_job(text).spec, decode_job(text).batch, kwargs) == (SPEC, "b", {})
    assert not any(embed.values())
    assert client.ttl(job_key(job.id)) == -1, "a job's keys live until it has ended"
    assert json.loads(hget(client, job.id, "record"))["batch"] == "b"
    assert hget(client, job.id, "state") == b"queued"


def test_no_env_and_no_stdin_is_anywhere_but_in_the_spec_itself(fleet: Fleet, client: redis.Redis) -> None:
    job = fleet.submit(SPEC)
    message = read_message(client)
    message["body"] = ""
    record = hget(client, job.id, "record").decode()
    seen = f"{message} {record} {client.hgetall(job_key(job.id))!r} {job!r} {fleet!r} {fleet.record(job.id)!r}"
    assert "s3cret" not in seen


def test_the_message_is_what_celery_would_have_sent(fleet: Fleet, client: redis.Redis) -> None:
    """Field for field, so that stock consumers and Flower read it."""
    with Celery("stock", set_as_current=False) as app:
        app.conf.update(shared_options(fleet.settings) | {"result_backend": "disabled://"})
        stock_limits: Any = {"soft_time_limit": 1.5, "time_limit": 1.75}
        app.send_task("sandfleet.run", ["x"], argsrepr="n: x", kwargsrepr="", priority=6, **stock_limits)
    stock = read_message(client)
    fleet.submit(SPEC)
    ours = read_message(client)
    assert ours.keys() == stock.keys()
    assert ours["headers"].keys() - stock["headers"].keys() == {"sandfleet-submitted", "sandfleet-recorded"}
    assert stock["headers"].keys() <= ours["headers"].keys()
    # `send_task` passes every option on as a property; Celery reads these two from the headers.
    assert stock["properties"].keys() - ours["properties"].keys() == {"argsrepr", "kwargsrepr"}
    same_headers = stock["headers"].keys() - {"id", "root_id", "argsrepr"}
    assert {name: ours["headers"][name] for name in same_headers} == {
        name: stock["headers"][name] for name in same_headers
    }
    for name in ("delivery_mode", "delivery_info", "priority", "body_encoding"):
        assert ours["properties"][name] == stock["properties"][name]
    assert json.loads(base64.b64decode(ours["body"]))[1:] == json.loads(base64.b64decode(stock["body"]))[1:]


@pytest.mark.parametrize(("priority", "key"), [(0, ""), (2, ""), (3, "\x06\x163"), (6, "\x06\x166"), (9, "\x06\x169")])
def test_priorities_go_to_kombus_lists(fleet: Fleet, client: redis.Redis, priority: int, key: str) -> None:
    job = fleet.submit(SPEC.model_copy(update={"priority": priority}), queue="q1")
    message = read_message(client, f"sandfleet:q1{key}")
    assert message["headers"]["id"] == job.id
    assert message["properties"]["priority"] == priority
    assert message["properties"]["delivery_info"]["routing_key"] == "q1"
    assert client.smembers("sandfleet:queues") == {b"q1"}


def test_a_stock_worker_takes_the_message(fleet: Fleet, client: redis.Redis) -> None:
    job = fleet.submit(SPEC)
    seen: list[tuple[str, str]] = []
    app = Celery("stock", set_as_current=False)
    app.conf.update(shared_options(fleet.settings))

    @app.task(name=TASK_NAME, bind=True)
    def run(self: Any, text: str) -> None:
        seen.append((self.request.id, decode_job(text).spec.image))

    with start_worker(app, pool="solo", perform_ping_check=False, shutdown_timeout=20):
        wait_until(lambda: seen, 20, "a stock worker runs the job")
    app.close()
    assert seen == [(job.id, "x")]
    client.delete(result_key(job.id))


def test_a_cancel_ends_a_queued_job_and_takes_its_message_away(fleet: Fleet, client: redis.Redis) -> None:
    first, second, third = fleet.submit_many([SPEC] * 3, batch="b")
    assert str(second.cancel()) == "cancelled before it started"
    assert client.llen(LIST) == 3, "behind a job that waits it stays, and a worker throws it away"
    assert str(first.cancel()) == "cancelled before it started"
    assert client.llen(LIST) == 1
    assert str(third.cancel()) == "cancelled before it started"
    assert client.llen(LIST) == 0
    assert not client.exists(cancel_key(first.id))
    assert lasting_keys(client) == []


def test_a_cancel_of_a_running_job_is_a_durable_mark_and_a_broadcast(fleet: Fleet, client: redis.Redis) -> None:
    job = fleet.submit(SPEC)
    client.hset(job_key(job.id), "state", "running")
    assert str(job.cancel()) == str(fleet.job(job.id).cancel()) == "cancel requested"
    assert 7 * 86400 < client.ttl(cancel_key(job.id)) <= 8 * 86400
    assert not client.exists(result_key(job.id)), "its worker records the end"
    assert not job.is_done


def lasting_keys(client: redis.Redis) -> list[str]:
    return lasting.lasting_keys(client, allowed=("_kombu",))


def test_a_cancelled_batch_leaves_nothing_without_a_ttl(fleet: Fleet, client: redis.Redis) -> None:
    specs = [SPEC.model_copy(update={"priority": index % 10}) for index in range(1000)]
    fleet.submit_many(specs, batch="big", idempotent=True)
    assert fleet.batch("big").cancel() == {"cancelled": 1000}
    assert lasting_keys(client) == []
    assert fleet.batch("big").counts == (1000, 1000)
    assert {outcome.batch for outcome in fleet.batch("big").outcomes()} == {"big"}


def test_an_expired_job_leaves_nothing_without_a_ttl(fleet: Fleet, client: redis.Redis) -> None:
    jobs = fleet.submit_many([SPEC.model_copy(update={"queue_ttl": 0.05})] * 300, batch="big", idempotent=True)
    codes = [outcome.code for outcome in fleet.as_completed(jobs, timeout=20)]
    assert codes == [ErrorCode.EXPIRED] * 300
    assert lasting_keys(client) == []


def test_what_was_tried_and_waits_again_keeps_its_history_when_it_is_cancelled(
    fleet: Fleet, client: redis.Redis
) -> None:
    job = fleet.submit(SPEC)
    history = [{"host": "h", "worker": "w", "started": 1.7e12, "ended": 1.7e12, "code": "WORKER_LOST"}]
    client.hset(job_key(job.id), "attempts", json.dumps(history))
    job.cancel()
    (attempt,) = job.outcome(timeout=0).attempts
    assert (attempt.code, attempt.host, attempt.started.year) == (ErrorCode.WORKER_LOST, "h", 2023)


def test_a_full_queue_takes_nothing(redis_server: Any, client: redis.Redis, fleet: Fleet) -> None:
    full = Fleet(Settings(redis_url=SecretStr(redis_server.url), max_queued=600))
    with pytest.raises(QueueFull, match=r"queue sandfleet holds 0 jobs, 601 more would pass max_queued \(600\)"):
        full.submit_many([SPEC] * 601)
    assert lasting_keys(client) == [], "of a list that has no room nothing is queued"
    with pytest.raises(QueueFull) as caught:
        full.submit_many((SPEC for _ in range(1000)), batch="b", idempotent=True)
    assert len(caught.value.job_ids) == client.llen(LIST) == 512
    assert set(full.batch("b").job_ids) == set(caught.value.job_ids)
    jobs = full.submit_many([SPEC] * 600, batch="b", idempotent=True)
    assert len(jobs) == client.llen(LIST) == 600, "what is queued already needs no room"
    assert full.submit_many([SPEC] * 600, batch="b", idempotent=True) == jobs
    with pytest.raises(QueueFull):
        full.submit(SPEC)
    full.submit(SPEC, queue="other")
    fleet.submit(SPEC)


def test_a_full_redis_takes_nothing(redis_server: Any, client: redis.Redis) -> None:
    settings = Settings(redis_url=SecretStr(redis_server.url))
    used = int(client.info("memory")["used_memory"])
    try:
        client.config_set("maxmemory", used * 2)
        Fleet(settings).submit(SPEC)
        client.config_set("maxmemory", int(used / 0.85))
        with pytest.raises(QueueFull, match=r"maxmemory.*limit is 80 %"):
            Fleet(settings).submit(SPEC)
        Fleet(settings.model_copy(update={"memory_high_percent": 0})).submit(SPEC)
        client.config_set("maxmemory", used // 2)
        with pytest.raises(QueueFull, match="out of memory"):
            Fleet(settings.model_copy(update={"memory_high_percent": 0})).submit(SPEC)
    finally:
        client.config_set("maxmemory", 0)
        forget_jobs(client)


def test_a_cancel_needs_no_memory(fleet: Fleet, client: redis.Redis) -> None:
    """Where Redis is full it is what makes room."""
    queued, running = fleet.submit_many([SPEC, SPEC], batch="full")
    client.hset(job_key(running.id), "state", "running")
    client.config_set("maxmemory", 1)
    try:
        states = fleet.batch("full").cancel()
        assert states == {CancelState.CANCELLED: 1, CancelState.REQUESTED: 1}
        assert fleet.job(queued.id).outcome(5).code is ErrorCode.CANCELLED
        assert client.exists(cancel_key(running.id))
    finally:
        client.config_set("maxmemory", 0)
        forget_jobs(client)


def test_a_producer_that_lost_the_answer_submits_once(fleet: Fleet, client: redis.Redis) -> None:
    """As redis-py does after a connection that broke: the same call again."""
    from sandfleet.submit.check import CheckedJob
    from sandfleet.submit.encode import JobEncoder

    encoder = JobEncoder("b", 10_000)
    jobs = encoder.name([encoder.encode(CheckedJob(SPEC, "")) for _ in range(3)])
    first = fleet._channel.publish(jobs, "sandfleet", 3)
    again = fleet._channel.publish(jobs, "sandfleet", 3)
    assert [submitted.job_id for submitted in first] == [submitted.job_id for submitted in again]
    assert {submitted.state.value for submitted in again} == {"same"}
    assert client.llen(LIST) == fleet.batch("b").counts.total == 3


def test_a_job_is_known_by_its_outcome_alone(fleet: Fleet, client: redis.Redis) -> None:
    """Of a stock producer's job nothing else may be left."""
    client.set(result_key("taken"), "{}", ex=60)
    with pytest.raises(JobExists):
        fleet.submit(SPEC, job_id="taken")
    assert not client.exists(LIST, job_key("taken"))
    client.delete(result_key("taken"))
    assert fleet.submit(SPEC, job_id="taken").id == "taken"


def test_an_iterator_is_queued_as_it_comes(fleet: Fleet, client: redis.Redis) -> None:
    seen: list[int] = []

    def produce() -> Iterator[SandboxSpec]:
        for _ in range(1000):
            seen.append(client.llen(LIST))
            yield SPEC

    assert len(fleet.submit_many(produce())) == 1000
    # A slow machine makes smaller chunks, so that more of them are queued before the last is made.
    assert 512 <= max(seen) < 1000, "the last chunk is made while the one before it is on its way"


def test_large_specs_go_in_smaller_chunks(fleet: Fleet) -> None:
    spec = SPEC.model_copy(update={"stdin": Payload(data="x" * 200_000)})
    chunks = [len(jobs) for jobs in fleet.submit_chunks([spec] * 50)]
    assert sum(chunks) == 50
    assert max(chunks) < 30


def test_a_dead_letter_that_is_no_job_is_shown_escaped(fleet: Fleet, client: redis.Redis) -> None:
    raw = b"\x00\x1b[31mnot a message" + b"z" * 500
    client.hset(
        "sandfleet:dead:message-1", mapping={"message": raw, "reason": "it is not JSON", "at": 1.7e12, "queue": "q"}
    )
    client.zadd("sandfleet:dead", {"message-1": 1.7e12, "gone": 1.6e12})
    (letter,) = fleet.dead.list()
    assert (letter.job_id, letter.code, letter.reason) == ("message-1", None, "it is not JSON")
    assert letter.garbage.startswith("\\x00\\x1b[31mnot a message")
    assert letter.garbage.endswith(f"z... ({len(raw)} bytes)")
    with pytest.raises(FleetError, match="holds no job"):
        fleet.dead.requeue("message-1")
    assert fleet.dead.purge() == 2
    assert not client.exists("sandfleet:dead", "sandfleet:dead:message-1")


def test_a_dead_letter_outlives_everything_else_of_its_job(fleet: Fleet, client: redis.Redis) -> None:
    spec = SPEC.model_copy(update={"idempotency_key": "k", "priority": 3, "max_attempts": 5})
    job = fleet.submit(spec, batch="b", queue="q1")
    raw: Any = client.rpop("sandfleet:q1\x06\x163")
    forget_jobs(client)
    client.hset(
        f"sandfleet:dead:{job.id}", mapping={"message": raw, "code": "WORKER_LOST", "at": 1.7e12, "queue": "q1"}
    )
    client.zadd("sandfleet:dead", {job.id: 1.7e12})

    fleet.dead.requeue(job.id)

    assert read_message(client, "sandfleet:q1\x06\x163")["headers"]["id"] == job.id
    record = fleet.record(job.id)
    assert record is not None
    assert (record.state, record.queue, record.batch, record.line) == ("queued", "q1", "b", "n: x sh -c true")
    assert hget(client, job.id, "max_attempts") == b"5"
    assert fleet.submit(spec, batch="b", queue="q1") == job
    assert fleet.batch("b").job_ids == [job.id]
    assert not client.exists("sandfleet:dead")
    job.cancel()
    client.delete("sandfleet:queues")
    assert lasting_keys(client) == []


@pytest.mark.parametrize("raw", [b"", b"nonsense", b"{}", b'{"status": "SUCCESS", "result": 7}'])
def test_a_damaged_result_ends_the_wait(fleet: Fleet, client: redis.Redis, raw: bytes) -> None:
    job = fleet.submit(SPEC, batch="b")
    client.set(result_key(job.id), raw, ex=60)
    outcome = job.outcome(timeout=5)
    assert (outcome.code, outcome.job_id, outcome.batch) == (ErrorCode.INTERNAL, job.id, "b")
    assert outcome.retryable


def test_a_result_outlives_its_record(fleet: Fleet, client: redis.Redis) -> None:
    client.set(result_key("old"), json.dumps({"status": "REVOKED", "result": None}), ex=60)
    assert fleet.job("old").outcome(timeout=5).code is ErrorCode.CANCELLED


def test_a_job_redis_lost_ends_the_wait(fleet: Fleet, client: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandfleet.collect.polling.CHECK_SECONDS", 0.1)
    job = fleet.submit(SPEC)
    client.delete(job_key(job.id))
    with pytest.raises(JobUnknown):
        job.outcome(timeout=5)


def test_nobody_listens(fleet: Fleet) -> None:
    assert not fleet.has_workers(0.1)


def test_celerys_own_environment_does_not_lead_jobs_astray(
    fleet: Fleet, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CELERY_BROKER_URL", "redis://127.0.0.1:1/0")
    monkeypatch.setenv("CELERY_RESULT_BACKEND", "redis://127.0.0.1:1/0")
    fleet.submit(SPEC)
    assert client.llen(LIST) == 1


def test_a_forked_child_uses_connections_of_its_own(fleet: Fleet, client: redis.Redis) -> None:
    """As under gunicorn --preload: the parent has submitted, then its children do."""
    fleet.submit(SPEC)
    program = (
        "import os, sys\n"
        "from sandfleet import Fleet, SandboxSpec\n"
        "spec = SandboxSpec(image='x')\n"
        "fleet = Fleet()\n"
        "fleet.submit(spec)\n"
        "children = []\n"
        "for _ in range(3):\n"
        "    pid = os.fork()\n"
        "    if pid == 0:\n"
        "        for _ in range(20):\n"
        "            fleet.submit(spec)\n"
        "        os._exit(0)\n"
        "    children.append(pid)\n"
        "for _ in range(20):\n"
        "    fleet.submit(spec)\n"
        "sys.exit(sum(os.waitpid(pid, 0)[1] for pid in children))\n"
    )
    env = os.environ | {"SANDFLEET_REDIS_URL": fleet.settings.redis_dsn}
    subprocess.run([sys.executable, "-c", program], env=env, check=True, timeout=60)
    assert client.llen(LIST) == 1 + 1 + 4 * 20


def test_redis_down_is_told_with_its_address_and_what_to_do(tmp_path: Path) -> None:
    fleet = Fleet(Settings(redis_url=SecretStr(f"unix://:s3cret@{tmp_path}/none.sock")))
    uses: list[Callable[[], object]] = [
        lambda: fleet.submit(SPEC),
        fleet.ping,
        lambda: fleet.job("x"),
        lambda: fleet.submit_many([SPEC]),
    ]

    def tell(use: Callable[[], object]) -> tuple[FleetUnavailable, float]:
        started = time.monotonic()
        with pytest.raises(FleetUnavailable) as caught:
            use()
        return caught.value, time.monotonic() - started

    with ThreadPoolExecutor() as pool:  # each is tried for more than a second
        told = list(pool.map(tell, uses))
    for error, seconds in told:
        assert f"{tmp_path}/none.sock" in str(error)
        assert "SANDFLEET_REDIS_URL" in str(error)
        assert "s3cret" not in str(error)
        assert isinstance(error, ConnectionError)
        assert seconds < 10


def test_a_url_that_cannot_be_read_is_told_without_its_password() -> None:
    with pytest.raises(SettingsInvalid) as caught:
        Fleet(Settings(redis_url=SecretStr("redis://:s3cret@host:port/0"))).ping()
    assert "s3cret" not in f"{caught.value} {caught.value.__cause__}"


def run_cli(fleet: Fleet, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"SANDFLEET_REDIS_URL": fleet.settings.redis_dsn}
    command = [sys.executable, "-m", "sandfleet.cli", *argv]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False, **options)


def test_the_command_with_redis_down(tmp_path: Path) -> None:
    fleet = Fleet(Settings(redis_url=SecretStr(f"unix://:s3cret@{tmp_path}/none.sock")))
    ended = run_cli(fleet, "run", "--", "true")
    assert (ended.returncode, ended.stdout) == (125, "")
    assert ended.stderr.startswith("sandfleet: cannot reach Redis at ")
    assert ended.stderr.count("\n") == 1
    assert "s3cret" not in ended.stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_run_cancels_the_job(fleet: Fleet, client: redis.Redis, number: signal.Signals, code: int) -> None:
    env = os.environ | {"SANDFLEET_REDIS_URL": fleet.settings.redis_dsn}
    command = [sys.executable, "-m", "sandfleet.cli", "run", "--", "true"]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: client.llen(LIST), 20, "the job is queued")
    job_id = read_message(client)["headers"]["id"]
    time.sleep(0.2)  # it has begun to wait
    process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == code
    assert f"CANCELLED: job {job_id}: cancelled before it started" in stderr
    assert fleet.job(job_id).outcome(timeout=0).code is ErrorCode.CANCELLED


def test_run_says_it_when_no_worker_listens(fleet: Fleet, client: redis.Redis) -> None:
    env = os.environ | {"SANDFLEET_REDIS_URL": fleet.settings.redis_dsn}
    command = [sys.executable, "-m", "sandfleet.cli", "run", "--", "true"]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "no worker is listening on unix:" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert client.llen(LIST) == 0, "Ctrl-C has ended it"


def test_a_reader_that_goes_away_is_no_traceback(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "jobs").write_text('{"image": "x"}\n' * 400)
    env = os.environ | {"SANDFLEET_REDIS_URL": fleet.settings.redis_dsn}
    command = [sys.executable, "-m", "sandfleet.cli", "submit", str(tmp_path / "jobs")]
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 141


def test_a_wait_that_can_be_cancelled_costs_redis_no_more_than_a_plain_one(fleet: Fleet, client: redis.Redis) -> None:
    def count_commands(wait: Callable[[], object]) -> int:
        before = int(client.info("stats")["total_commands_processed"])
        with pytest.raises((ResultTimeout, SandboxTimeout)):
            wait()
        return int(client.info("stats")["total_commands_processed"]) - before

    plain = count_commands(lambda: fleet.submit(SPEC).outcome(timeout=1.5))
    runner = FleetRunner(fleet)
    held = count_commands(lambda: runner.run(SPEC, deadline=time.monotonic() + 1.5, cancel=threading.Event()))
    # What is left above is the cancel of the job at the deadline.
    assert held < plain + 60, (held, plain)
    assert held < 200
