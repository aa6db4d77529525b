"""How workers start, stop, die and come back."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet_worker.delivery.worker_exit import EXIT_STALLED
from waiting import wait_until

if TYPE_CHECKING:
    from stage import Stage, Stock

NO_KVM = "did not boot|platform kvm does not work"
"""A virtual machine may lack kvm, or have one in which sandboxes hang or end at once."""


def test_sigterm_lets_running_jobs_end_and_claims_nothing(stage: Stage, stock: Stock) -> None:
    worker = stage.start(concurrency=1)
    worker.wait_ready()
    first, second = stock.submit("sleep", "2"), stock.submit("true")
    wait_until(lambda: stage.has_started(first), 20, "the first job runs")

    assert worker.stop(signal.SIGTERM) == 0

    assert stock.outcome(first, 1)["code"] == "OK"
    assert stock.stored(second) is None
    stage.start(concurrency=1).wait_ready()
    assert stock.outcome(second)["code"] == "OK"


def test_sigquit_gives_running_jobs_back_and_charges_them_nothing(stage: Stage, stock: Stock) -> None:
    worker = stage.start(concurrency=2)
    worker.wait_ready()
    job_id = stock.submit("sh", "-c", "sleep 3; exit 9")
    wait_until(lambda: stage.has_started(job_id), 20, "the job runs")
    time.sleep(0.3)
    asked = time.monotonic()

    worker.stop(signal.SIGQUIT)

    assert time.monotonic() - asked < 2.5, "the sandbox was killed, not waited for"
    assert stage.find_leftovers() == []
    assert stock.stored(job_id) is None
    stage.start(concurrency=2).wait_ready()
    outcome = stock.outcome(job_id)
    assert outcome["exit_code"] == 9
    told = [(attempt["code"], attempt["charged"]) for attempt in outcome["attempts"]]
    assert told == [("WORKER_LOST", False), ("EXIT_NONZERO", True)]


@pytest.mark.timeout(400)
def test_after_mixed_jobs_and_a_kill_nothing_is_left(stage: Stage, stock: Stock) -> None:
    worker = stage.start(concurrency=4)
    worker.wait_ready()
    scripts = [
        "true",
        "exit 3",
        "kill -9 $$",
        "sleep 0.3",
        "yes | head -c 1000000",
        "cat /dev/zero | head -c 9999999 >/tmp/x",
    ]
    done = [stock.submit("sh", "-c", scripts[number % len(scripts)]) for number in range(150)]
    for job_id in done:
        stock.outcome(job_id, 200)
    running = [stock.submit("sleep", "100", fields={"timeout": 100}) for _ in range(4)]
    wait_until(lambda: all(stage.has_started(job_id) for job_id in running), 20, "four jobs run")
    time.sleep(0.5)

    worker.process.kill()
    worker.process.wait()
    stage.start(concurrency=1).wait_ready()

    wait_until(lambda: len(stage.find_owners()) <= 1, 10, f"only what is the new worker's: {stage.find_leftovers()}")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"SANDFLEET_RUNSC__PATH": "/no/runsc"}, "runsc was not found"),
        ({"SANDFLEET_RUNSC__PLATFORM": "kvm", "SANDFLEET_RUNSC__BOOT_DEADLINE_SECONDS": "2"}, NO_KVM),
        ({"SANDFLEET_REDIS_URL": "redis://127.0.0.1:1/0"}, "start Redis"),
        ({"SANDFLEET_REDIS_URL": "http://x"}, "SANDFLEET_REDIS_URL"),
        ({"SANDFLEET_CONCURENCY": "2"}, "did you mean SANDFLEET_CONCURRENCY"),
    ],
    ids=lambda value: str(value)[:50],
)
def test_a_worker_that_could_run_no_job_refuses_to_start(stage: Stage, settings: dict[str, str], said: str) -> None:
    worker = stage.start(2, **settings)

    assert worker.process.wait(30) == 1
    assert re.search(said, worker.log)
    assert "Traceback" not in worker.log


def test_a_redis_that_evicts_is_refused(stage: Stage) -> None:
    stage.redis.config_set("maxmemory-policy", "allkeys-lru")
    try:
        worker = stage.start()
        assert worker.process.wait(30) == 1
    finally:
        stage.redis.config_set("maxmemory-policy", "noeviction")
    assert "noeviction" in worker.log


def test_a_worker_whose_hard_limit_of_descriptors_is_too_low_refuses_to_start_with_the_number(stage: Stage) -> None:
    command = [
        "prlimit",
        "--nofile=512:512",
        sys.executable,
        "-m",
        "sandfleet_worker.cli",
        "start",
        "--concurrency",
        "64",
    ]
    env = stage.env | {"SANDFLEET_POLICY__MEMORY_BYTES": "64MiB"}

    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 1
    said = re.search(r"open files: 64 sandboxes at once need a limit of (\d+), and the hard limit is 512", done.stderr)
    assert said, done.stderr
    assert int(said[1]) > 512
    assert "Traceback" not in done.stderr


def test_settings_of_another_celery_application_are_ignored(stage: Stage, stock: Stock) -> None:
    foreign = "redis://127.0.0.1:1/0"
    stage.start(CELERY_BROKER_URL=foreign, CELERY_RESULT_BACKEND=foreign).wait_ready()

    assert stock.outcome(stock.submit("true"))["code"] == "OK"


def test_celerys_own_tools_work_with_our_app(stage: Stage) -> None:
    worker = stage.start()
    worker.wait_ready()
    command = [sys.executable, "-m", "celery", "-A", "sandfleet_worker.app", "inspect", "ping"]

    done = subprocess.run(command, env=stage.env, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 0, done.stderr
    assert "pong" in done.stdout


def test_a_reply_to_somebody_who_has_died_expires(stage: Stage, stock: Stock) -> None:
    stage.start().wait_ready()
    control: Any = stock.app.control
    box = control.mailbox
    with stock.app.connection_for_write() as connection:
        channel = connection.default_channel
        box(connection)._publish("ping", {}, reply_ticket="asked", channel=channel)  # and it never reads the reply
        pattern = "sandfleet:[0-9a-f]*.reply.celery.pidbox"
        wait_until(lambda: stage.redis.keys(pattern), 20, "the worker has replied")
        (key,) = stage.redis.keys(pattern)
        wait_until(lambda: stage.redis.ttl(key) > 0, 5, "it expires")
        assert stage.redis.ttl(key) <= 300


def test_plain_celery_worker_is_refused(stage: Stage) -> None:
    command = [sys.executable, "-m", "celery", "-A", "sandfleet_worker.app", "worker"]

    done = subprocess.run(command, env=stage.env, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode != 0
    assert "sandfleet-worker start" in done.stdout + done.stderr


def test_doctor_reports_what_the_host_can_do(stage: Stage) -> None:
    settings = {"SANDFLEET_RUNSC__BOOT_DEADLINE_SECONDS": "3", "SANDFLEET_CONCURRENCY": "512"}
    command = [sys.executable, "-m", "sandfleet_worker.cli", "doctor", "--json"]

    done = subprocess.run(command, env=stage.env | settings, capture_output=True, text=True, timeout=60, check=False)

    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert findings["platform systrap"]["state"] == "ok"
    assert findings["redis"]["state"] == "ok"
    assert "busybox" in findings["images"]["detail"].split(", ")
    # An older runsc cannot mount datasets, which the doctor adds.
    assert findings["datasets"]["detail"].split(";")[0] == "none on this host"
    assert "SANDFLEET_IMAGES__PULL_FROM is empty" in findings["registries"]["detail"]
    assert "SANDFLEET_IMAGES__SHARED is empty" in findings["shared images"]["detail"]
    assert findings["slots per core"]["state"] == "tip"
    assert findings["open files"]["state"] == "ok"
    assert [name for name, finding in findings.items() if finding["state"] != "ok" and not finding["fix"]] == []
    assert done.returncode == 0


def test_doctor_fails_if_no_job_could_run(stage: Stage) -> None:
    command = [sys.executable, "-m", "sandfleet_worker.cli", "doctor", "--json"]
    env = stage.env | {"SANDFLEET_RUNSC__PATH": "/no/runsc"}

    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    assert done.returncode == 1
    assert {"runsc", "platform systrap"} <= {
        item["name"] for item in json.loads(done.stdout) if item["state"] == "failed"
    }


def test_a_thread_of_the_warm_pool_that_fails_for_good_ends_the_worker(stage: Stage) -> None:
    program = (str(Path(__file__).with_name("failing_pool.py")),)
    worker = stage.start(program=program, SANDFLEET_WARM__IMAGES="busybox", SANDFLEET_DRAIN_SECONDS="1")

    assert worker.process.wait(60) == EXIT_STALLED, worker.log

    assert "the thread warm has failed with SystemExit: the worker ends" in worker.log
    assert "action=worker_stalled" not in worker.log, "it ended in order"
    assert stage.find_leftovers() == []
