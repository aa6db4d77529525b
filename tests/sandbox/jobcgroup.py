"""Find the cgroup of the sandbox that has a job, among a runner's idle ones."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from sandfleet_worker.sandbox.runner import RunscRunner


def wait_job_cgroup(runner: RunscRunner) -> Path:
    """Return the pids cgroup of the one sandbox that has a job: only a job brings a limit there."""
    parent = runner._tree.parents["pids"]
    found: list[Path] = []

    def poll() -> bool:
        for folder in parent.glob(f"{runner._owner.name}.*"):
            with contextlib.suppress(FileNotFoundError):
                if (folder / "pids.max").read_text().strip() != "max":
                    found.append(folder)
        return bool(found)

    wait_until(poll, 60, "a sandbox has a job")
    assert len(found) == 1
    return found[0]
