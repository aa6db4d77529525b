"""The limit that was hit when memory ran out: the job's own, a parent cgroup's, or the host's."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cgrouptree import remove_parents
from conftest import wait_spare
from jobcgroup import wait_job_cgroup
from leftovers import left_behind
from preparedhost import plan_of
from sandfleet_config.codes import ErrorCode
from sandfleet_config.prepared_settings import PreparedSettings
from sandfleet_config.settings import HostSettings, WarmSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox import prepared_starts
from sandfleet_worker.sandbox.cgroup.cgroup import SandboxCgroup, memory_files
from sandfleet_worker.sandbox.cgroup.tree import find_tree, write_quietly
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.prepared.python_source import source
from sandfleet_worker.sandbox.process.cancellation import Cancellation
from sandfleet_worker.sandbox.runner import RunscRunner
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_config.outcome import Outcome

MIB = 1 << 20
PARENT_MIB, NEIGHBOUR_MIB, JOB_MIB = 200, 100, 190
EATER = """
import os, sys, time
folder, mib, adjust = sys.argv[1], int(sys.argv[2]), sys.argv[3]
open(f"{folder}/cgroup.procs", "w").write(str(os.getpid()))
open("/proc/self/oom_score_adj", "w").write(adjust)
held = [bytearray(os.urandom(1) * (1 << 20)) for _ in range(mib)]
print("full", flush=True)
time.sleep(600)
"""


@pytest.fixture
def grandparent(host: HostSettings) -> Iterator[Path]:
    """Return a memory cgroup of `PARENT_MIB`, the grandparent of the sandboxes' own."""
    name = f"sandfleet-test-memory-{os.getpid()}"
    tree = find_tree(f"{name}/jobs")
    folder = tree.parents["memory"].parent
    limit(folder, PARENT_MIB)
    yield folder
    remove_parents(f"{name}/jobs")
    remove_parents(name)
    assert not folder.exists()


def limit(folder: Path, mib: int) -> None:
    version = 2 if (folder / "cgroup.controllers").exists() else 1
    for _, file, text, is_needed in memory_files(version, mib * MIB):
        assert write_quietly(folder / file, text) or not is_needed


