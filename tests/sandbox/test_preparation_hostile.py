"""Images whose code runs ahead and is hostile: jobs start without it, and nothing else suffers.

The hostile code stands before the program that prepares, as a `sitecustomize` or a module of the
image would.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from leftovers import left_behind
from preparedhost import execute, plan_of, wait_prepared
from sandfleet_config.codes import ErrorCode
from sandfleet_config.settings import HostSettings
from sandfleet_worker.sandbox import prepared_starts
from sandfleet_worker.sandbox.prepared.python_source import source
from sandfleet_worker.sandbox.process import preparing
from sandfleet_worker.sandbox.runner import RunscRunner
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandfleet_worker.sandbox.process.sandbox import Sandbox

TRIES = 3
MIB = 1 << 20


@pytest.fixture
def hostile(prepared_settings: HostSettings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], RunscRunner]]:
    """Return a function that opens a host whose image `python` runs `code` in each preparation."""
    runners: list[RunscRunner] = []

    def open_host(code: str, *, is_alone: bool = False, **settings: object) -> RunscRunner:
        monkeypatch.setattr(prepared_starts, "source", lambda: code if is_alone else f"{code}\n{source()}")
        prepared = prepared_settings.prepared.model_copy(update=settings)
        runners.append(RunscRunner(prepared_settings.model_copy(update={"prepared": prepared})))
        return runners[0]

    yield open_host
    for runner in runners:
        runner.close()
        assert not left_behind(runner.config), "a preparation left something on the host"


def idle(runner: RunscRunner) -> Sandbox:
    pool = runner._provider.pool
    with pool._lock:
        return next(spare for spare in pool._spares.by_plan[plan_of(runner)] if spare.is_warm)


def read_reason(runner: RunscRunner) -> str:
    """Ask for prepared spares until the preparation is in quarantine; return the reason."""

    def is_held() -> bool:
        check_others(runner)
        return bool(runner.read_prepared().quarantined)

    wait_until(is_held, 90, "the preparation is in quarantine")
    return runner.read_prepared().quarantined["python:python"]


def check_others(runner: RunscRunner) -> bool:
    """Check that a job of this image, and one of another image, end as ever."""
    own, other = execute(runner, "python3", "-c", "print(6 * 7)"), execute(runner, "echo", "well", image="busybox")
    assert (own.verdict.code, own.stdout.text, own.stderr.text) == (ErrorCode.OK, "42\n", "")
    assert (other.verdict.code, other.stdout.text) == (ErrorCode.OK, "well\n")
    return own.start != "prepared"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import socket; kept = socket.socket()", "socket"),
        ("import subprocess; kept = subprocess.Popen(['sleep', '600'])", "child process"),
        ("kept = open('/tmp/kept', 'w')", "open for writing"),
        ("open('/tmp/left', 'w').close()", "left a file: /tmp/left"),
        ("raise SystemExit(5)", "exited 5"),
        ("import os; os.abort()", "signal 6"),
        ("import os; os.write(6, b'E 0 0 1\\nS\\n')", "not understood"),
        ("import os; os.write(6, b'p' * 100000)", "too long"),
    ],
)
def test_a_preparation_that_leaves_something_is_refused_with_the_reason(
    hostile: Callable[..., RunscRunner], code: str, reason: str
) -> None:
    runner = hostile(code if "kept" not in code else f"import atexit\n{code}")
    assert reason in read_reason(runner)
    assert check_others(runner)


def test_a_preparation_that_never_returns_is_ended(hostile: Callable[..., RunscRunner]) -> None:
    runner = hostile("while True: pass", deadline_seconds=1.0)
    assert "did not end within" in read_reason(runner)


def test_a_preparation_that_fills_memory_fills_its_own(hostile: Callable[..., RunscRunner]) -> None:
    runner = hostile("kept = bytearray()\nwhile True: kept += b'x' * (1 << 20)", spare_bytes=96 * MIB)
    assert "more memory than 96 MiB" in read_reason(runner)


def test_a_fork_bomb_ahead_of_a_job_is_contained(hostile: Callable[..., RunscRunner]) -> None:
    """Its processes use up its memory or its time, whichever ends first on this host."""
    code = "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass"
    runner = hostile(code, deadline_seconds=2.0)
    reason = read_reason(runner)
    assert reason.startswith(("it needs more memory than 256 MiB", "the preparation did not end within"))


def test_output_ahead_of_a_job_is_not_the_job_s(hostile: Callable[..., RunscRunner]) -> None:
    runner = hostile("import os; os.write(8, b'forged'); os.write(9, b'forged')")
    assert "wrote to the output" in read_reason(runner)


def test_endless_output_ahead_costs_the_worker_nothing(hostile: Callable[..., RunscRunner]) -> None:
    code = "import os, threading\n"
    code += "def write():\n    while True: os.write(8, b'x' * 65536)\n"
    code += "threading.Thread(target=write, daemon=True).start()"
    runner = hostile(code)
    execute(runner, "python3", "-c", "pass")
    wait_prepared(runner)
    spare = idle(runner)
    time.sleep(1)
    assert spare.supervision.outputs.stdout.total_bytes == 0
    assert "wrote to the output" in read_reason(runner)


def test_threads_that_do_not_sleep_get_next_to_no_cpu_while_idle(hostile: Callable[..., RunscRunner]) -> None:
    code = "import threading\ndef spin():\n    while True: pass\n"
    code += "for _ in range(4): threading.Thread(target=spin, daemon=True).start()"
    runner = hostile(code)
    execute(runner, "python3", "-c", "pass")
    wait_prepared(runner)
    spare = idle(runner)
    time.sleep(0.5)
    before = spare.cgroup.counters.read_cpu_seconds()
    time.sleep(3)
    after = spare.cgroup.counters.read_cpu_seconds()
    assert before is not None
    assert after is not None
    assert after - before < 0.3, "a hundredth of a core, and not four cores"


def test_memory_that_grows_while_idle_is_bounded(hostile: Callable[..., RunscRunner]) -> None:
    code = "import threading, time\n"
    code += "def grow():\n    kept = []\n    time.sleep(1)\n    while True: kept.append(b'x' * (8 << 20))\n"
    code += "threading.Thread(target=grow, daemon=True).start()"
    runner = hostile(code)
    execute(runner, "python3", "-c", "pass")
    if not plan_of(runner).binary.abilities.is_quiet:  # a stopped sandbox does not grow at all
        wait_prepared(runner)
        spare = idle(runner)
        time.sleep(3)
        assert not spare.supervision.is_gone
        return
    wait_until(lambda: runner.read_prepared().quarantined, 200, "each of three has grown too much")
    assert "while it idled" in runner.read_prepared().quarantined["python:python"]
    check_others(runner)


def test_spares_that_the_pool_finds_grown_count_against_the_preparation(hostile: Callable[..., RunscRunner]) -> None:
    """A cgroup limit counts the page cache too, so a spare can grow past its bound and live."""
    runner = hostile("")
    execute(runner, "python3", "-c", "pass")

    def is_held() -> bool:
        pool = runner._provider.pool
        with pool._lock:
            for spare in pool._spares.by_plan.get(plan_of(runner), ()):
                if spare.is_warm and spare.prepared is not None:
                    spare.prepared.memory_bytes = 1 << 20
        return bool(runner.read_prepared().quarantined)

    wait_until(is_held, 200, "each of three has grown")
    assert "it grew past 1 MiB of memory while it idled" in runner.read_prepared().quarantined["python:python"]
    check_others(runner)


@pytest.mark.parametrize(
    "late",
    ["os.write(6, b'x I changed my mind\\n')", "os.write(6, b'p\\n')", "os._exit(0)", "os.kill(os.getpid(), 9)"],
)
def test_a_job_whose_interpreter_is_lost_starts_elsewhere(hostile: Callable[..., RunscRunner], late: str) -> None:
    code = "import os, threading, time\ndef late():\n    time.sleep(0.3)\n"
    code += f"    try: {late}\n    except OSError: pass  # a job has taken the interpreter before\n"
    code += "threading.Thread(target=late, daemon=True).start()"
    runner = hostile(code)
    deadline = time.monotonic() + 200  # spares boot while a core idles
    while not runner.read_prepared().quarantined and time.monotonic() < deadline:
        check_others(runner)
        time.sleep(1)  # a spare that is prepared by now is lost
    assert runner.read_prepared().quarantined


def test_a_job_that_is_not_taken_starts_elsewhere(
    hostile: Callable[..., RunscRunner], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(preparing, "TAKE_SECONDS", 1.0)
    runner = hostile("import os, time\nos.write(6, b'p\\n')\ntime.sleep(600)", is_alone=True, failures=1)
    execute(runner, "python3", "-c", "pass")
    wait_prepared(runner)
    assert check_others(runner), "the job had another sandbox"
    assert "did not start within" in read_reason(runner)


def test_the_verdict_of_a_lost_interpreter_s_job_is_the_job_s_own(hostile: Callable[..., RunscRunner]) -> None:
    """Whatever the image's code says ahead, a bad folder or command is told by a sandbox without it."""
    runner = hostile("")
    execute(runner, "python3", "-c", "pass")
    wait_prepared(runner)
    ending = execute(runner, "python3", "-c", "pass", working_dir="/no/such/folder")
    assert ending.verdict.code is ErrorCode.WORKING_DIR_INVALID
    assert ending.start != "prepared"


def test_a_crash_right_after_the_start_counts_against_the_preparation(hostile: Callable[..., RunscRunner]) -> None:
    code = "import os, signal"
    runner = hostile(code)
    crashed = 0
    execute(runner, "python3", "-c", "pass")
    while not runner.read_prepared().quarantined:
        wait_prepared(runner)
        ending = execute(runner, "python3", "-c", "import os; os.kill(os.getpid(), 11)")
        assert (ending.verdict.code, ending.verdict.signal) == (ErrorCode.SIGNALED, 11)
        assert ending.start == "prepared"
        crashed += 1
        assert crashed < 20, "early crashes are not counted"
    assert crashed >= 3
    assert check_others(runner)
