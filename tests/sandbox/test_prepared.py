"""Prepared spares: a job that fits becomes the interpreter that is up; any other starts as ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

from preparedhost import execute, wait_prepared
from sandfleet_config.codes import ErrorCode

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.runner import RunscRunner


def test_a_job_that_fits_becomes_the_prepared_interpreter(prepared_host: RunscRunner) -> None:
    first = execute(prepared_host, "python3", "-c", "print(1)")
    wait_prepared(prepared_host)
    second = execute(prepared_host, "python3", "-c", "import os; print(os.getpid(), os.getcwd())")

    assert first.start != "prepared"
    assert second.start == "prepared", prepared_host.read_prepared()
    assert (second.verdict.code, second.stdout.text) == (ErrorCode.OK, "2 /\n"), second.stderr.text
