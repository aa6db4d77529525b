"""A job that ran into a limit is tried again with a higher one: a real worker, real sandboxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sandfleet import ErrorCode, Fleet, Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stage import Stage

MIB = 1 << 20
EAT = "dd if=/dev/zero of=/dev/null bs=150M count=1 && echo whole"
"""Read into a buffer of that size."""


@pytest.fixture
def fleet(module_stage: Stage) -> Iterator[Fleet]:
    with Fleet(Settings(redis_url=SecretStr(module_stage.redis_url))) as fleet:
        yield fleet


def spec_of(command: str, **fields: Any) -> dict[str, Any]:
    return {"image": "busybox", "command": ["sh", "-c", command], **fields}


def test_memory_and_timeout_are_raised_once_and_told(fleet: Fleet) -> None:
    small = {"memory_bytes": 64 * MIB}
    ate, slept, lost = [
        job.outcome(timeout=60)
        for job in fleet.submit_many(
            [
                spec_of(EAT, resources=small, retry_with={"memory_bytes": 300 * MIB}),
                spec_of("sleep 1.5; echo whole", timeout=0.3, retry_with={"timeout": 20}),
                spec_of(EAT, resources=small, retry_with={"memory_bytes": 80 * MIB}, max_attempts=5),
            ]
        )
    ]
    assert (ate.code, ate.stdout.text) == (ErrorCode.OK, "whole\n")
    assert [attempt.code for attempt in ate.attempts] == [ErrorCode.OUT_OF_MEMORY, ErrorCode.OK]
    assert [attempt.limits for attempt in ate.attempts] == [
        {"memory_bytes": 64 * MIB, "timeout": 30.0},
        {"memory_bytes": 300 * MIB, "timeout": 30.0},
    ]
    assert ate.limits["memory_bytes"].value == 300 * MIB
    assert (slept.code, slept.stdout.text) == (ErrorCode.OK, "whole\n")
    assert [attempt.limits for attempt in slept.attempts] == [{"timeout": 0.3}, {"timeout": 20.0}]
    assert lost.code is ErrorCode.OUT_OF_MEMORY
    assert len(lost.attempts) == 2, "each limit is raised once"


def test_a_raise_above_the_hosts_ceiling_is_told_and_not_lowered(fleet: Fleet) -> None:
    """The only host allows 512 MiB."""
    spec = spec_of(EAT, resources={"memory_bytes": 64 * MIB}, retry_with={"memory_bytes": 600 * MIB})
    outcome = fleet.submit(spec).outcome(timeout=60)
    assert outcome.code is ErrorCode.OUT_OF_MEMORY
    assert len(outcome.attempts) == 1
    assert outcome.message.endswith("it was not tried again: no live host allows 600 MiB of memory, as retry_with asks")
