"""The logic of both cgroup versions, on plain folders; tests/sandbox shows the real kernel's."""

from __future__ import annotations

import resource
import threading
from pathlib import Path

import pytest
from sandfleet_config.errors import HostResources
from sandfleet_config.settings import HostSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.cgroup.cgroup import SandboxCgroup, limit_files
from sandfleet_worker.sandbox.cgroup.counters import Counts
from sandfleet_worker.sandbox.cgroup.tree import find_tree, parse_v1_mounts
from sandfleet_worker.sandbox.policy import Admitted, admit


@pytest.fixture
def limits() -> Admitted:
    spec = SandboxSpec.model_validate({"image": "x", "resources": {"cpu_quota": 50_000, "memory_bytes": 1 << 26}})
    return admit(spec, HostSettings())


def v2_root(root: Path, controllers: str = "cpuset cpu io memory pids") -> Path:
    """Return a folder like cgroup v2.

    `cgroup.subtree_control` keeps the last write only, as a file does.
    """
    (root / "sandfleet").mkdir(parents=True)
    for folder in (root, root / "sandfleet"):
        (folder / "cgroup.controllers").write_text(controllers)
        (folder / "cgroup.subtree_control").write_text(controllers)
    return root


def test_v2_uses_one_folder_for_all(tmp_path: Path, limits: Admitted) -> None:
    tree = find_tree("sandfleet", v2_root(tmp_path))
    assert (tree.version, tree.enforceable) == (2, frozenset({"memory", "cpu", "pids"}))
    cgroup = SandboxCgroup(tree, "a.1")
    cgroup.make()
    cgroup.apply(limits)
    folder = tmp_path / "sandfleet/a.1"
    assert (folder / "memory.max").read_text() == str(1 << 26)
    assert (folder / "memory.swap.max").read_text() == "0"
    assert (folder / "memory.oom.group").read_text() == "1"
    assert (folder / "cpu.max").read_text() == "50000 100000"
    assert (folder / "pids.max").read_text() == str(4 * 256 + 256)
    assert cgroup.procs_files == [str(folder / "cgroup.procs")]
    assert cgroup.enforced == {"memory", "cpu", "pids"}


def test_a_slowed_sandbox_dies_without_its_quota(tmp_path: Path) -> None:
    cgroup = SandboxCgroup(find_tree("sandfleet", v2_root(tmp_path)), "a.1")
    cgroup.make()
    assert cgroup.slow_down(1000)
    assert (tmp_path / "sandfleet/a.1/cpu.max").read_text() == "1000 100000"
    cgroup.kill()
    assert (tmp_path / "sandfleet/a.1/cpu.max").read_text() == "max 100000"


def test_a_job_with_a_quota_dies_without_it(tmp_path: Path, limits: Admitted) -> None:
    cgroup = SandboxCgroup(find_tree("sandfleet", v2_root(tmp_path)), "a.1")
    cgroup.make()
    cgroup.apply(limits)
    cgroup.kill()
    assert (tmp_path / "sandfleet/a.1/cpu.max").read_text() == "max 100000"


def test_v2_without_delegation_enforces_nothing(tmp_path: Path) -> None:
    assert find_tree("sandfleet", v2_root(tmp_path, "")).enforceable == frozenset()


def write_v2_events(folder: Path, *, oom: int, oom_kill: int) -> None:
    (folder / "memory.events.local").write_text(
        f"low 0\nhigh 0\nmax 9\noom {oom}\noom_kill {oom_kill}\noom_group_kill 0\n"
    )


def test_v2_counters(tmp_path: Path, limits: Admitted) -> None:
    cgroup = SandboxCgroup(find_tree("sandfleet", v2_root(tmp_path)), "a.1")
    cgroup.make()
    folder = tmp_path / "sandfleet/a.1"
    write_v2_events(folder, oom=2, oom_kill=1)
    (folder / "pids.events").write_text("max 4\n")
    cgroup.apply(limits)
    assert cgroup.counters.read() == Counts(), "what happened while it idled is not the job's"

    for oom, oom_kill, own_ooms in ((2, 3, 0), (3, 3, 1), (2, 1, 0), (3, 1, 0)):
        write_v2_events(folder, oom=oom, oom_kill=oom_kill)
        counts = cgroup.counters.read()
        assert (counts.oom_kills, counts.own_ooms) == (oom_kill - 1, own_ooms), (oom, oom_kill)
    (folder / "cpu.stat").write_text("usage_usec 1500000\nuser_usec 1\n")
    (folder / "memory.peak").write_text("4096\n")
    usage = cgroup.counters.usage()
    assert (usage.cpu_seconds, usage.memory_peak_bytes, usage.pids_peak) == (1.5, 4096, None)


