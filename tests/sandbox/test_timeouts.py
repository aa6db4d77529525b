"""The soft and the hard limit of time, the caller's deadline, and when their clock starts."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import SandboxTimeout
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.runner import RunscRunner

if TYPE_CHECKING:
    from conftest import Run

ROUNDS = ("cold", "warm")


def test_the_soft_limit_is_a_term_inside(run: Run) -> None:
    outcome = run("sh", "-c", "trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.05; done", timeout=0.5)
    assert (outcome.code, outcome.timed_out, outcome.exit_code) == (ErrorCode.TIMEOUT, "soft", 3)
    assert outcome.stdout.text == "up\nbye\n"


def test_the_hard_limit_kills_a_program_that_ignores_term(run: Run) -> None:
    started = time.monotonic()
    outcome = run("sh", "-c", "trap '' TERM; echo up; while :; do sleep 1; done", timeout=0.5, grace=0.5)
    assert (outcome.code, outcome.timed_out) == (ErrorCode.TIMEOUT, "hard")
    assert (outcome.exit_code, outcome.signal) == (None, None)
    assert outcome.stdout.text == "up\n"
    assert outcome.duration is not None
    assert 0.9 < outcome.duration < 3
    assert time.monotonic() - started < 10


def test_without_grace_the_timeout_kills_at_once(run: Run) -> None:
    outcome = run("sh", "-c", "trap 'echo bye' TERM; while :; do sleep 1; done", timeout=0.3, grace=0)
    assert (outcome.code, outcome.timed_out) == (ErrorCode.TIMEOUT, "hard")


def test_a_callers_deadline_ends_the_job(runner: RunscRunner) -> None:
    spec = SandboxSpec(image="busybox", command=("sleep", "30"))
    with pytest.raises(SandboxTimeout):
        runner.run(spec, deadline=time.monotonic() + 0.5)


def test_the_clock_starts_with_the_program(run: Run) -> None:
    outcome = run("true", timeout=0.1)
    assert outcome.code is ErrorCode.OK
