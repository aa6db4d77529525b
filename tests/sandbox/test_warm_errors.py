"""Errors in the pool's thread and in the remover: no job is harmed, and no sandbox is lost."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from leftovers import left_behind
from sandfleet_config.codes import ErrorCode
from sandfleet_config.settings import HostSettings
from sandfleet_worker.sandbox.cgroup import cgroup as cgroups
from sandfleet_worker.sandbox.cgroup.cgroup import SandboxCgroup
from sandfleet_worker.sandbox.cgroup.tree import find_tree
from sandfleet_worker.sandbox.janitor import sweep
from sandfleet_worker.sandbox.process import remover
from sandfleet_worker.sandbox.process.idle import IdleState
from sandfleet_worker.sandbox.process.sandbox import Sandbox
from sandfleet_worker.sandbox.process.supervision import Supervision
from sandfleet_worker.sandbox.runner import RunscRunner
from sandfleet_worker.sandbox.warm import fill_schedule
from sandfleet_worker.sandbox.warm import pool as pool_module
from sandfleet_worker.sandbox.warm.boot_limit import BootLimit
from sandfleet_worker.sandbox.warm.demand import Demand, HostLoad
from sandfleet_worker.sandbox.warm.pool import WarmPool
from waiting import wait_until
from warmhost import BOOT_SECONDS, SIZE, execute, idle, plan_of, sentry_of, wait_idle

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_worker.sandbox.ending import Ending


def test_no_job_waits_for_the_removal_of_a_sandbox(warm: RunscRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    execute(warm, "true")
    wait_idle(warm)
    is_removing, may_go_on = threading.Event(), threading.Event()
    dead = idle(warm)
    for sandbox in dead:
        destroy = sandbox.try_destroy

        def wait_long(destroy: Callable[[], bool] = destroy) -> bool:
            is_removing.set()
            return may_go_on.wait(60) and destroy()

        monkeypatch.setattr(sandbox, "try_destroy", wait_long)
        os.kill(sentry_of(sandbox), signal.SIGKILL)
    started = time.monotonic()
    try:
        assert execute(warm, "true").verdict.code is ErrorCode.OK
        assert is_removing.wait(10)
        assert execute(warm, "true").verdict.code is ErrorCode.OK
        wait_idle(warm)  # the pool goes on, too
        assert time.monotonic() - started < 30
    finally:
        may_go_on.set()
    wait_until(lambda: not warm._provider.remover.count_pending(), 10, "they are gone")


def test_a_removal_that_failed_is_tried_again(warm: RunscRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "REMOVE_DEADLINE_SECONDS", 0.1)
    execute(warm, "true")
    wait_idle(warm)
    parent = warm._tree.parents["memory"]
    folders = [parent / sandbox.paths.folder.name for sandbox in idle(warm)]
    for folder in folders:
        (folder / "inner").mkdir()
    assert execute(warm, "true").verdict.code is ErrorCode.OK
    assert warm._provider.remover.count_pending() == 1
    for folder in folders:
        (folder / "inner").rmdir()
    # Not by `count_pending`: while the remover tries one, it is not counted.
    wait_until(lambda: sum(folder.exists() for folder in folders) == SIZE - 1, 20, "it is gone, and no other")
    wait_until(lambda: not warm._provider.remover.count_pending(), 10, "nothing is left to remove")


CALLED_BY_THE_THREAD = [
    (HostLoad, "has_idle_cores"),
    (HostLoad, "has_free_memory"),
    (Demand, "targets"),
    (Demand, "plans"),
    (BootLimit, "try_acquire"),
    (Sandbox, "open"),
    (Sandbox, "boot"),
    (IdleState, "mark_warm"),
    (IdleState, "stop"),
    (IdleState, "check_stopped"),
    (SandboxCgroup, "limit_memory"),
    (Supervision, "poll"),
    (Supervision, "fileno"),
    (WarmPool, "_find_timeout"),
    (WarmPool, "_remove_stale"),
]


CALLED_IF = {True: {"mark_warm"}, False: {"stop", "check_stopped"}}
"""Calls that are not made where sandboxes have to stop while they idle, and where not."""


class Failing:
    """A method that fails some times, in the pool's thread only."""

    def __init__(self, owner: type, name: str, error: Exception) -> None:
        self.left = 3
        call = getattr(owner, name)

        def method(*args: Any, **fields: Any) -> Any:
            if threading.current_thread().name == "warm" and self.left:
                self.left -= 1
                raise error
            return call(*args, **fields)

        self.method = method

    def has_failed(self) -> bool:
        return not self.left