@contextlib.contextmanager
def eater(folder: Path, mib: int, adjust: int = 0) -> Iterator[subprocess.Popen[str]]:
    """Hold `mib` MiB in the memory cgroup `folder`."""
    command = [sys.executable, "-c", EATER, str(folder), str(mib), str(adjust)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextlib.contextmanager
def neighbour(grandparent: Path) -> Iterator[None]:
    """Hold most of what a limited cgroup of its own has, below the same parent as the sandboxes."""
    folder = grandparent / "neighbour"
    folder.mkdir()
    try:
        limit(folder, NEIGHBOUR_MIB)
        with eater(folder, NEIGHBOUR_MIB - 15) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "full\n"
            yield
    finally:
        wait_until(lambda: not (folder / "cgroup.procs").read_text(), 5, "the neighbour is gone")
        folder.rmdir()


def run_code(host: HostSettings, grandparent: Path, code: str, memory_mib: int = JOB_MIB) -> Outcome:
    settings = host.model_copy(
        update={"runsc": host.runsc.model_copy(update={"cgroup_parent": f"{grandparent.name}/jobs"})}
    )
    spec = SandboxSpec.model_validate(
        {
            "image": "python",
            "command": ["python3", "-S", "-c", code],
            "timeout": 60,
            "resources": {"memory_bytes": memory_mib * MIB},
        }
    )
    with RunscRunner(settings) as runner:
        outcome = runner.execute(admit(spec, settings)).to_outcome(job_id="test")
    assert not left_behind(settings)
    return outcome


EAT = "print('before', flush=True); x = bytearray(170 << 20); print('survived', flush=True)"


def test_memory_of_a_parent_cgroup_is_the_hosts_trouble(host: HostSettings, grandparent: Path) -> None:
    assert run_code(host, grandparent, EAT).code is ErrorCode.OK
    with neighbour(grandparent):
        outcome = run_code(host, grandparent, EAT)
    assert (outcome.code, outcome.stdout.text) == (ErrorCode.HOST_RESOURCES, "before\n"), outcome.message
    assert outcome.retryable
    assert outcome.usage.memory_peak_bytes is not None
    assert outcome.usage.memory_peak_bytes < JOB_MIB * MIB


def test_a_jobs_own_limit_is_its_own_in_a_tight_parent_too(host: HostSettings, grandparent: Path) -> None:
    with neighbour(grandparent):
        outcome = run_code(host, grandparent, EAT, memory_mib=64)
    assert (outcome.code, outcome.stdout.text) == (ErrorCode.OUT_OF_MEMORY, "before\n"), outcome.message


FILL = """
import os, sys, time
folder, path = sys.argv[1:]
open(f"{folder}/cgroup.procs", "w").write(str(os.getpid()))
open("/proc/self/oom_score_adj", "w").write("900")
with open(path, "wb") as file:
    for _ in range(120):
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())
held = [bytearray(os.urandom(1) * (1 << 20)) for _ in range(60)]
print("full", flush=True)
time.sleep(600)
"""


def test_a_full_parent_is_reported_though_page_cache_had_filled_the_jobs_limit(
    grandparent: Path, tmp_path: Path
) -> None:
    """Without a sandbox: a cgroup and a program in it.

    The kernel lets the program go to its limit before it is killed. cgroup v2 takes no process into
    the parent itself, so what fills it is in a cgroup of its own.
    """
    cgroup = SandboxCgroup(find_tree(f"{grandparent.name}/jobs"), "by-hand")
    cgroup.make()
    limits = admit(SandboxSpec.model_validate({"image": "x", "resources": {"memory_bytes": 90 * MIB}}), HostSettings())
    cgroup.apply(limits)
    folder, filler = grandparent / "jobs/by-hand", grandparent / "filler"
    filler.mkdir()
    command = [sys.executable, "-c", FILL, str(folder), str(tmp_path / "file")]
    try:
        with neighbour(grandparent), subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as job:
            assert job.stdout is not None
            assert job.stdout.readline() == "full\n"
            peak = cgroup.counters.usage().memory_peak_bytes
            assert peak is not None
            assert peak > 89 * MIB
            with eater(filler, 65):
                assert job.wait(30) == -signal.SIGKILL
        counts = cgroup.counters.read()
        assert (counts.oom_kills, counts.own_ooms) == (1, 0)
    finally:
        cgroup.remove()
        wait_until(lambda: not (filler / "cgroup.procs").read_text(), 5, "nothing fills the parent")
        filler.rmdir()


def test_a_kill_beside_an_idle_sandbox_does_not_count_for_its_next_job(host: HostSettings) -> None:
    warm = host.model_copy(update={"warm": WarmSettings(size=1)})
    limits = admit(SandboxSpec(image="busybox", command=("sh", "-c", "exit 1")), warm)
    with RunscRunner(warm) as runner:
        assert wait_spare(runner, limits) == "warm"
        spares = [spare for spares in runner._provider.pool._spares.by_plan.values() for spare in spares]
        assert spares
        for spare in spares:
            with eater(runner._tree.parents["memory"] / spare.paths.folder.name, 64, adjust=1000) as process:
                assert process.wait(30) == -signal.SIGKILL
        ending = runner.execute(limits)
        assert ending.verdict.code is ErrorCode.EXIT_NONZERO, ending.verdict.message


def test_a_full_parent_cgroup_holds_no_preparation(
    host: HostSettings, grandparent: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(prepared_starts, "source", lambda: f"held = bytearray(170 << 20)\n{source()}")
    settings = host.model_copy(
        update={
            "runsc": host.runsc.model_copy(update={"cgroup_parent": f"{grandparent.name}/jobs"}),
            "warm": WarmSettings(size=2),
            "prepared": PreparedSettings(start="python", failures=1),
        }
    )
    with RunscRunner(settings) as runner, neighbour(grandparent):
        runner._provider.pool.pin(plan_of(runner))
        wait_until(lambda: runner.boot_failures, 60, "the kernel has ended the preparation")
        assert not runner.read_prepared().quarantined
    assert "the host, or a cgroup above the sandbox's, ran out of memory" in caplog.text
    assert not left_behind(settings)


def test_a_parents_limit_on_processes_is_the_hosts_trouble(host: HostSettings) -> None:
    parent = f"sandfleet-test-pids-{os.getpid()}"
    settings = host.model_copy(update={"runsc": host.runsc.model_copy(update={"cgroup_parent": parent})})
    code = "import os, time\nprint(1, flush=True)\nwhile True:\n    time.sleep(0.05)\n    if os.fork() == 0: time.sleep(30)"
    spec = SandboxSpec.model_validate({"image": "python", "command": ["python3", "-S", "-c", code], "timeout": 20})
    with RunscRunner(settings) as runner:
        folder = runner._tree.parents["pids"]

        def tighten() -> None:
            job = wait_job_cgroup(runner)
            wait_until(lambda: len((job / "cgroup.procs").read_text().split()) >= 5, 15, "the program is up")
            (folder / "pids.max").write_text("1")

        thread = threading.Thread(target=tighten)
        thread.start()
        ending = runner.execute(admit(spec, settings))
        thread.join()
        (folder / "pids.max").write_text("max")
    remove_parents(parent)
    assert ending.verdict.code is ErrorCode.HOST_RESOURCES, ending.verdict.message


def test_the_kernel_takes_a_sandbox_before_its_worker(runner: RunscRunner) -> None:
    spec = SandboxSpec(image="busybox", command=("sleep", "20"), timeout=30)
    cancel = Cancellation()
    thread = threading.Thread(target=lambda: runner.execute(admit(spec, runner.config), cancel=cancel))
    thread.start()
    try:
        folder = wait_job_cgroup(runner)
        wait_until(lambda: len((folder / "cgroup.procs").read_text().split()) >= 4, 15, "the sandbox is up")
        scores = {
            Path(f"/proc/{pid}/comm").read_text().strip(): int(Path(f"/proc/{pid}/oom_score_adj").read_text())
            for pid in (folder / "cgroup.procs").read_text().split()
        }
    finally:
        cancel.cancel()
        thread.join()
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert len(scores) >= 2
    assert min(scores.values()) >= own + 500, scores