def test_v2_of_a_kernel_without_local_events(tmp_path: Path, limits: Admitted) -> None:
    cgroup = SandboxCgroup(find_tree("sandfleet", v2_root(tmp_path)), "a.1")
    cgroup.make()
    cgroup.apply(limits)
    (tmp_path / "sandfleet/a.1/memory.events").write_text("oom 1\noom_kill 2\n")
    assert cgroup.counters.read() == Counts(oom_kills=2, own_ooms=1)


def test_a_fork_that_a_parents_limit_refused_is_not_the_jobs(tmp_path: Path, limits: Admitted) -> None:
    cgroup = SandboxCgroup(find_tree("sandfleet", v2_root(tmp_path)), "a.1")
    cgroup.make()
    cgroup.apply(limits)
    folder = tmp_path / "sandfleet/a.1"
    (folder / "pids.events").write_text("max 4\n")
    for peak, limit, own in (("100", "1280", 0), ("1280", "1280", 4), (None, "1280", 4), ("12", "max", 4)):
        (folder / "pids.max").write_text(limit)
        (folder / "pids.peak").unlink(missing_ok=True)
        if peak:
            (folder / "pids.peak").write_text(peak)
        counts = cgroup.counters.read()
        assert (counts.fork_failures, counts.pids_fuse_hits) == (4, own), (peak, limit)


def test_a_newer_kernel_counts_a_refused_fork_where_the_limit_was_hit(tmp_path: Path, limits: Admitted) -> None:
    cgroup = SandboxCgroup(find_tree("sandfleet", v2_root(tmp_path)), "a.1")
    cgroup.make()
    above = tmp_path / "pids.events.local"
    (tmp_path / "sandfleet/pids.events.local").write_text("max 1\n")
    above.write_text("max 2\n")
    for is_fresh in (True, False):
        cgroup.apply(limits, is_fresh=is_fresh)
        assert cgroup.counters.read().fork_failures == 0
    above.write_text("max 5\n")
    counts = cgroup.counters.read()
    assert (counts.fork_failures, counts.pids_fuse_hits) == (3, 0)


