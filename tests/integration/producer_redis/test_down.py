"""A fleet without workers or without Redis, and the command there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from bare_redis import LIST, SPEC, read_message
from placing_hosts import HostOfTest
from pydantic import SecretStr
from sandfleet import (
    ErrorCode,
    Fleet,
    FleetRunner,
    FleetUnavailable,
    ResultTimeout,
    SandboxTimeout,
    Settings,
    SettingsInvalid,
)
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import redis
    from sandfleet import Job


def test_a_fleet_without_workers_has_none(fleet: Fleet) -> None:
    assert not fleet.has_workers(0.1)


def test_variables_of_celery_do_not_change_the_fleets_redis(
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


def test_an_error_says_where_redis_is_down_and_what_to_do(tmp_path: Path) -> None:
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
        errors = list(pool.map(tell, uses))
    for error, seconds in errors:
        assert f"{tmp_path}/none.sock" in str(error)
        assert "SANDFLEET_REDIS_URL" in str(error)
        assert "s3cret" not in str(error)
        assert isinstance(error, ConnectionError)
        assert seconds < 10


def test_an_error_of_the_url_does_not_contain_its_password() -> None:
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


@contextmanager
def start_run(fleet: Fleet, client: redis.Redis, *options: str) -> Iterator[tuple[subprocess.Popen[str], Job]]:
    """Start ``sandfleet run``, which says after 4 s why its job waits."""
    env = os.environ | {"SANDFLEET_REDIS_URL": fleet.settings.redis_dsn}
    sooner = "import sys; from sandfleet.cli import main, run; run.WAIT_NOTE_SECONDS = 4; sys.exit(main())"
    command = [sys.executable, "-c", sooner, "run", *options, "--", "true"]
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        wait_until(lambda: client.llen(LIST), 20, "the job is queued")
        message: Any = client.lindex(LIST, 0)
        yield process, fleet.job(json.loads(message)["headers"]["id"])


def stop(process: subprocess.Popen[str]) -> str:
    """End it by Ctrl-C; return what it has printed."""
    process.send_signal(signal.SIGINT)
    return process.communicate(timeout=20)[1]


def test_run_says_that_no_worker_is_there(fleet: Fleet, client: redis.Redis) -> None:
    with start_run(fleet, client) as (process, job):
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line.startswith(f"sandfleet: job {job.id} waits: no worker is listening on unix:")
        stop(process)
    assert client.llen(LIST) == 0, "Ctrl-C has ended it"


def test_run_says_once_that_no_host_fits_its_job(fleet: Fleet, client: redis.Redis) -> None:
    host = HostOfTest(client, "one")
    with start_run(fleet, client, "--image", "x", "--require", "disk=ssd") as (process, job):
        assert host.claim() is None
        assert process.stderr is not None
        assert process.stderr.readline() == f"sandfleet: job {job.id} waits: no live host has disk=ssd\n"
        time.sleep(4.5)  # a second note would come now
        assert stop(process).count("waits") == 0


def test_run_says_nothing_of_a_job_that_a_worker_has(fleet: Fleet, client: redis.Redis) -> None:
    host = HostOfTest(client, "one")
    with start_run(fleet, client, "--image", "x") as (process, job):
        host.takes(job)
        time.sleep(4.5)  # the note would come now
        assert stop(process) == f"sandfleet: CANCELLED: job {job.id}: cancel requested\n"


def test_a_reader_that_goes_away_is_no_traceback(fleet: Fleet, tmp_path: Path) -> None:
    # More ids than a pipe holds (64 KiB): the last ones cannot be written before the reader goes.
    (tmp_path / "jobs").write_text('{"image": "x"}\n' * 3000)
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
