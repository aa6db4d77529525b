"""`RunscRunner` in this process, without Redis and Celery; each sandbox is booted for its job."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbench.ways import RUNNER, Run, run_in_threads

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.runner import RunscRunner

    from sandbench.programs import Program


@dataclass
class RunnerWay:
    """Run jobs by the runner."""

    runner: RunscRunner
    name: str = RUNNER

    def run(self, program: Program) -> None:
        """Run the program in a fresh sandbox."""
        done = self.runner.run(program.spec)
        if done.exit_code:
            raise RuntimeError(f"{program.name} ended with {done.exit_code}")

    def run_many(self, program: Program, jobs: int, at_once: int) -> Run:
        """Run `jobs` in `at_once` threads."""
        return run_in_threads(lambda: self.run(program), jobs, at_once)
