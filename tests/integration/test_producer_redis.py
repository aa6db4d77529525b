"""What the producer leaves in Redis, what it makes of what it finds there, and what it says when Redis is away."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sandfleet import ErrorCode, Fleet, FleetUnavailable, JobUnknown, SandboxSpec, Settings, SettingsInvalid
from sandfleet_config.queues import cancel_key, job_key, result_key
from sandfleet_config.wire import decode_job
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
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
    client.delete("sandfleet:sandfleet")


def read_message(client: redis.Redis) -> dict[str, Any]:
    raw: Any = client.rpop("sandfleet:sandfleet")
    found: dict[str, Any] = json.loads(raw)
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
    assert 8 * 86400 < client.ttl(job_key(job.id)) <= 9 * 86400
    record: Any = client.get(job_key(job.id))
    assert json.loads(record)["batch"] == "b"


def test_no_env_and_no_stdin_is_anywhere_but_in_the_spec_itself(fleet: Fleet, client: redis.Redis) -> None:
    job = fleet.submit(SPEC)
    message = read_message(client)
    message["body"] = ""
    record: Any = client.get(job_key(job.id))
    seen = f"{message} {record.decode()} {job!r} {fleet!r} {fleet.record(job.id)!r}"
    assert "s3cret" not in seen


def test_a_cancel_is_durable_and_recorded_by_nobody_here(fleet: Fleet, client: redis.Redis) -> None:
    job = fleet.submit(SPEC)
    assert str(job.cancel()) == str(fleet.job(job.id).cancel()) == "cancel requested"
    assert 7 * 86400 < client.ttl(cancel_key(job.id)) <= 8 * 86400
    assert not client.exists(result_key(job.id))
    assert not job.is_done


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
    monkeypatch.setattr("sandfleet.collect.PRESENCE_SECONDS", 0.1)
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
    assert client.llen("sandfleet:sandfleet") == 1


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
    assert client.llen("sandfleet:sandfleet") == 1 + 1 + 4 * 20


def test_redis_down_is_told_with_its_address_and_what_to_do(tmp_path: Path) -> None:
    fleet = Fleet(Settings(redis_url=SecretStr(f"unix://:s3cret@{tmp_path}/none.sock")))
    started = time.monotonic()
    for use in (lambda: fleet.submit(SPEC), fleet.ping, lambda: fleet.job("x"), lambda: fleet.submit_many([SPEC])):
        with pytest.raises(FleetUnavailable) as caught:
            use()
        assert f"{tmp_path}/none.sock" in str(caught.value)
        assert "SANDFLEET_REDIS_URL" in str(caught.value)
        assert "s3cret" not in str(caught.value)
        assert isinstance(caught.value, ConnectionError)
    assert time.monotonic() - started < 20


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
    wait_until(lambda: client.llen("sandfleet:sandfleet"), 20, "the job is queued")
    job_id = read_message(client)["headers"]["id"]
    time.sleep(0.2)  # it has begun to wait
    process.send_signal(number)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == code
    assert f"CANCELLED: job {job_id}: cancel requested" in stderr
    assert client.exists(cancel_key(job_id))


def test_run_says_it_when_no_worker_listens(fleet: Fleet, client: redis.Redis) -> None:
    env = os.environ | {"SANDFLEET_REDIS_URL": fleet.settings.redis_dsn}
    command = [sys.executable, "-m", "sandfleet.cli", "run", "--", "true"]
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "no worker is listening on unix:" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert client.llen("sandfleet:sandfleet") == 1


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
