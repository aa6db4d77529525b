"""Results of jobs as workers store them, and how pydantic reads them."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from sandfleet import ErrorCode, Outcome
from sandfleet.channel import stored_result as stored
from sandfleet.channel.stored_result import read_outcome
from sandfleet_config.outcome import (
    Artifact,
    Attempt,
    LimitState,
    Runtime,
    StoredObject,
    StreamOutput,
    Timing,
    Usage,
)
from sandfleet_config.scripts import stored_result

NOW = datetime(2026, 1, 2, 3, 4, 5, 120_000, tzinfo=UTC)
FULL: dict[str, Any] = {
    "batch": "nightly \u20ac",
    "labels": {"name": "n", "": "\x00\U0001f600"},
    "exit_code": 137,
    "signal": 9,
    "timed_out": "soft",
    "stdout": replace(StreamOutput.of(b"\xff\x00", 9), stored=StoredObject("ef" * 32, 9, "s3://b")),
    "stderr": StreamOutput.of('\u20ac\n\\"\x7f'.encode(), 1 << 40),
    "duration": 1e-07,
    "timing": Timing(queued=0.1, image=0.0, create=1e300, run=5e-324, collect=2, cleanup=0.30000000000000004),
    "usage": Usage(cpu_seconds=1.5, memory_peak_bytes=1 << 70, pids_peak=3),
    "limits": {
        "memory_bytes": LimitState(value=1 << 70, enforced=True),
        "grace": LimitState(value=2.0, enforced=False),
    },
    "attempts": (
        Attempt(host="h", worker="w", started=NOW),
        Attempt(host="h", worker="w", code=ErrorCode.WORKER_LOST, started=NOW, ended=NOW + timedelta(seconds=1)),
        Attempt(
            host="h",
            worker="w",
            started=NOW.astimezone(timezone(timedelta(hours=-5.5))),
            ended=NOW.replace(tzinfo=None),
        ),
    ),
    "host": "h",
    "runtime": Runtime(version="v", platform="systrap", warm=True),
    "image_ref": "docker://x:1",
    "image_digest": "sha256:0",
    "artifacts": (Artifact("out/\u20ac.png", 3, "ab" * 32, "0644", "s3://b"), Artifact("x", 0, "cd" * 32, "0600")),
    "artifacts_lost": "the store is down",
    "spec_sha256": "ab",
}
OK = Outcome.of(ErrorCode.OK, "j1", **FULL)
OOM = Outcome.of(ErrorCode.OUT_OF_MEMORY, "j1", "why \u20ac", **FULL)


def encode(outcome: Outcome, **more: Any) -> bytes:
    return json.dumps({**json.loads(stored_result(outcome)), **more}).encode()


def parse_by_pydantic(raw: bytes) -> Outcome | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "decode_outcome", lambda _: None)
        return read_outcome(raw, "j1", lambda _: None)


def flatten(value: Any) -> Any:
    """Return `value` with every type and every order spelled out; a time zone is its offset."""
    if is_dataclass(value):
        return type(value), [(field.name, flatten(getattr(value, field.name))) for field in fields(value)]
    if isinstance(value, dict):
        return dict, [(key, flatten(item)) for key, item in value.items()]
    if isinstance(value, tuple):
        return tuple, [flatten(item) for item in value]
    if isinstance(value, datetime):
        return datetime, value.isoformat(), value.utcoffset()
    return type(value), repr(value)


def assert_same(found: Outcome, expected: Outcome | None) -> None:
    assert expected is not None
    assert found == expected
    assert type(found) is type(expected)
    assert flatten(vars(found)) == flatten(vars(expected))
    assert found.model_dump_json() == expected.model_dump_json()
    assert found.model_fields_set == expected.model_fields_set
