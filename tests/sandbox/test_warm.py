"""Spares: each serves one job, none is dead or stale, and there are never more than allowed."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from leftovers import left_behind
from sandfleet_config.codes import ErrorCode
from sandfleet_config.settings import HostSettings, ImagesSettings, WarmSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.cgroup import cgroup as cgroups
from sandfleet_worker.sandbox.cgroup.cgroup import SandboxCgroup
from sandfleet_worker.sandbox.cgroup.tree import find_tree
from sandfleet_worker.sandbox.image.store import ImageStore
from sandfleet_worker.sandbox.janitor import sweep
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.process import remover
from sandfleet_worker.sandbox.process.abilities import AbilityFinder
from sandfleet_worker.sandbox.process.sandbox import Sandbox
from sandfleet_worker.sandbox.process.sentry import find_sentry
from sandfleet_worker.sandbox.process.supervision import Supervision
from sandfleet_worker.sandbox.runner import RunscRunner
from sandfleet_worker.sandbox.warm import fill_schedule
from sandfleet_worker.sandbox.warm import pool as pool_module
from sandfleet_worker.sandbox.warm.boot_limit import BootLimit
from sandfleet_worker.sandbox.warm.demand import Demand, HostLoad
from sandfleet_worker.sandbox.warm.pool import WarmPool
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandfleet_worker.sandbox.ending import Ending
    from sandfleet_worker.sandbox.process.plan import Plan
    from sandfleet_worker.sandbox.process.runsc import RunscBinary

SIZE = 2
HAS_IDLE_CORES = HostLoad.has_idle_cores
BOOT_SECONDS = 60.0


@pytest.fixture
def warm_host(host: HostSettings) -> HostSettings:
    return host.model_copy(update={"warm": WarmSettings(size=SIZE)})


@pytest.fixture
def warm(warm_host: HostSettings) -> Iterator[RunscRunner]:
    """Return a runner with `SIZE` spares; at the end nothing of it may be left."""
    with RunscRunner(warm_host) as runner:
        yield runner
    assert not left_behind(warm_host), "the runner left something on the host"


def plan_of(runner: RunscRunner, image: str = "busybox") -> Plan:
    return runner._new_plan(runner.images.resolve(image), runner.config.runsc.platform)


def execute(runner: RunscRunner, *command: str, **fields: object) -> Ending:
    spec = SandboxSpec.model_validate({"image": "busybox", "command": command, "timeout": 20, **fields})
    return runner.execute(admit(spec, runner.config))


def wait_idle(runner: RunscRunner, count: int = SIZE, image: str = "busybox") -> None:
    plan = plan_of(runner, image)
    wait_until(
        lambda: runner._provider.pool.count_idle(plan) >= count, BOOT_SECONDS, f"{count} sandboxes of {image} are up"
    )


def idle(runner: RunscRunner, image: str = "busybox") -> list[Sandbox]:
    return [sandbox for sandbox in runner._provider.pool._spares.by_plan[plan_of(runner, image)] if sandbox.is_warm]


def sentry_of(sandbox: Sandbox) -> int:
    pid = find_sentry(sandbox.paths)
    assert pid is not None
    return pid


def test_a_spare_is_up_before_the_next_job_of_its_image(warm: RunscRunner) -> None:
    first = execute(warm, "true")
    wait_idle(warm)
    second = execute(warm, "true")

    assert (first.runtime.warm, second.runtime.warm) == (False, True)
    assert second.verdict.code is ErrorCode.OK
    # Its time is that since it got its job, not since it was booted.
    assert second.timing.create is not None
    assert first.timing.create is not None
    assert second.timing.create < first.timing.create


def test_no_spare_is_booted_while_all_cores_are_busy(warm: RunscRunner, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(HostLoad, "has_idle_cores", HAS_IDLE_CORES)
        with busy_cores():
            execute(warm, "true")
            time.sleep(3)
            assert not any(warm._provider.pool._spares.by_plan.values())
            assert not execute(warm, "true").runtime.warm
    wait_idle(warm)


@contextlib.contextmanager
def busy_cores() -> Iterator[None]:
    """Keep every core busy, and a bit more: none is idle between two polls."""
    with contextlib.ExitStack() as stack:
        for _ in range(2 * (os.cpu_count() or 1)):
            process = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(process.kill)
        time.sleep(0.5)
        yield


def test_there_are_never_more_spares_than_allowed(warm: RunscRunner) -> None:
    most = 0
    for number in range(12):
        execute(warm, "true", image=("busybox", "python")[number % 2])
        most = max(most, sum(map(len, warm._provider.pool._spares.by_plan.values())))
        time.sleep(0.05)
    wait_until(lambda: warm._provider.pool.count_idle() == SIZE, BOOT_SECONDS, "all are up")

    assert most <= SIZE
    # Each image that was asked for gets its share.
    wait_until(
        lambda: (
            warm._provider.pool.count_idle(plan_of(warm))
            == warm._provider.pool.count_idle(plan_of(warm, "python"))
            == 1
        ),
        BOOT_SECONDS,
        "each image has one",
    )


def test_each_sandbox_has_one_job(warm: RunscRunner) -> None:
    """What a job leaves, where it may write at all, the next one does not find."""
    leave = "echo mine > /tmp/mine; echo mine > /dev/shm/mine; (sleep 600 &)"
    find = "ls -A /tmp /dev/shm; cat /proc/[0-9]*/comm"
    execute(warm, "true")
    folders: set[str] = set()
    for _ in range(3):
        wait_idle(warm)
        taken = {sandbox.paths.folder.name for sandbox in idle(warm)}
        assert not taken & folders, "a sandbox that had a job is in the stock again"
        left = execute(warm, "sh", "-c", leave)
        wait_idle(warm)
        found = execute(warm, "sh", "-c", find)
        assert left.runtime.warm
        assert found.runtime.warm
        assert "mine" not in found.stdout.text
        assert "cat" in found.stdout.text
        assert "sleep" not in found.stdout.text, "a process of the job before lives on"
        folders |= taken


def test_a_dead_spare_is_never_given_out(warm: RunscRunner) -> None:
    execute(warm, "true")
    wait_idle(warm)
    for _ in range(5):
        wait_idle(warm)
        # At the first moment at which a sandbox may be given out.
        for sandbox in idle(warm):
            os.kill(sentry_of(sandbox), signal.SIGKILL)
        ending = execute(warm, "echo", "well")
        assert (ending.verdict.code, ending.stdout.text) == (ErrorCode.OK, "well\n"), ending.verdict.message
    wait_idle(warm)
    assert execute(warm, "true").runtime.warm


def test_a_spare_of_a_replaced_image_is_never_given_out(
    warm_host: HostSettings, images_root: Path, tmp_path: Path
) -> None:
    store = ImageStore(tmp_path / "store")
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    (tree / "version").write_text("old\n")
    store.add("app", f"rootfs:{tree}")
    with RunscRunner(warm_host.model_copy(update={"images": ImagesSettings(root=store.root)})) as runner:
        command = ("sh", "-c", "while read line; do echo $line; done < /version")
        assert execute(runner, *command, image="app").stdout.text == "old\n"
        wait_idle(runner, image="app")
        (tree / "version").write_text("new\n")
        store.add("app", f"rootfs:{tree}")

        ending = execute(runner, *command, image="app")
        assert (ending.stdout.text, ending.runtime.warm) == ("new\n", False)
        wait_idle(
            runner, 1, image="app"
        )  # the other place is the old image's: it is still here, and was asked for of late
        assert execute(runner, *command, image="app").stdout.text == "new\n"
        plan = plan_of(runner, "app")
        store.remove("app")
        wait_until(lambda: not runner._provider.pool.count_idle(plan), 15, "nothing of a removed image is kept")


def test_an_idle_spare_takes_no_cpu_and_little_memory(warm: RunscRunner) -> None:
    execute(warm, "true")
    wait_idle(warm)
    sandboxes = idle(warm)
    before = [sandbox.cgroup.counters.usage().cpu_seconds for sandbox in sandboxes]
    states = {psutil.Process(sentry_of(sandbox)).status() for sandbox in sandboxes}
    assert (states == {psutil.STATUS_STOPPED}) != plan_of(warm).binary.abilities.is_quiet
    time.sleep(2)
    after = [sandbox.cgroup.counters.usage() for sandbox in sandboxes]

    for start, end in zip(before, after, strict=True):
        assert start is not None
        assert end.cpu_seconds is not None
        # Running on, each would have polled away some 40 ms.
        assert end.cpu_seconds - start < 0.005
        assert (end.memory_peak_bytes or 0) <= 48 << 20


def test_the_clock_is_right_after_idling(warm: RunscRunner) -> None:
    execute(warm, "true", image="python")
    wait_idle(warm, image="python")
    time.sleep(5)
    code = "import time; a = time.monotonic(); print(time.time()); time.sleep(0.5); print(time.monotonic() - a)"
    ending = execute(warm, "python3", "-S", "-c", code, image="python")
    now, slept = map(float, ending.stdout.text.split())

    assert ending.runtime.warm
    assert abs(time.time() - now) < 2
    assert 0.45 < slept < 1.5


def test_a_job_with_less_memory_than_an_idle_spare_may_use_boots_within_its_own(warm: RunscRunner) -> None:
    execute(warm, "true")
    wait_idle(warm)
    ending = execute(warm, "true", resources={"memory_bytes": "40MiB"})

    assert (ending.verdict.code, ending.runtime.warm) == (ErrorCode.OK, False)
    assert (ending.usage.memory_peak_bytes or 0) <= 40 << 20


def test_a_drain_leaves_running_jobs_alone(warm: RunscRunner) -> None:
    execute(warm, "true")
    wait_idle(warm)
    endings: list[Ending] = []
    job = threading.Thread(target=lambda: endings.append(execute(warm, "sleep", "2")))
    job.start()
    wait_until(lambda: len(idle(warm)) < SIZE, 10, "the job has its sandbox")
    warm.drain()

    assert warm._provider.pool.count_idle() == 0
    assert not warm._provider.pool._spares.unbooted
    job.join()
    assert (endings[0].verdict.code, endings[0].runtime.warm) == (ErrorCode.OK, True)
    time.sleep(0.5)
    assert warm._provider.pool.count_idle() == 0, "nothing is booted ahead after a drain"
    # Jobs still run, as those that a worker had claimed before it was told to stop.
    assert execute(warm, "true").verdict.code is ErrorCode.OK


def test_a_spare_that_is_destroyed_while_it_boots_releases_its_boot_slot(warm: RunscRunner) -> None:
    def all_free() -> bool:
        slots = [slot for _ in range(warm._boot_limit.limit) if (slot := warm._boot_limit.try_acquire())]
        for slot in slots:
            slot.release()
        return len(slots) == warm._boot_limit.limit

    for _ in range(5):
        # The pool's thread may be in the middle of one more boot when the drain returns; it gives that up right after.
        wait_until(all_free, 5, "every boot slot is free")
        warm._provider.pool._is_draining = False
        warm._provider.pool.pin(plan_of(warm))
        wait_until(lambda: any(warm._provider.pool._spares.by_plan.values()), BOOT_SECONDS, "one boots")
        warm.drain()
    wait_until(all_free, 5, "every boot slot is free")
    assert execute(warm, "true").verdict.code is ErrorCode.OK


def test_a_dead_unbooted_sandbox_is_never_given_out(warm: RunscRunner) -> None:
    execute(warm, "true")
    wait_until(
        lambda: len(warm._provider.pool._spares.unbooted) == warm._boot_limit.limit,
        BOOT_SECONDS,
        "unbooted sandboxes are open",
    )
    wait_idle(warm)
    with warm._provider.pool._lock:
        dead = list(warm._provider.pool._spares.unbooted)
        for unbooted in dead:
            unbooted.kill()
    for unbooted in dead:
        unbooted.wait_exit()
    # Less memory than an idle sandbox may use: it boots one of its own, from an unbooted one.
    ending = execute(warm, "echo", "well", resources={"memory_bytes": "40MiB"})
    assert (ending.verdict.code, ending.stdout.text) == (ErrorCode.OK, "well\n"), ending.verdict.message


def test_the_pool_backs_off_while_no_sandbox_boots_and_outcomes_say_why(
    warm_host: HostSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    note_failure = WarmPool._note_failure

    def note(pool: WarmPool, why: str) -> None:
        told.append(why)
        note_failure(pool, why)

    monkeypatch.setattr(WarmPool, "_note_failure", note)
    with RunscRunner(warm_host) as runner:
        plan = plan_of(runner)
        runner._provider.pool.pin(type(plan)(plan.binary, "no-such-platform", plan.erofs, plan.identity))
        wait_until(lambda: told, BOOT_SECONDS, "the failure is told")
        time.sleep(1.5)
        # One or two boots at a time, and a pause of a second after the first failure, of two after the next.
        assert len(told) <= 6, "it is tried again and again without a pause"
        assert "no-such-platform" in told[0]
        assert execute(runner, "true").verdict.code is ErrorCode.OK
    assert not left_behind(warm_host)


def test_images_named_in_the_settings_are_up_before_the_first_job(host: HostSettings) -> None:
    settings = host.model_copy(update={"warm": WarmSettings(size=1, images=("busybox", "no-such-image"))})
    with RunscRunner(settings) as runner:
        runner.warm_up()
        wait_idle(runner, 1)
        assert execute(runner, "true").runtime.warm


def test_a_killed_worker_leaves_no_spare(warm_host: HostSettings) -> None:
    tree = find_tree(warm_host.runsc.cgroup_parent)
    root = str(warm_host.runsc.root_dir)
    wish = {"root_dir": root, "images": str(warm_host.images.root), "sandboxes": 1, "warm": SIZE}
    with RunscRunner(warm_host) as runner:
        is_quiet = plan_of(runner).binary.abilities.is_quiet
    with subprocess.Popen(
        [sys.executable, Path(__file__).with_name("victim.py")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as victim:
        assert victim.stdin is not None
        victim.stdin.write(json.dumps(wish).encode() + b"\n")
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


def test_spares_of_an_image_that_nobody_asks_for_any_more_are_given_back(host: HostSettings) -> None:
    with RunscRunner(host.model_copy(update={"warm": WarmSettings(size=SIZE, idle_seconds=1)})) as runner:
        execute(runner, "true")
        wait_idle(runner)
        folders = [sandbox.paths.folder for sandbox in idle(runner)]
        wait_until(lambda: not any(folder.exists() for folder in folders), 20, "they are gone")
        assert not any(runner._provider.pool._spares.by_plan.values())
        assert execute(runner, "true").verdict.code is ErrorCode.OK


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


def test_spares_that_need_no_stop_are_warm_as_soon_as_they_are_up(
    warm_host: HostSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete = AbilityFinder.complete

    def say_quiet(finder: AbilityFinder, binary: RunscBinary, platform: str) -> RunscBinary:
        known = complete(finder, binary, platform)
        return known.with_abilities(replace(known.abilities, is_quiet=True))

    monkeypatch.setattr(AbilityFinder, "complete", say_quiet)
    with RunscRunner(warm_host) as runner:
        execute(runner, "true")
        wait_idle(runner)
        assert psutil.STATUS_STOPPED not in {psutil.Process(sentry_of(sandbox)).status() for sandbox in idle(runner)}
        ending = execute(runner, "echo", "well")
        assert (ending.verdict.code, ending.stdout.text, ending.runtime.warm) == (ErrorCode.OK, "well\n", True)
        wait_idle(runner)
        for sandbox in idle(runner):
            os.kill(sentry_of(sandbox), signal.SIGKILL)
        wait_until(lambda: execute(runner, "true").runtime.warm, 30, "dead ones are replaced")


CALLED_BY_THE_THREAD = [
    (HostLoad, "has_idle_cores"),
    (HostLoad, "has_free_memory"),
    (Demand, "targets"),
    (Demand, "plans"),
    (BootLimit, "try_acquire"),
    (Sandbox, "open"),
    (Sandbox, "boot"),
    (Sandbox, "mark_warm"),
    (Sandbox, "stop"),
    (Sandbox, "check_stopped"),
    (SandboxCgroup, "limit_memory"),
    (Supervision, "poll"),
    (Supervision, "fileno"),
    (WarmPool, "_find_timeout"),
    (WarmPool, "_remove_stale"),
]


CALLED_IF = {True: {"mark_warm"}, False: {"stop", "check_stopped"}}
"""What is not called where sandboxes have to stop while they idle, and where not."""


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


def test_the_pool_recovers_from_an_error_wherever_its_thread_calls_out(
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


def test_a_fatal_error_of_the_pools_thread_is_told_and_harms_no_job(
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
