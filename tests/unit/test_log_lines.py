"""The worker's log lines: their time, and the keys at the end of the first line."""

from __future__ import annotations

import logging
import sys

import pytest
from sandfleet_config.logs import MAX_MESSAGE_CHARS, LineFormatter


def new_record(created: float, text: str = "job %s ended", *args: object, **keys: str) -> logging.LogRecord:
    record = logging.LogRecord("x", logging.INFO, "", 0, text, args or ("j1",), None)
    record.created, record.msecs = created, created % 1 * 1000
    record.__dict__.update(keys)
    return record


@pytest.mark.parametrize("created", [0.0, 1764351302.0007, 1764351302.9996, 1764351303.25])
def test_the_time_of_a_line_is_that_of_logging_itself(created: float) -> None:
    formatter, plain = LineFormatter(), logging.Formatter("%(asctime)s %(levelname)s %(message)s")
    for at in (created, created + 0.1, created + 1, created - 3600):
        assert formatter.format(new_record(at)) == plain.format(new_record(at))


def test_the_keys_of_a_record_end_its_first_line() -> None:
    formatter = LineFormatter()
    line = formatter.format(new_record(1.0, "first\nsecond %s", "x", action="job_ended", job_id="j1"))
    assert line.endswith("INFO first action=job_ended job_id=j1\nsecond x")


def test_control_characters_and_marks_that_turn_text_around_are_escaped() -> None:
    line = LineFormatter().format(new_record(1.0, "jobs ended: %s", "\x1b[2Jall \u202ewell\r", action="a\x1b"))
    assert line.endswith(r"INFO jobs ended: \x1b[2Jall \u202ewell\r action=a\x1b")


def test_a_trace_has_no_secrets() -> None:
    record = new_record(1.0)
    try:
        int("redis://worker:hunter22@10.0.0.5/0")
    except ValueError:
        record.exc_info = sys.exc_info()
    text = LineFormatter().format(record)
    assert "hunter22" not in text
    assert "redis://***@10.0.0.5/0" in text


def test_a_sentence_is_bounded_in_a_line() -> None:
    line = LineFormatter().format(new_record(1.0, "%s", "x" * 100_000, action="a"))
    assert line.endswith(f"INFO {'x' * MAX_MESSAGE_CHARS} action=a")
