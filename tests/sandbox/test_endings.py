"""The world that a program sees, and how each of its ends comes back."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from jobcgroup import wait_job_cgroup
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import (
    Cancelled,
)
from sandfleet_config.settings import HostSettings, ImagesSettings, PolicySettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.image.store import ImageStore
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.process.cancellation import Cancellation
from sandfleet_worker.sandbox.runner import RunscRunner
from waiting import wait_until

if TYPE_CHECKING:
    from conftest import Run
    from sandfleet_worker.sandbox.process.runsc import RunscBinary

ROUNDS = ("cold", "warm")


def new_spec(*command: str, **fields: Any) -> SandboxSpec:
    return SandboxSpec.model_validate({"image": "busybox", "command": command, **fields})


@pytest.mark.parametrize("number", [0, 1, 2, 119, 120, 124, 125, 126, 127, 128, 137, 139, 255])
def test_the_programs_own_exit_is_its_own(run: Run, number: int) -> None:
    outcome = run("sh", "-c", f"exit {number}")
    assert (outcome.exit_code, outcome.signal) == (number, None)
    assert outcome.code is (ErrorCode.OK if number == 0 else ErrorCode.EXIT_NONZERO)


@pytest.mark.parametrize("name", ["HUP", "KILL", "SEGV", "TERM", "ABRT", "SYS"])
def test_a_fatal_signal_is_reported_by_number(python: Run, name: str) -> None:
    outcome = python(f"import os; os.kill(os.getpid(), {int(signal.Signals['SIG' + name])})")
    assert (outcome.code, outcome.signal, outcome.exit_code) == (ErrorCode.SIGNALED, signal.Signals["SIG" + name], None)


def test_a_non_zero_exit_is_returned_and_not_raised(runner: RunscRunner) -> None:
    spec = new_spec("sh", "-c", "echo out; echo err >&2; exit 3")
    before = spec.model_dump_json()
    result = runner.run(spec)
    assert (result.exit_code, result.stdout, result.stderr) == (3, "out\n", "err\n")
    assert result.duration > 0
    assert spec.model_dump_json() == before


def test_bytes_that_are_not_utf8_arrive_unchanged(python: Run) -> None:
    outcome = python("import os; os.write(1, bytes(range(256))); os.write(2, bytes(range(255, -1, -1)))")
    assert outcome.stdout.bytes == bytes(range(256))
    assert outcome.stderr.bytes == bytes(range(255, -1, -1))
    assert not outcome.stdout.truncated


def test_stdin_is_fed_and_ends(run: Run) -> None:
    data = bytes(range(256)) * 500
    assert run("cat", stdin=data, output={"max_bytes": "1MiB"}).stdout.bytes == data
    assert run("cat").stdout.bytes == b""


def test_a_program_that_never_reads_its_stdin_ends_well(run: Run) -> None:
    assert run("true", stdin=b"x" * 200_000).code is ErrorCode.OK


def test_background_children_do_not_hold_the_job(run: Run) -> None:
    started = time.monotonic()
    outcome = run("sh", "-c", "sleep 60 & (setsid sleep 60 &) ; echo done")
    assert (outcome.code, outcome.stdout.text) == (ErrorCode.OK, "done\n")
    assert time.monotonic() - started < 10


def test_the_programs_world(run: Run) -> None:
    outcome = run(
        "sh", "-c", 'id -u; id -g; pwd; hostname; echo "$PATH $HOME $A"; touch $HOME/x && echo ok',
        env={"A": "1 2"}, working_dir="/tmp",
    )  # fmt: skip
    uid, gid, folder, hostname, env, touched = outcome.stdout.text.splitlines()
    assert (uid, gid, folder, hostname, touched) == ("65534", "65534", "/tmp", "sandbox", "ok")
    assert env.startswith("/usr/local/sbin:")
    assert env.endswith(" 1 2")


@pytest.mark.parametrize("is_allowed", [False, True])
def test_membarrier_has_commands_if_the_host_allows_it(
    host: HostSettings, runsc: RunscBinary, *, is_allowed: bool
) -> None:
    """Where it costs no time it is always there."""
    number = {"x86_64": 324, "aarch64": 283}[platform.machine()]
    code = f"import ctypes; call = ctypes.CDLL(None).syscall; print(call({number}, 0, 0) > 0, call({number}, 1, 0))"
    settings = host.runsc.model_copy(update={"membarrier": is_allowed})
    with RunscRunner(host.model_copy(update={"runsc": settings})) as runner:
        spec = SandboxSpec(image="python", command=["python3", "-c", code])
        assert runner.run(spec).stdout == ("True 0\n" if is_allowed or runsc.abilities.is_quiet else "False -1\n")


def test_root_by_policy_has_no_capabilities(host: HostSettings) -> None:
    allowed = host.model_copy(update={"policy": PolicySettings(allow_root=True)})
    with RunscRunner(allowed) as runner:
        spec = new_spec(
            "sh", "-c", "id -u; grep CapEff /proc/self/status; chown 1:1 /tmp; mount -t tmpfs x /mnt; echo $?"
        )
        result = runner.run(spec.model_copy(update={"security": spec.security.model_copy(update={"user": "0:0"})}))
    lines = result.stdout.splitlines()
    assert lines[0] == "0"
    assert lines[1].split()[1].strip("0") == ""
    assert lines[-1] != "0"


def test_an_image_file_that_is_cut_under_a_job_is_not_the_programs_fault(host: HostSettings, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", tree / "bin/busybox")
    (tree / "bin/sh").symlink_to("busybox")
    (tree / "data").write_bytes(os.urandom(16 << 20))
    store = ImageStore(tmp_path / "store")
    image = store.add("app", f"rootfs:{tree}")
    spec = new_spec(
        "sh",
        "-c",
        "while :; do busybox cat /data > /dev/null || exit 1; busybox sleep 0.1; done",
        image="app",
        timeout=30,
    )
    with RunscRunner(host.model_copy(update={"images": ImagesSettings(root=store.root)})) as runner:

        def cut() -> None:
            wait_job_cgroup(runner)
            time.sleep(3)  # the program is up, on a busy machine too
            os.truncate(image.erofs_path, 1 << 20)

        thread = threading.Thread(target=cut)
        thread.start()
        ending = runner.execute(admit(spec, runner.config))
        thread.join()
    assert ending.verdict.code is ErrorCode.SANDBOX_EXECUTION_FAILED, (ending.verdict, ending.stderr.text)
    assert "image" in ending.verdict.message


def sentry_of(runner: RunscRunner) -> psutil.Process:
    """Return the sentry of this runner's one job, once it has the job."""
    name = wait_job_cgroup(runner).name
    found: list[psutil.Process] = []

    def poll() -> bool:
        for process in psutil.process_iter(["name", "cmdline"]):
            words = process.info["cmdline"] or []
            if words and "runsc-sandbox" in words[0] and name in words:
                found.append(process)
        return bool(found)

    wait_until(poll, 60, "the job's sentry is up")
    return found[0]


