from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError
from sandfleet_config.settings import WorkerSettings
from sandfleet_worker.commands.checks import State, check_memory
from sandfleet_worker.sandbox.cgroup.tree import CgroupTree
from sandfleet_worker.sandbox.memory_budget import WORKER_BYTES, MemoryBudget, find_budget
from sandfleet_worker.sandbox.warm.spare_memory import IDLE_MEMORY_BYTES

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1 << 20
JOB = 512 * MIB
V1_NONE = "9223372036854771712"


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A host of 4,000 MiB whose worker is in /system/worker."""
    proc = tmp_path / "proc"
    (proc / "self").mkdir(parents=True)
    (tmp_path / "cg/system/worker").mkdir(parents=True)
    (proc / "meminfo").write_text("MemTotal:        4096000 kB\nMemFree:          100 kB\n")
    mount = f"31 25 0:27 / {tmp_path}/cg rw - cgroup cgroup rw,memory\n"
    (proc / "self/mountinfo").write_text(mount)
    (proc / "self/cgroup").write_text("5:memory:/system/worker\n0::/system/worker\n")
    return proc


def new_tree(root: Path, version: int, limits: dict[str, str]) -> CgroupTree:
    """Make cgroups with these limits; sandboxes go to `pods/jobs`."""
    file = "memory.limit_in_bytes" if version == 1 else "memory.max"
    for name, text in limits.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        (root / name / file).write_text(f"{text}\n")
    return CgroupTree(version, {"memory": root / "pods/jobs"})


@pytest.mark.parametrize("version", [1, 2])
def test_the_least_of_all_cgroups_around_the_sandboxes_counts(tmp_path: Path, proc: Path, version: int) -> None:
    none = V1_NONE if version == 1 else "max"
    file = "memory.limit_in_bytes" if version == 1 else "memory.max"
    for limits, mib, bound in (
        ({".": none, "pods": none, "pods/jobs": none}, 4000, "MemTotal"),
        ({"pods": str(1000 * MIB), "pods/jobs": str(2000 * MIB)}, 1000, f"{tmp_path}/cg/pods/{file}"),
        ({".": str(900 * MIB)}, 900, f"{tmp_path}/cg/{file}"),
        ({"system/worker": str(300 * MIB)}, 900, f"{tmp_path}/cg/{file}"),
    ):
        tree = new_tree(tmp_path / "cg", version, limits)
        found = find_budget(tree, spares=0, job_bytes=JOB, root=tmp_path / "cg", proc=proc)
        assert (found.total_bytes, found.bound) == (mib * MIB * 9 // 10, bound)
        has_worker = not bound.startswith(f"{tmp_path}/cg/pods")
        assert found.job_bytes == found.total_bytes - (WORKER_BYTES if has_worker else 0)
    without = CgroupTree(version, {})
    found = find_budget(without, spares=0, job_bytes=JOB, root=tmp_path / "cg", proc=proc)
    assert found.bound == f"{tmp_path}/cg/system/worker/{file}", "sandboxes are where their worker is"


def test_spares_get_the_memory_that_one_large_job_leaves(tmp_path: Path, proc: Path) -> None:
    for mib, spares in ((8000, 4), (700, 2), (600, 0)):
        tree = new_tree(tmp_path / "cg", 2, {"pods": str(mib * MIB)})
        found = find_budget(tree, spares=4, job_bytes=JOB, root=tmp_path / "cg", proc=proc)
        assert found.spares == spares
        assert found.own_bytes == spares * IDLE_MEMORY_BYTES + (WORKER_BYTES if mib == 8000 else 0)
        assert found.lessen(1).spares == max(0, spares - 1)
        assert found.lessen(1).job_bytes == found.job_bytes + (IDLE_MEMORY_BYTES if spares else 0)
        assert found.lessen(0) == found.lessen(-1) == found
        assert found.lessen(1 << 40).spares == 0


def test_a_setting_overrides_the_budget_that_was_found(tmp_path: Path, proc: Path) -> None:
    tree = new_tree(tmp_path / "cg", 1, {"pods": str(64 * MIB)})
    found = find_budget(tree, spares=4, job_bytes=JOB, given_bytes=8 << 30, root=tmp_path / "cg", proc=proc)
    assert (found.job_bytes, found.spares, found.bound) == (8 << 30, 4, "SANDFLEET_MEMORY_BUDGET_BYTES")


def test_doctor_says_the_budget_and_its_bound() -> None:
    fine = check_memory(MemoryBudget(3600 * MIB, WORKER_BYTES, 0, "MemTotal"), JOB)
    assert (fine.state, fine.detail) == (
        State.OK,
        "3536 MiB by their limits, 90 % of MemTotal less 64 MiB, what the worker and its 0 idle sandboxes may take",
    )
    tight = check_memory(MemoryBudget(300 * MIB, 0, 0, "SANDFLEET_MEMORY_BUDGET_BYTES"), JOB)
    assert tight.state is State.WARNING
    assert "300 MiB by their limits, set by SANDFLEET_MEMORY_BUDGET_BYTES: less than the ceiling" in tight.detail
    lowered = check_memory(MemoryBudget(32 * MIB, 0, 0, "/sys/fs/cgroup/pods/memory.max"), 32 * MIB)
    assert lowered.state is State.OK, "the operator wants small jobs"
    none = check_memory(MemoryBudget(32 * MIB, 0, 0, "/sys/fs/cgroup/pods/memory.max"), JOB)
    assert none.state is State.FAILED
    assert "jobs need at least 64 MiB" in none.detail
    assert "give /sys/fs/cgroup/pods/memory.max more" in none.fix


def test_labels_of_a_host_are_key_value_and_none_that_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDFLEET_HOST_LABELS", "gpu=yes, zone=a=b,")
    assert WorkerSettings().host_labels == {"gpu": "yes", "zone": "a=b"}
    for text, said in (("gpu", "must be key=value"), ("arch=arm", "arch cannot be set"), ("__x=1", "two underscores")):
        monkeypatch.setenv("SANDFLEET_HOST_LABELS", text)
        with pytest.raises(ValidationError, match=said):
            WorkerSettings()
