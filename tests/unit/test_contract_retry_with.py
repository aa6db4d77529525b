"""Contract 5: higher limits for the attempt after one that ran into them."""

from __future__ import annotations

from typing import Any

import pytest
from rows import each_row
from sandfleet import ErrorCode, Outcome, SandboxSpec
from sandfleet.testing.fake_fleet import FakeFleet
from sandfleet_config.errors import SpecInvalid
from sandfleet_config.fingerprint import request_sha256, spec_sha256
from sandfleet_config.wire import JobRequest, decode_job, encode_job, new_spec

SMALL: dict[str, Any] = {"image": "x", "resources": {"memory_bytes": "64MiB"}, "timeout": 10}
WISH = {"memory_bytes": "2GiB", "timeout": 120}


def test_it_needs_contract_5_and_is_about_delivery() -> None:
    spec = new_spec({**SMALL, "retry_with": WISH})
    text = encode_job(JobRequest(spec=spec))
    assert text.startswith('{"contract":5,')
    assert decode_job(text).spec == spec
    assert spec_sha256(spec) == spec_sha256(new_spec(SMALL))
    assert request_sha256(spec) != request_sha256(new_spec(SMALL))


def test_each_end_raises_its_own_limit_once() -> None:
    spec = new_spec({**SMALL, "retry_with": WISH})
    memory = spec.raised({ErrorCode.OUT_OF_MEMORY, None})
    assert (memory.resources.memory_bytes, memory.timeout) == (2 << 30, 10)
    both = memory.raised({ErrorCode.TIMEOUT})
    assert (both.resources.memory_bytes, both.timeout) == (2 << 30, 120)
    assert both.raised(set(ErrorCode)) is both
    assert spec.raised({ErrorCode.WORKER_LOST, ErrorCode.EXIT_NONZERO}) is spec
    assert spec.longest_timeout_seconds == 120


@each_row(
    ("fields", "told"),
    [
        ({"retry_with": {"memory_bytes": "2GiB"}}, "retry_with: memory_bytes needs resources.memory_bytes"),
        (
            {**SMALL, "retry_with": {"memory_bytes": "64MiB"}},
            "retry_with: memory_bytes of 64 MiB must be more than the",
        ),
        (
            {**SMALL, "retry_with": {"timeout": 10}},
            "retry_with: timeout of 10 s must be more than the 10 s of the first",
        ),
        ({"retry_with": {"timeout": 20}}, "retry_with: timeout of 20 s must be more than the 30 s"),
        ({**SMALL, "max_attempts": 1, "retry_with": WISH}, "retry_with: needs max_attempts of 2 or more"),
        ({**SMALL, "retry_with": {"memory": 1}}, "retry_with.memory: "),
        ({**SMALL, "retry_with": {"memory_bytes": 7}}, "retry_with.memory_bytes: 7 bytes cannot work"),
    ],
)
def test_a_raise_that_raises_nothing_is_refused(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        new_spec({"image": "x", **fields})
    assert told in caught.value.message


def test_a_fake_fleet_tries_again_with_the_raised_limit() -> None:
    def run(spec: SandboxSpec) -> Outcome:
        return Outcome.of(ErrorCode.OK if spec.timeout == 120 else ErrorCode.TIMEOUT, "")

    outcome = FakeFleet(run).submit({**SMALL, "retry_with": WISH}).outcome(timeout=1)
    assert [attempt.code for attempt in outcome.attempts] == [ErrorCode.TIMEOUT, ErrorCode.OK]