def test_v1_without_oom_notifications_tells_by_the_peak(tmp_path: Path, limits: Admitted) -> None:
    (tmp_path / "memory").mkdir()
    tree = find_tree("sandfleet", tmp_path, v1_mountinfo(tmp_path, "memory"))
    cgroup = SandboxCgroup(tree, "a.1")
    cgroup.make()
    cgroup.apply(limits)
    folder = tmp_path / "memory/sandfleet/a.1"
    (folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n")
    for peak, own_ooms in ((1 << 26, 1), ((1 << 26) - 4096, 1), (1 << 25, 0)):
        (folder / "memory.max_usage_in_bytes").write_text(f"{peak}\n")
        assert cgroup.counters.read() == Counts(oom_kills=1, own_ooms=own_ooms), peak


def v1_mountinfo(root: Path, *controllers: str) -> str:
    return "".join(
        f"3{n} 25 0:2{n} / {root}/{name} rw,relatime shared:9 - cgroup cgroup rw,{name}\n"
        for n, name in enumerate(controllers)
    )


def test_v1_uses_a_folder_a_controller(tmp_path: Path, limits: Admitted) -> None:
    for name in ("memory", "pids", "cpu", "cpuacct"):
        (tmp_path / name).mkdir()
    mountinfo = v1_mountinfo(tmp_path, "memory", "pids", "cpu", "cpuacct")
    tree = find_tree("sandfleet", tmp_path, mountinfo)
    assert (tree.version, tree.enforceable) == (1, frozenset({"memory", "cpu", "pids"}))
    cgroup = SandboxCgroup(tree, "a.1")
    cgroup.make()
    cgroup.apply(limits)
    assert (tmp_path / "memory/sandfleet/a.1/memory.limit_in_bytes").read_text() == str(1 << 26)
    assert (tmp_path / "cpu/sandfleet/a.1/cpu.cfs_quota_us").read_text() == "50000"
    assert len(cgroup.procs_files) == 4


def test_v1_co_mounted_controllers_are_entered_once(tmp_path: Path) -> None:
    (tmp_path / "cpu").mkdir()
    line = f"31 25 0:27 / {tmp_path}/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
    assert parse_v1_mounts(line) == {"cpu": tmp_path / "cpu", "cpuacct": tmp_path / "cpu"}
    assert len(SandboxCgroup(find_tree("s", tmp_path, line), "a").procs_files) == 1


def test_a_missing_controller_is_not_called_enforced(tmp_path: Path) -> None:
    (tmp_path / "pids").mkdir()
    (tmp_path / "memory").write_text("no folder can be made here")
    tree = find_tree("sandfleet", tmp_path, v1_mountinfo(tmp_path, "pids", "memory"))
    assert tree.enforceable == {"pids"}


def test_a_limit_the_kernel_refuses_is_not_called_enforced(tmp_path: Path, limits: Admitted) -> None:
    cgroup = SandboxCgroup(find_tree("sandfleet", v2_root(tmp_path)), "a.1")
    folder = tmp_path / "sandfleet/a.1"
    (folder / "memory.max").mkdir(parents=True)  # a file that cannot be written
    cgroup.apply(limits)
    assert cgroup.enforced == {"cpu", "pids"}


def test_without_a_quota_no_cpu_file_is_written(limits: Admitted) -> None:
    free = Admitted(**{**vars(limits), "cpu_quota": 0})
    assert not [
        file for version in (1, 2) for controller, file, *_ in limit_files(version, free) if controller == "cpu"
    ]


def test_a_name_that_is_taken_is_an_error(tmp_path: Path, limits: Admitted) -> None:
    tree = find_tree("sandfleet", v2_root(tmp_path))
    (tmp_path / "sandfleet/a.1/inside").mkdir(parents=True)
    with pytest.raises(HostResources):
        SandboxCgroup(tree, "a.1").make()


def test_the_first_limits_of_a_cgroup_are_set_without_a_look_back(tmp_path: Path, limits: Admitted) -> None:
    def names(*, is_fresh: bool) -> list[tuple[str, str]]:
        return [(file, text) for _, file, text, _ in limit_files(1, limits, is_fresh=is_fresh)]

    memory = [("memory.limit_in_bytes", str(1 << 26)), ("memory.memsw.limit_in_bytes", str(1 << 26))]
    assert names(is_fresh=True)[:2] == memory
    assert names(is_fresh=False)[:3] == [("memory.memsw.limit_in_bytes", "-1"), *memory]

    cgroup = SandboxCgroup(find_tree("sandfleet", v2_root(tmp_path)), "a.1")
    cgroup.make()
    cgroup.apply(limits, is_fresh=True)
    write_v2_events(tmp_path / "sandfleet/a.1", oom=1, oom_kill=2)
    (tmp_path / "sandfleet/a.1/pids.events").write_text("max 3\n")
    counts = cgroup.counters.read()
    assert (counts.oom_kills, counts.own_ooms, counts.fork_failures) == (2, 1, 3)


def test_an_end_is_read_once_there_is_a_descriptor_again(tmp_path: Path, limits: Admitted) -> None:
    cgroup = SandboxCgroup(find_tree("sandfleet", v2_root(tmp_path)), "a.1")
    cgroup.make()
    folder = tmp_path / "sandfleet/a.1"
    (folder / "memory.events.local").write_text("oom 0\noom_kill 0\n")
    cgroup.counters.start(limits.memory_bytes)
    (folder / "memory.events.local").write_text("oom 1\noom_kill 1\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        assert not cgroup.counters.has_oom_kill
        assert cgroup.counters.read_cpu_seconds() is None
        assert cgroup.counters.read_memory_bytes() is None
        threading.Timer(0.3, resource.setrlimit, (resource.RLIMIT_NOFILE, (soft, hard))).start()
        counts, _ = cgroup.counters.read_end()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert counts == Counts(oom_kills=1, own_ooms=1)


def test_an_end_that_cannot_be_read_is_the_hosts_lack(
    tmp_path: Path, limits: Admitted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sandfleet_worker.sandbox.cgroup.counters.DESCRIPTOR_WAIT_SECONDS", 0.1)
    cgroup = SandboxCgroup(find_tree("sandfleet", v2_root(tmp_path)), "a.1")
    cgroup.make()
    cgroup.counters.start(limits.memory_bytes)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            cgroup.counters.read_end()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
