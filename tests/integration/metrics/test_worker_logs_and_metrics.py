"""A real worker with JSON logs and metrics: what they say of real jobs, and what they never say."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from celery_events import Events
from sandfleet_config.failure_kind import fingerprint_failure
from sandfleet_config.metric_names import MAX_SERIES
from scrape import Scraped, free_port
from waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from stage import Stage, Stock, Worker

SECRET = "PLANTED-SECRET"
TOKEN = "a-token-of-24-characters"
SUITE = "s7"
READY = '"event.action":"worker_ready"'
JOBS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "OK": (["sh", "-c", "echo $SECRET; cat"], {}),
    "EXIT_NONZERO": (["sh", "-c", f"echo $SECRET >&2; exit 3 # --token={SECRET}"], {}),
    "TIMEOUT": (["sh", "-c", "echo $SECRET; sleep 60"], {"timeout": 0.5}),
    "COMMAND_NOT_FOUND": (["/no/such/\u202eprogram\n{}", f"{SECRET}-argument"], {}),
    "SPEC_INVALID": (["true"], {"working_dir": f"{SECRET}-relative"}),
}


def wait_json_ready(worker: Worker) -> None:
    wait_until(lambda: READY in worker.log or worker.process.poll() is not None, 60, "the worker is ready")
    assert worker.process.poll() is None, worker.log


@pytest.fixture
def worker_port(stage: Stage, tmp_path: Path) -> tuple[Worker, int]:
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    port = free_port()
    worker = stage.start(
        concurrency=2,
        SANDFLEET_LOG_FORMAT="json",
        SANDFLEET_LOG_LEVEL="DEBUG",
        SANDFLEET_METRICS__PORT=str(port),
        SANDFLEET_METRICS__TOKEN_FILE=str(token),
    )
    wait_json_ready(worker)
    return worker, port


def read_lines(worker: Worker) -> list[dict[str, Any]]:
    """Return the log; each line is one JSON object in printable ASCII."""
    lines = worker.log.splitlines()
    assert all(line.isascii() and line.isprintable() for line in lines)
    return [json.loads(line) for line in lines]


def test_logs_and_metrics_of_real_jobs(worker_port: tuple[Worker, int], stage: Stage, stock: Stock) -> None:
    worker, port = worker_port
    secrets = {"env": [f"SECRET={SECRET}-env"], "stdin": f"{SECRET}-stdin", "labels": {"suite": SUITE}}
    with Events(stock.app) as events:
        jobs = {
            code: stock.submit(*command, fields=secrets | fields, batch="nightly")
            for code, (command, fields) in JOBS.items()
        }
        outcomes = {code: stock.outcome(job_id) for code, job_id in jobs.items()}
    assert {code: outcome["code"] for code, outcome in outcomes.items()} == {code: code for code in JOBS}
    text = json.dumps(events.seen, default=repr)
    assert SECRET not in text.replace(f"{SECRET}-argument", ""), "Flower is told no hidden argument"

    def all_counted() -> bool:
        return Scraped.read(port, TOKEN).value("sandfleet_jobs_ended_total") == len(JOBS)

    wait_until(all_counted, 10, "every end is counted")
    check_metrics(Scraped.read(port, TOKEN), outcomes)
    assert worker.stop(signal.SIGTERM) == 0
    lines = read_lines(worker)
    assert SECRET not in worker.log
    ends = {line["sandfleet.job_id"]: line for line in lines if line.get("event.action") == "job_ended"}
    assert ends.keys() == set(jobs.values())
    assert len([line for line in lines if line.get("event.action") == "job_ended"]) == len(JOBS), "one line a job"
    for code, job_id in jobs.items():
        check_end(ends[job_id], outcomes[code])


def check_end(line: dict[str, Any], outcome: dict[str, Any]) -> None:
    assert line["log.level"] == "info"
    assert line["service.name"] == "sandfleet-worker"
    for name in ("code", "category", "exit_code"):
        assert line.get(f"sandfleet.{name}") == outcome[name]
    assert line.get("sandfleet.fingerprint", "") == fingerprint_failure(outcome["code"], outcome["message"])
    for step in ("queued", "create", "run", "cleanup"):
        told = line.get(f"sandfleet.{step}_seconds")
        assert told == (None if outcome["timing"][step] is None else pytest.approx(outcome["timing"][step], abs=1e-5))
    if outcome["code"] != "SPEC_INVALID":  # its labels were never read
        assert line["sandfleet.labels"] == "suite=s7"
        assert line["sandfleet.batch"] == "nightly"
        assert line["sandfleet.queue"] == "sandfleet"


def check_metrics(found: Scraped, outcomes: dict[str, dict[str, Any]]) -> None:
    assert found.series < MAX_SERIES
    assert SECRET not in found.text
    assert not any(job["job_id"] in found.text or "nightly" in found.text for job in outcomes.values())
    for code, outcome in outcomes.items():
        labels = {"queue": "sandfleet", "code": code, "category": outcome["category"]}
        assert found.value("sandfleet_jobs_ended_total", **labels) == 1
    assert found.value("sandfleet_jobs_started_total") == 4
    assert found.value("sandfleet_warm_takes_total") == 3
    assert found.value("sandfleet_job_run_seconds_count") == 3
    assert found.value("sandfleet_job_run_seconds_sum") > 0.5
    assert found.value("sandfleet_job_cpu_seconds_total") > 0
    assert found.value("sandfleet_redis_call_seconds_count", script="claim") >= len(JOBS)
    assert 0 < found.value("sandfleet_lease_margin_seconds") <= 6
    assert found.value("sandfleet_worker_state", state="up") == 1
    assert found.value("sandfleet_host_slots") == 2
    assert found.value("sandfleet_host_slots_busy") <= 1, "the claimer holds one while it asks"
    assert found.value("sandfleet_warm_sandboxes", image="busybox") >= 0
    assert found.value("sandfleet_build_info", platform="systrap") == 1


def test_a_start_that_fails_is_one_object_too(stage: Stage) -> None:
    worker = stage.start(SANDFLEET_LOG_FORMAT="json", SANDFLEET_RUNSC__PATH="/no/such/runsc")
    assert worker.process.wait(60) == 1
    last = read_lines(worker)[-1]
    assert (last["log.level"], last["event.action"]) == ("critical", "start_failed")
    assert "/no/such/runsc" in last["message"]


def test_a_port_that_is_taken_ends_the_start_with_a_fix(stage: Stage) -> None:
    port = str(free_port())
    stage.start(SANDFLEET_METRICS__PORT=port).wait_ready()
    second = stage.start(SANDFLEET_METRICS__PORT=port)
    assert second.process.wait(60) == 1
    assert f"metrics at 127.0.0.1:{port}: Address already in use" in second.log
    assert "each worker of a host needs its own" in second.log
