"""Killing the processes of a cgroup or a folder, and removing cgroups."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest
from sandfleet_config.errors import HostResources
from sandfleet_worker.sandbox.cgroup import cgroup as cgroups
from sandfleet_worker.sandbox.cgroup.tree import CgroupTree, find_tree
from sandfleet_worker.system.processes import kill_processes


@pytest.fixture
def tree() -> CgroupTree:
    return find_tree("sandfleet")


def test_a_process_that_may_not_be_killed_does_not_save_the_others(sleeper: subprocess.Popen[bytes]) -> None:
    """In a process of another user, which may signal only its own child."""
    child = os.fork()
    if child == 0:
        code = 9
        try:
            os.setuid(65534)
            with subprocess.Popen(["sleep", "600"]) as own:
                both = {sleeper.pid, own.pid}
                for _ in range(2):  # whichever of the two comes first
                    kill_processes(both, lambda: both)
                code = 0 if own.wait(5) == -signal.SIGKILL else 1
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sleeper.poll() is None


def test_a_number_that_is_not_found_again_is_left_alone(sleeper: subprocess.Popen[bytes]) -> None:
    kill_processes({sleeper.pid}, set)
    assert sleeper.poll() is None
    kill_processes({sleeper.pid}, {sleeper.pid}.copy)
    assert sleeper.wait(5) == -signal.SIGKILL


def test_all_members_of_a_cgroup_are_killed_on_both_versions(
    tree: CgroupTree, sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where v2 is mounted beside v1, as in this session's machine, both are really there."""
    roots = {
        *tree.parents.values(),
        *Path("/sys/fs/cgroup").glob("unified"),
        *Path("/sys/fs/cgroup").glob("cgroup.kill"),
    }
    for root in sorted(roots):
        for has_kill_file in (True, False):
            folder = (root if root.is_dir() else root.parent) / f"sandfleet-test-kill-{os.getpid()}"
            folder.mkdir()
            with subprocess.Popen(["sleep", "600"]) as process, monkeypatch.context() as patch:
                if not has_kill_file:
                    patch.setattr(cgroups, "write_existing", lambda *_: False)
                (folder / "cgroup.procs").write_text(str(process.pid))
                assert cgroups.read_members(folder) == {process.pid}
                assert cgroups.kill_members([folder])
                assert process.wait(5) == -signal.SIGKILL, folder
            assert not cgroups.kill_members([folder])
            cgroups.remove_cgroups([folder])
            assert not folder.exists()
    assert sleeper.poll() is None


def test_one_cgroup_that_cannot_be_removed_does_not_keep_the_others(
    tree: CgroupTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cgroups, "REMOVE_DEADLINE_SECONDS", 0.1)
    folders = [parent / f"sandfleet-test-left-{os.getpid()}" for parent in set(tree.parents.values())]
    for folder in folders:
        folder.mkdir()
    inner = folders[0] / "inner"
    inner.mkdir()
    with pytest.raises(HostResources, match=str(folders[0])):
        cgroups.remove_cgroups(folders)
    assert [folder.exists() for folder in folders] == [True] + [False] * (len(folders) - 1)
    inner.rmdir()
    cgroups.remove_cgroups(folders)
    assert not folders[0].exists()