def test_the_pool_recovers_from_an_error_in_each_call_of_its_thread(
    warm: RunscRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "STALE_POLL_SECONDS", 0.2)
    monkeypatch.setattr(fill_schedule, "FIRST_BACKOFF_SECONDS", 0.05)
    is_quiet = plan_of(warm).binary.abilities.is_quiet
    calls = [(owner, name) for owner, name in CALLED_BY_THE_THREAD if name not in CALLED_IF[not is_quiet]]
    errors = itertools.cycle([OSError(errno.EMFILE, "no descriptor"), KeyError("a bug")])
    for (owner, name), error in zip(calls, errors, strict=False):
        execute(warm, "true")
        wait_idle(warm)
        failing = Failing(owner, name, error)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, failing.method)
            execute(warm, "true")
            wait_until(failing.has_failed, 20, f"{name} is called")
            wait_idle(warm)
        assert warm._provider.pool._thread.is_alive, name
    slots = [slot for _ in range(warm._boot_limit.limit) if (slot := warm._boot_limit.try_acquire())]
    assert len(slots) == warm._boot_limit.limit, "a boot slot was lost"


def test_an_error_of_the_remover_loses_no_sandbox(warm: RunscRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remover, "FIRST_PAUSE_SECONDS", 0.1)
    execute(warm, "true")
    wait_idle(warm)
    dead = idle(warm)
    failed: set[str] = set()
    destroy = Sandbox.try_destroy

    def fail(sandbox: Sandbox) -> bool:
        if sandbox in dead and sandbox.paths.folder.name not in failed:
            failed.add(sandbox.paths.folder.name)
            raise KeyError
        return destroy(sandbox)

    monkeypatch.setattr(Sandbox, "try_destroy", fail)
    for sandbox in dead:
        os.kill(sentry_of(sandbox), signal.SIGKILL)
    wait_until(lambda: len(failed) == SIZE, 20, "their removal has failed")
    wait_until(lambda: not any(sandbox.paths.folder.exists() for sandbox in dead), 20, "they are gone all the same")
    wait_until(lambda: not warm._provider.remover.count_pending(), 10, "none is left")


def test_a_fatal_error_of_the_pools_thread_is_reported_and_harms_no_job(
    warm_host: HostSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    endings: list[Ending] = []

    def fail(_: HostLoad) -> bool:
        raise SystemExit

    with RunscRunner(warm_host) as runner:
        runner.call_on_failure(told.append)
        execute(runner, "true")
        wait_idle(runner)
        job = threading.Thread(target=lambda: endings.append(execute(runner, "sleep", "3")))
        job.start()
        wait_until(lambda: len(idle(runner)) < SIZE, 10, "the job has its sandbox")
        monkeypatch.setattr(HostLoad, "has_idle_cores", fail)
        wait_until(lambda: told, 20, "it is told")
        assert "SystemExit" in told[0]
        late: list[str] = []
        runner.call_on_failure(late.append)
        assert late == told, "who asks later hears it, too"
        wait_until(lambda: not runner._provider.pool.count_idle(), 10, "nothing idles any more")
        job.join()
        assert (endings[0].verdict.code, endings[0].runtime.warm) == (ErrorCode.OK, True)
        assert execute(runner, "true").verdict.code is ErrorCode.OK
    assert not left_behind(warm_host)


def test_a_killed_worker_leaves_no_spare(warm_host: HostSettings) -> None:
    tree = find_tree(warm_host.runsc.cgroup_parent)
    root = str(warm_host.runsc.root_dir)
    request = {"root_dir": root, "images": str(warm_host.images.root), "sandboxes": 1, "warm": SIZE}
    with RunscRunner(warm_host) as runner:
        is_quiet = plan_of(runner).binary.abilities.is_quiet
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("victim.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as victim:
        assert victim.stdin is not None
        victim.stdin.write(json.dumps(request).encode() + b"\n")
        victim.stdin.close()

        def stopped() -> int:
            found = 0
            for process in psutil.process_iter():
                with contextlib.suppress(psutil.Error):
                    words = process.cmdline()
                    is_ours = words[:1] == ["runsc-sandbox"] and root in " ".join(words)
                    found += is_ours and (is_quiet or process.status() == psutil.STATUS_STOPPED)
            return found

        # One that need not stop looks like the one that has a job.
        wait_until(lambda: stopped() == SIZE + is_quiet, BOOT_SECONDS, "all are up")
        victim.kill()
    report = sweep(warm_host.runsc.root_dir, tree)
    assert report.owners == 1
    assert report.sandboxes > SIZE
    assert not left_behind(warm_host)
