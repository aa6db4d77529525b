"""Read what a runner returned: its outcome, and which limits were enforced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandfleet_config.codes import ErrorCode
from sandfleet_config.execute import LimitsEnforced
from sandfleet_config.outcome import Outcome, StreamOutput

from sandfleet.execute.interfaces import RunResult

if TYPE_CHECKING:
    from sandfleet_config.outcome import SandboxResult


def read_outcome(result: SandboxResult) -> Outcome:
    """Return the outcome of a result; one with the same facts if the runner returned none."""
    if isinstance(result, RunResult):
        return result.outcome
    return Outcome.of(
        ErrorCode.EXIT_NONZERO if result.exit_code else ErrorCode.OK,
        "",
        exit_code=result.exit_code,
        stdout=StreamOutput.of(result.stdout.encode(errors="replace")),
        stderr=StreamOutput.of(result.stderr.encode(errors="replace")),
        duration=result.duration,
    )


def read_limits_enforced(outcome: Outcome | None) -> LimitsEnforced:
    """Return which limits were enforced; a limit that the outcome does not name was not."""
    limits = outcome.limits if outcome else {}

    def is_enforced(name: str) -> bool:
        return name in limits and limits[name].enforced

    return LimitsEnforced(
        timeout=is_enforced("timeout"),
        memory=is_enforced("memory_bytes"),
        cpu=is_enforced("cpu_quota"),
        pids=is_enforced("pids_limit"),
        disk=is_enforced("disk_bytes"),
    )
