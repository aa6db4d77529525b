"""The sandboxes of killed workers are removed, and nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from leftovers import left_behind
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import HostResources
from sandfleet_worker.sandbox import janitor
from sandfleet_worker.sandbox.cgroup.tree import CgroupTree, find_tree
from sandfleet_worker.sandbox.janitor import LOCK_NAME, Ownership, SweepReport, sweep
from sandfleet_worker.sandbox.runner import RunscRunner

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Run
    from sandfleet_config.settings import HostSettings

SANDBOXES = 2
VICTIM = Path(__file__).with_name("victim.py")


class Victim:
    """A worker process with running sandboxes."""

    def __init__(self, host: HostSettings) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(VICTIM)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        request = {"root_dir": str(host.runsc.root_dir), "images": str(host.images.root), "sandboxes": SANDBOXES}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        self.owner = self.process.stdout.readline().strip()
        self.folder = host.runsc.root_dir / self.owner
        for _ in range(SANDBOXES):
            assert self.process.stdout.readline() == "started\n"

    @property
    def processes(self) -> list[int]:
        mark = f"--root={self.folder}/"
        return [pid for pid, words in janitor._processes() if any(word.startswith(mark) for word in words)]

    @property
    def cgroups(self) -> list[Path]:
        return list(janitor._find_cgroups(self.owner, find_tree("sandfleet")))

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


@pytest.fixture
def victim(host: HostSettings) -> Iterator[Victim]:
    victim = Victim(host)
    yield victim
    victim.close()
    sweep(host.runsc.root_dir, find_tree("sandfleet"))


@pytest.fixture
def tree() -> CgroupTree:
    return find_tree("sandfleet")


def wait_until(is_true: Callable[[], object], seconds: float) -> float:
    started = time.monotonic()
    while not is_true():
        assert time.monotonic() - started < seconds
        time.sleep(0.005)
    return time.monotonic() - started


def test_sandboxes_die_with_their_worker(victim: Victim) -> None:
    assert len(victim.processes) >= 2 * SANDBOXES
    victim.kill()
    wait_until(lambda: not victim.processes, 2)
    wait_until(lambda: not any((path / "cgroup.procs").read_text() for path in victim.cgroups), 2)


def test_a_sweep_leaves_nothing_of_a_killed_worker(victim: Victim, host: HostSettings) -> None:
    victim.kill()
    assert victim.folder.exists()
    assert victim.cgroups
    with RunscRunner(host) as runner:
        report = runner.sweep()
        assert (report.owners, report.sandboxes) == (1, SANDBOXES)
        assert runner.sweep() == SweepReport()
    assert not victim.folder.exists()
    assert not victim.cgroups
    assert not left_behind(host)


def test_a_sweep_kills_processes_that_outlived_their_parent(
    host: HostSettings, tree: CgroupTree, sleeper: subprocess.Popen[bytes]
) -> None:
    """A cgroup without a folder: the worker died between the removal of the two."""
    folder = make_stale(host)
    for parent in set(tree.parents.values()):
        (parent / f"{folder.name}.7").mkdir()
        (parent / f"{folder.name}.7/cgroup.procs").write_text(str(sleeper.pid))
    # As PID 1 would reap it: a zombie counts as a member.
    reaper = threading.Thread(target=sleeper.wait)
    reaper.start()
    assert sweep(host.runsc.root_dir, tree) == SweepReport(owners=1, sandboxes=1, processes=0)
    reaper.join(5)
    assert sleeper.returncode == -signal.SIGKILL
    assert not list(janitor._find_cgroups(folder.name, tree))
    assert not folder.exists()


def test_without_cgroups_processes_are_found_by_their_state_folder(host: HostSettings) -> None:
    folder = make_stale(host)
    (folder / f"{folder.name}.1").mkdir()
    script = "import time; time.sleep(600)"
    ours = [sys.executable, "-c", script, f"--root={folder}/{folder.name}.1/state"]
    neighbours = [sys.executable, "-c", script, f"--root={folder}0/x"]
    with subprocess.Popen(ours) as found, subprocess.Popen(neighbours) as spared:
        reaper = threading.Thread(target=found.wait)
        reaper.start()
        assert sweep(host.runsc.root_dir, CgroupTree(version=2, parents={})) == SweepReport(1, 1, 1)
        assert spared.poll() is None
        spared.kill()
        reaper.join(5)
        assert found.returncode == -signal.SIGKILL


def test_a_live_neighbour_is_untouched(victim: Victim, host: HostSettings, runner: RunscRunner, run: Run) -> None:
    outcomes = []
    thread = threading.Thread(target=lambda: outcomes.append(run("sh", "-c", "sleep 3; echo whole")))
    thread.start()
    with RunscRunner(host) as janitor_runner:
        wait_until(lambda: list(janitor._find_cgroups(runner._owner.name, runner._tree)), 10)
        before = set(victim.processes)
        assert janitor_runner.sweep() == SweepReport()
        assert before <= set(victim.processes)
        victim.kill()
        assert janitor_runner.sweep().owners == 1
    thread.join()
    assert [(outcome.code, outcome.stdout.text) for outcome in outcomes] == [(ErrorCode.OK, "whole\n")]


def test_a_stopped_worker_is_not_swept(victim: Victim, host: HostSettings, tree: CgroupTree) -> None:
    victim.process.send_signal(signal.SIGSTOP)
    before = set(victim.processes)
    assert sweep(host.runsc.root_dir, tree) == SweepReport()
    assert victim.folder.exists()
    assert before <= set(victim.processes)
    assert len(victim.cgroups) == SANDBOXES * len(set(tree.parents.values()))


def test_janitors_that_race_count_each_sandbox_once(victim: Victim, host: HostSettings, tree: CgroupTree) -> None:
    victim.kill()
    start = threading.Barrier(4)

    def race() -> SweepReport:
        start.wait()
        return sweep(host.runsc.root_dir, tree)

    with ThreadPoolExecutor(4) as pool:
        reports = [future.result() for future in [pool.submit(race) for _ in range(4)]]
    assert (sum(report.owners for report in reports), sum(report.sandboxes for report in reports)) == (1, SANDBOXES)
    assert not victim.folder.exists()


def test_workers_that_start_during_sweeps_keep_their_folders(host: HostSettings, tree: CgroupTree) -> None:
    root = host.runsc.root_dir
    is_over = threading.Event()

    def sweep_on() -> None:
        while not is_over.is_set():
            sweep(root, tree)

    sweeper = threading.Thread(target=sweep_on)
    sweeper.start()
    try:
        for _ in range(50):
            owner = Ownership(root)
            assert (owner.folder / LOCK_NAME).exists()
            owner.release(tree)
            assert not owner.folder.exists()
    finally:
        is_over.set()
        sweeper.join()


@pytest.mark.parametrize(
    "content", ["", LOCK_NAME, "{owner}.1/", "{owner}.1/state/x_sandbox:x.state", "probe/dev/shm/"]
)
def test_a_half_made_folder_is_removed(host: HostSettings, tree: CgroupTree, content: str) -> None:
    folder = make_stale(host, has_lock=False)
    path = folder / content.format(owner=folder.name)
    if content.endswith("/"):
        path.mkdir(parents=True)
    elif content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    report = sweep(host.runsc.root_dir, tree)
    assert report == SweepReport(owners=1, sandboxes=int(".1" in content), processes=0)
    assert sweep(host.runsc.root_dir, tree) == SweepReport()
    assert not folder.exists()


def test_folders_of_others_stay(host: HostSettings, tree: CgroupTree, tmp_path: Path) -> None:
    folder = make_stale(host)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (folder / f"{folder.name}.1").symlink_to(outside)
    other = host.runsc.root_dir / "somebody-elses"
    other.mkdir()
    sweep(host.runsc.root_dir, tree)
    assert other.exists()
    assert (outside / "file").exists()
    assert not folder.exists()


def test_a_cgroup_that_cannot_be_removed_is_tried_again(
    host: HostSettings, tree: CgroupTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_stale(host)
    cgroups = {parent / f"{folder.name}.1" for parent in tree.parents.values()}
    for path in cgroups:
        path.mkdir()

    def refuse(_folders: object) -> None:
        raise HostResources.of("busy")

    with monkeypatch.context() as patch:
        patch.setattr(janitor, "remove_cgroups", refuse)
        sweep(host.runsc.root_dir, tree)
    assert folder.exists()
    sweep(host.runsc.root_dir, tree)
    assert not folder.exists()
    assert not any(path.exists() for path in cgroups)


def test_a_worker_that_ends_leaves_a_stuck_sandbox_to_the_janitor(host: HostSettings, tree: CgroupTree) -> None:
    owner = Ownership(host.runsc.root_dir)
    for parent in set(tree.parents.values()):
        (parent / f"{owner.name}.1").mkdir()
    owner.release(tree)
    assert owner.folder.exists()
    assert sweep(host.runsc.root_dir, tree) == SweepReport(owners=1, sandboxes=1, processes=0)
    assert not owner.folder.exists()


def test_an_owner_that_cannot_be_judged_does_not_keep_the_leftovers_of_others(
    host: HostSettings, tree: CgroupTree, caplog: pytest.LogCaptureFixture
) -> None:
    folders = sorted(make_stale(host, has_lock=False) for _ in range(2))
    (folders[0] / LOCK_NAME).symlink_to(LOCK_NAME)  # ELOOP
    assert sweep(host.runsc.root_dir, tree) == SweepReport(owners=1)
    assert (folders[0].exists(), folders[1].exists()) == (True, False)
    assert folders[0].name in caplog.text


def test_no_folder_at_all_is_nothing_to_do(tmp_path: Path, tree: CgroupTree) -> None:
    assert sweep(tmp_path / "nowhere", tree) == SweepReport()


def make_stale(host: HostSettings, *, has_lock: bool = True) -> Path:
    folder = host.runsc.root_dir / f"{janitor.OWNER_PREFIX}{os.urandom(6).hex()}"
    folder.mkdir(parents=True)
    if has_lock:
        (folder / LOCK_NAME).touch()
    return folder
