"""A job's output, environment, stdin and secrets are only in its own message and outcome."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from celery_events import Events
from sandfleet_config.live import live_key
from sandfleet_config.queues import KEY_PREFIX, result_key, spec_key

if TYPE_CHECKING:
    from stage import Stage, Stock

MARKER = "PLANTED-SECRET"
FIELDS = {
    "env": [f"SECRET={MARKER}-env"],
    "stdin": f"{MARKER}-stdin",
    "labels": {"name": "a-job"},
    "timeout": 5,
}
FILES = {
    "files": [{"path": "in", "content": f"{MARKER}-file"}],
    "artifacts": ["out"],
    "output": {"live": True, "store": True, "max_bytes": 30},
}
"""A file, an artifact, live output, and a stream that is stored whole: all in Redis, which is the store here."""
JOBS: dict[str, tuple[list[str], dict[str, Any]]] = {
    "OK": (["sh", "-c", "echo $SECRET; cat; echo $SECRET >&2; cp in out; cat in"], FILES),
    "EXIT_NONZERO": (["sh", "-c", "echo $SECRET; cat >&2; exit 3"], {}),
    "SIGNALED": (["sh", "-c", "echo $SECRET; cat; kill -9 $$"], {}),
    "TIMEOUT": (["sh", "-c", "echo $SECRET; cat; sleep 60"], {"timeout": 0.5}),
    "OUTPUT_LIMIT": (["sh", "-c", "yes $SECRET"], {"output": {"max_bytes": 20, "on_limit": "kill"}}),
    "CANCELLED": (["sh", "-c", "echo $SECRET; sleep 60"], {"timeout": 60}),
    "SPEC_INVALID": (["true"], {"working_dir": f"{MARKER}-relative"}),
    "SECURITY_VIOLATION": (["true"], {"security": {"privileged": True}}),
}


@pytest.fixture(scope="module")
def debug_stage(module_stage: Stage) -> Stage:
    """The module's stage with a worker that logs all it can."""
    module_stage.workers[0].stop()
    module_stage.start(concurrency=4, SANDFLEET_LOG_LEVEL="DEBUG").wait_ready()
    return module_stage


def test_a_planted_marker_is_found_nowhere_else(debug_stage: Stage, stock: Stock) -> None:
    with Events(stock.app) as events:
        jobs = {code: stock.submit(*command, fields=FIELDS | extra) for code, (command, extra) in JOBS.items()}
        stock.app.control.inspect(timeout=1).active()
        active = stock.app.control.inspect(timeout=1).active()
        asked = stock.app.control.inspect(timeout=1).query_task(*jobs.values())
        stock.app.control.revoke(jobs["CANCELLED"])
        outcomes = {code: stock.outcome(job_id) for code, job_id in jobs.items()}
    records = {job_id: json.dumps(stock.wait(job_id)) for job_id in jobs.values()}

    assert {code: outcome["code"] for code, outcome in outcomes.items()} == {code: code for code in JOBS}
    assert MARKER in records[jobs["OK"]], "the job's own outcome has its output"
    assert MARKER in records[jobs["TIMEOUT"]]
    assert active
    assert MARKER not in json.dumps([active, asked])
    assert {"task-received", "task-started", "task-succeeded", "task-failed"} <= {
        event["type"] for event in events.seen
    }
    assert MARKER not in json.dumps(events.seen, default=repr)
    assert all(MARKER not in worker.log for worker in debug_stage.workers)
    own = {result_key(job_id) for job_id, record in records.items() if MARKER in record}
    # What did not end OK can be run again: its message is kept whole, and never shown.
    kept = {spec_key(job_id) for code, job_id in jobs.items() if code != "OK"}
    found = find_in_redis(stock, MARKER.encode()) - kept
    stored = {key for key in found if key.startswith(f"{KEY_PREFIX}store:object:")}
    assert len(stored) == 2, "the artifact, and the whole of stdout"
    assert live_key(jobs["OK"]) in found
    assert found - stored - {live_key(jobs["OK"])} == own


def find_in_redis(stock: Stock, needle: bytes) -> set[str]:
    """Return the keys with `needle` in their name or value."""
    client: Any = stock.redis
    readers = {
        b"string": lambda key: [client.get(key)],
        b"list": lambda key: client.lrange(key, 0, -1),
        b"set": client.smembers,
        b"hash": lambda key: [word for pair in client.hgetall(key).items() for word in pair],
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"stream": lambda key: [word for _, pairs in client.xrange(key) for pair in pairs.items() for word in pair],
        b"none": lambda _: [],  # it went meanwhile
    }
    found = set()
    for key in client.scan_iter("*"):
        values = readers[client.type(key)](key)
        if any(value is not None and needle in value for value in (key, *values)):
            found.add(key.decode())
    return found


def test_arguments_are_in_no_line_of_a_log_and_a_job_has_two_lines(module_stage: Stage, stock: Stock) -> None:
    module_stage.workers[-1].stop()
    worker = module_stage.start(concurrency=2)
    worker.wait_ready()
    job_id = stock.submit("sh", "-c", f"true {MARKER}-argument", f"--token={MARKER}-argument")
    missing = stock.submit("/no/such/program", f"{MARKER}-argument")
    assert stock.outcome(job_id)["code"] == "OK"
    assert stock.outcome(missing)["code"] == "COMMAND_NOT_FOUND"
    # Somebody has forgotten `sh -c`.
    line = stock.outcome(stock.submit(f"TOKEN={MARKER}-word ./run --all"))
    assert line["code"] == "COMMAND_NOT_FOUND"
    assert line["message"] == "'TOKEN=*** ./run --all': no such program in the image"
    worker.stop()

    assert MARKER not in worker.log
    lines = [line for line in worker.log.splitlines() if job_id in line]
    assert len(lines) == 2, lines
    assert "busybox sh (3 arguments)" in lines[0]
