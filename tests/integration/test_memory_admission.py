"""Jobs start only where their memory fits: real workers, real sandboxes, a real parent cgroup."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
from cgrouptree import remove_parents
from pydantic import SecretStr
from sampling import Sampling
from sandfleet import Fleet, SandboxSpec, Settings
from sandfleet_worker.sandbox.cgroup.cgroup import memory_files
from sandfleet_worker.sandbox.cgroup.tree import find_tree, write_quietly
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stage import Stage

MIB = 1 << 20
PARENT_MIB, LIMIT_MIB, USED_MIB = 700, 512, 400
EAT = f"dd if=/dev/zero of=/dev/null bs={USED_MIB}M count=1 && sleep 0.5 && echo whole"
"""Read into a buffer of that size."""


@pytest.fixture
def fleet(stage: Stage) -> Iterator[Fleet]:
    with Fleet(Settings(redis_url=SecretStr(stage.redis_url))) as fleet:
        yield fleet


@pytest.fixture
def parent(stage: Stage) -> Iterator[Path]:
    """A memory cgroup of `PARENT_MIB` around the cgroup in which the stage's sandboxes are made."""
    name = f"sandfleet-test-admission-{os.getpid()}"
    tree = find_tree(f"{name}/jobs")
    folder = tree.parents["memory"].parent
    for _, file, text, is_needed in memory_files(tree.version, PARENT_MIB * MIB):
        assert write_quietly(folder / file, text) or not is_needed
    yield folder
    stage.close()
    remove_parents(f"{name}/jobs")
    remove_parents(name)
    assert not folder.exists()


def sleep(seconds: float, mib: int) -> SandboxSpec:
    fields = {"image": "busybox", "command": ["sleep", str(seconds)], "resources": {"memory_bytes": mib * MIB}}
    return SandboxSpec.model_validate(fields)


class Limits(Sampling):
    """The peak of the sum of the limits of sandboxes below a cgroup."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder, self.greatest = folder, 0
        self._file = "memory.max" if (folder / "cgroup.controllers").exists() else "memory.limit_in_bytes"

    def sample(self) -> None:
        total = 0
        for folder in self._folder.glob("sandfleet-*"):
            try:
                limit = (folder / self._file).read_text().strip()
            except OSError:
                continue
            total += int(limit) if limit.isdecimal() and int(limit) < 1 << 60 else 0
        self.greatest = max(self.greatest, total)


@pytest.mark.timeout(240)
def test_jobs_wait_for_the_memory_of_a_parent_cgroup(stage: Stage, fleet: Fleet, parent: Path) -> None:
    settings = {"SANDFLEET_RUNSC__CGROUP_PARENT": f"{parent.name}/jobs"}
    workers = [stage.start(concurrency=4, **settings) for _ in range(2)]
    for worker in workers:
        worker.wait_ready()
    fields = {"image": "busybox", "command": ["sh", "-c", EAT], "timeout": 60}
    spec = SandboxSpec.model_validate(fields | {"resources": {"memory_bytes": LIMIT_MIB * MIB}})
    with Limits(parent / "jobs") as limits:
        jobs = fleet.submit_many([spec] * 8, batch="large")
        told: list[str] = []

        def is_told() -> bool:
            records = [fleet.record(job.id) for job in jobs]
            told.extend(record.why for record in records if record and record.why)
            return bool(told)

        wait_until(is_told, 20, "a job says why it waits")
        outcomes = [job.outcome(60) for job in jobs]
    assert [(outcome.code, outcome.stdout.text) for outcome in outcomes] == [("OK", "whole\n")] * 8
    assert re.fullmatch(r"needs 512 MiB of memory, \S+ has \S+ \S+ free", told[0]), told
    assert limits.greatest <= PARENT_MIB * MIB
    assert all(len(outcome.attempts) == 1 for outcome in outcomes), "none started where it had no memory"


def test_a_stream_of_small_jobs_does_not_starve_a_large_one(stage: Stage, fleet: Fleet) -> None:
    memory = {"SANDFLEET_MEMORY_BUDGET_BYTES": "300MiB", "SANDFLEET_WARM__SIZE": "0"}
    stage.start(concurrency=4, **memory).wait_ready()
    # Of different length: three that end at once would leave room for the large one.
    small = [sleep(0.5 + number % 10 / 10, 100) for number in range(100)]
    large = sleep(1, 250)
    first = fleet.submit_many(small[:4], batch="first")
    began = time.monotonic()
    job = fleet.submit(large)
    stream = fleet.submit_many(small, batch="stream")

    def shown() -> str:
        command = [sys.executable, "-m", "sandfleet.cli", "show", job.id]
        done = subprocess.run(command, env=stage.env, capture_output=True, text=True, check=True)
        return done.stdout

    wait_until(lambda: re.search(r"waits +needs 250 MiB of memory, \S+ has \S+ \S+ free", shown()), 8, "show tells")
    assert job.outcome(30).code == "OK"
    assert time.monotonic() - began > 8, "the small ones were first"
    ended = sum(other.is_done for other in stream)
    assert 5 <= ended < 60
    fleet.batch("stream").cancel()
    wait_until(lambda: all(other.is_done for other in (*first, *stream)), 30, "the rest is cancelled")
