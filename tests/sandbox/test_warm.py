"""Spares: each serves one job, none is dead or stale, and there are never more than allowed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import psutil
import pytest
from leftovers import left_behind
from sandfleet_config.codes import ErrorCode
from sandfleet_config.settings import HostSettings
from sandfleet_worker.sandbox.process.abilities import AbilityFinder
from sandfleet_worker.sandbox.runner import RunscRunner
from sandfleet_worker.sandbox.warm.booter import SpareBooter
from sandfleet_worker.sandbox.warm.demand import HostLoad
from waiting import wait_until
from warmhost import BOOT_SECONDS, SIZE, execute, idle, plan_of, sentry_of, wait_idle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_worker.sandbox.ending import Ending
    from sandfleet_worker.sandbox.process.runsc import RunscBinary
HAS_IDLE_CORES = HostLoad.has_idle_cores


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
    """The next job does not find what one has left where it may write."""
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
        # The pool's thread may be in the middle of one more boot when the drain returns; it gives
        # that up right after.
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
    note_failure = SpareBooter.note_failure

    def note(booter: SpareBooter, why: str) -> None:
        told.append(why)
        note_failure(booter, why)

    monkeypatch.setattr(SpareBooter, "note_failure", note)
    with RunscRunner(warm_host) as runner:
        plan = plan_of(runner)
        runner._provider.pool.pin(type(plan)(plan.binary, "no-such-platform", plan.erofs, plan.identity))
        wait_until(lambda: told, BOOT_SECONDS, "the failure is told")
        time.sleep(1.5)
        # One or two boots at a time, and a pause of a second after the first failure, of two after
        # the next.
        assert len(told) <= 6, "it is tried again and again without a pause"
        assert "no-such-platform" in told[0]
        assert execute(runner, "true").verdict.code is ErrorCode.OK
    assert not left_behind(warm_host)


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
