"""A real worker whose runner ends each job at once: `python -m sandbench.stand_in`.

Its settings are ``SANDFLEET_*``. Celery app, claimer, lease, pool and result backend are the
product's; only the sandbox is missing, so no image is needed, and what a job costs around its
sandbox can be seen.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Final
from unittest import mock

from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Runtime, StreamOutput, Timing, Usage
from sandfleet_config.settings import WorkerSettings
from sandfleet_worker.commands import start as service
from sandfleet_worker.sandbox.ending import Ending, limit_states
from sandfleet_worker.sandbox.runner import RunscRunner
from sandfleet_worker.sandbox.start_hooks import NoHooks
from sandfleet_worker.sandbox.verdict import Verdict

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.start_hooks import StartHooks

NO_HOOKS: Final = NoHooks()
OUTPUT = b"as long as the last line of a small program's output may be\n"


class StandInRunner(RunscRunner):
    """`RunscRunner` without sandboxes.

    Every field of its endings has a value, so that an outcome is as long as a real one.
    """

    def warm_up(self) -> None:
        """Nothing needs to be prepared."""

    def execute(self, limits: Admitted, *, hooks: StartHooks = NO_HOOKS, **_: object) -> Ending:
        """Return the ending of a program that exits 0 at once or, of ``sleep``, at its end."""
        hooks.start()
        match limits.spec.command:
            case ("sleep", seconds):
                time.sleep(float(seconds))
            case _:
                pass
        return new_ending(limits)


def new_ending(limits: Admitted) -> Ending:
    """Return an ending with all fields of a real one."""
    return Ending(
        verdict=Verdict(ErrorCode.OK, exit_code=0),
        stdout=StreamOutput.of(OUTPUT),
        stderr=StreamOutput(),
        duration=0.0123456789,
        timing=Timing(image=0.0001234, create=0.0456789, run=0.0123456, collect=0.0012345, cleanup=0.0012345),
        usage=Usage(cpu_seconds=0.0612345, memory_peak_bytes=18_874_368, pids_peak=None),
        limits=limit_states(limits, frozenset({"memory", "cpu", "pids", "disk"})),
        runtime=Runtime(version="stand-in", platform="none"),
        image_digest=f"sha256:{0:064x}",
    )


def main() -> int:
    """Take jobs until SIGTERM."""
    settings = WorkerSettings()
    # By name: a `serve` that no longer has these is an error here, not a benchmark of something
    # else.
    with mock.patch.multiple(service, RunscRunner=StandInRunner, run_preflight=lambda *_: None):
        return service.serve(settings)


if __name__ == "__main__":
    sys.exit(main())
