"""Logs as JSON: ECS names, an allow-list, no secret, one object a line whatever is logged."""

from __future__ import annotations

import json
import logging
import math
import sys
from typing import Any

import pytest
from sandfleet_config.codes import ErrorCode
from sandfleet_config.failure_kind import fingerprint_failure
from sandfleet_config.logs import JsonFormatter, LineFormatter, describe_labels, new_formatter
from sandfleet_config.outcome import Outcome, Runtime, StreamOutput, Timing, Usage

SECRET = "hunter2-Zx"
HOSTILE = 'a\nb\r{"x":1}\x1b[31m\u202e\u2028\x00\udc80"'
FORMATTER = JsonFormatter("sandfleet-worker", "1.2", "host-7")


def new_record(text: str = "job %s starts", *args: object, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("sandfleet_worker.x").makeRecord(
        "sandfleet_worker.x", logging.INFO, "file.py", 1, text, args or ("id",), None, extra=extra or None
    )


def parse(record: logging.LogRecord) -> dict[str, Any]:
    line = FORMATTER.format(record)
    assert line.isascii()
    assert line.isprintable()
    found = json.loads(line)
    assert isinstance(found, dict)
    return found


def new_outcome(**fields: Any) -> Outcome:
    return Outcome.of(
        ErrorCode.TIMEOUT,
        "j",
        "ended after 10 s",
        batch="nightly",
        labels={"suite": "s7"},
        stdout=StreamOutput.of(SECRET.encode()),
        duration=10.0,
        timing=Timing(queued=1.25, run=10.0, create=0.5),
        usage=Usage(cpu_seconds=2.5, memory_peak_bytes=1 << 20),
        runtime=Runtime(warm=True),
        image_digest="sha256:ab",
        **fields,
    )


def test_a_line_has_ecs_names() -> None:
    found = parse(new_record(action="job_started", job_id="id", queue="rl", batch=None))
    stamp = found.pop("@timestamp")
    assert stamp.endswith("Z")
    assert len(stamp) == len("2026-11-29T04:05:06.789Z")
    assert found.pop("process.pid") > 0
    assert found == {
        "ecs.version": "8.11.0",
        "log.level": "info",
        "log.logger": "sandfleet_worker.x",
        "message": "job id starts",
        "service.name": "sandfleet-worker",
        "service.version": "1.2",
        "host.name": "host-7",
        "event.action": "job_started",
        "sandfleet.job_id": "id",
        "sandfleet.queue": "rl",
    }


def test_an_end_says_code_exit_fingerprint_and_times_and_no_output() -> None:
    found = parse(new_record(action="job_ended", outcome=new_outcome(signal=9)))
    assert SECRET not in json.dumps(found)
    assert {key: value for key, value in found.items() if key.startswith("sandfleet.")} == {
        "sandfleet.code": "TIMEOUT",
        "sandfleet.category": "limit",
        "sandfleet.signal": 9,
        "sandfleet.fingerprint": fingerprint_failure("TIMEOUT", "ended after 7 s"),
        "sandfleet.batch": "nightly",
        "sandfleet.labels": "suite=s7",
        "sandfleet.run": 1,
        "sandfleet.attempts": 0,
        "sandfleet.image_digest": "sha256:ab",
        "sandfleet.warm": True,
        "sandfleet.start": "warm",
        "sandfleet.cpu_seconds": 2.5,
        "sandfleet.memory_peak_bytes": 1 << 20,
        "sandfleet.queued_seconds": 1.25,
        "sandfleet.create_seconds": 0.5,
        "sandfleet.run_seconds": 10.0,
    }


def test_what_is_not_on_the_list_is_left_out() -> None:
    planted = {"env": SECRET, "stdin": SECRET, "stdout": SECRET, "spec": SECRET, "x": SECRET}
    assert SECRET not in FORMATTER.format(new_record(**planted))
    assert SECRET not in FORMATTER.format(new_record(outcome={"stdout": SECRET}))


@pytest.mark.parametrize("name", ["action", "job_id", "queue", "batch", "reason", "user", "image"])
def test_strangers_text_is_escaped(name: str) -> None:
    found = parse(new_record("said %s", HOSTILE, **{name: HOSTILE}))
    for text in (value for value in found.values() if isinstance(value, str)):
        assert all(char.isprintable() or char in "\n\t" for char in text)
    assert r"\u202e" in found["message"]
    parse(new_record(outcome=Outcome.of(ErrorCode.INTERNAL, "j", HOSTILE, labels={HOSTILE: HOSTILE})))


def test_numbers_that_json_lacks_are_texts() -> None:
    assert parse(new_record(count=math.nan))["sandfleet.count"] == "nan"
    assert parse(new_record(count=-math.inf))["sandfleet.count"] == "-inf"


def test_a_fault_has_type_message_and_trace_without_secrets() -> None:
    try:
        raise ValueError(f"bad --token={SECRET} {HOSTILE}")  # noqa: TRY301
    except ValueError:
        record = new_record()
        record.exc_info = sys.exc_info()
    found = parse(record)
    assert found["error.type"] == "ValueError"
    assert found["error.message"].startswith("bad --token=***")
    assert "test_json_logs.py" in found["error.stack_trace"]
    assert SECRET not in json.dumps(found)


def test_no_half_of_a_secret_is_left_where_a_trace_is_cut() -> None:
    record = new_record()
    try:
        raise ValueError(f"redis://worker:{'n' * 20_000}{SECRET}@10.0.0.5/0")  # noqa: TRY301
    except ValueError:
        record.exc_info = sys.exc_info()
    found = parse(record)
    assert SECRET not in json.dumps(found)
    assert found["error.stack_trace"].endswith("redis://***@10.0.0.5/0")


def test_all_is_bounded() -> None:
    labels = {f"k{n}": "v" * 60 for n in range(64)}
    text = describe_labels(labels)
    assert text is not None
    assert len(text) < 1100
    outcome = Outcome.of(ErrorCode.INTERNAL, "j", "m" * 100_000, labels=labels)
    assert len(FORMATTER.format(new_record("%s", "m" * 100_000, outcome=outcome, reason="r" * 100_000))) < 8000


def test_the_setting_chooses() -> None:
    assert isinstance(new_formatter("line", "s", "v"), LineFormatter)
    assert isinstance(new_formatter("json", "s", "v"), JsonFormatter)