def test_a_sentry_killed_by_hand_is_not_the_programs_fault(runner: RunscRunner, run: Run) -> None:
    def kill() -> None:
        sentry = sentry_of(runner)
        time.sleep(2)  # the program is up, on a busy machine too
        os.kill(sentry.pid, signal.SIGKILL)  # it hands every other signal on to the guest

    thread = threading.Thread(target=kill)
    thread.start()
    outcome = run("sh", "-c", "echo up; sleep 30")
    thread.join()
    assert outcome.code is ErrorCode.SANDBOX_EXECUTION_FAILED
    assert (outcome.exit_code, outcome.signal, outcome.stdout.text) == (None, None, "up\n")
    assert outcome.retryable


def test_cancel_ends_a_running_job_and_keeps_its_output(run: Run) -> None:
    cancel = Cancellation()
    threading.Timer(1.0, cancel.cancel).start()
    started = time.monotonic()
    outcome = run("sh", "-c", "trap '' TERM; echo up; sleep 60; sleep 60", cancel=cancel)
    assert (outcome.code, outcome.stdout.text) == (ErrorCode.CANCELLED, "up\n")
    assert time.monotonic() - started < 10


def test_a_plain_event_ends_a_run(runner: RunscRunner) -> None:
    spec = SandboxSpec(image="busybox", command=["sleep", "60"], timeout=60)
    event = threading.Event()
    assert runner.run(SandboxSpec(image="busybox", command=["true"]), cancel=event).exit_code == 0
    timer = threading.Timer(0.5, event.set)
    timer.start()
    started = time.monotonic()
    with pytest.raises(Cancelled):
        runner.run(spec, cancel=event)
    assert time.monotonic() - started < 20
    with pytest.raises(Cancelled):
        runner.run(spec, cancel=event)  # it is set already
    timer.join()
    wait_until(lambda: not [t for t in threading.enumerate() if t.name == "cancel"], 5, "no thread of a run is left")


def test_cancel_before_the_start_runs_nothing(run: Run) -> None:
    cancel = Cancellation()
    cancel.cancel()
    with pytest.raises(Cancelled):
        run("true", cancel=cancel)


def test_many_threads_share_a_runner(runner: RunscRunner) -> None:
    spec = new_spec("sh", "-c", "echo $A; exit 4", env={"A": "same"})
    results = []

    def work() -> None:
        results.append(runner.run(spec))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(result.exit_code, result.stdout) for result in results] == [(4, "same\n")] * 8


def test_usage_and_timing_are_reported(runner: RunscRunner) -> None:
    outcome = runner.execute(admit(new_spec("true"), runner.config)).to_outcome(job_id="x")
    for name in ("image", "create", "run", "collect", "cleanup"):
        assert getattr(outcome.timing, name) is not None, name
    assert outcome.usage.cpu_seconds
    assert outcome.usage.memory_peak_bytes
    assert outcome.runtime.version
    assert outcome.image_digest
