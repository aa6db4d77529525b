"""What a program sees and how each of its ends comes back."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import signal
import subprocess
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
    GVisorNotAvailable,
    HostResources,
    ImageNotFound,
    SandboxCreationFailed,
    SecurityViolation,
    SpecInvalid,
    UserInvalid,
)
from sandfleet_config.settings import HostSettings, ImagesSettings, PolicySettings, RunscSettings
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
def test_a_fatal_signal_is_told_by_number(python: Run, name: str) -> None:
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
def test_membarrier_has_commands_where_the_host_lets_it(
    host: HostSettings, runsc: RunscBinary, *, is_allowed: bool
) -> None:
    """Where it costs no time it is always there."""
    number = {"x86_64": 324, "aarch64": 283}[platform.machine()]
    code = f"import ctypes; call = ctypes.CDLL(None).syscall; print(call({number}, 0, 0) > 0, call({number}, 1, 0))"
    settings = host.runsc.model_copy(update={"membarrier": is_allowed})
    with RunscRunner(host.model_copy(update={"runsc": settings})) as runner:
        spec = SandboxSpec(image="python", command=["python3", "-c", code])
        assert runner.run(spec).stdout == ("True 0\n" if is_allowed or runsc.abilities.is_quiet else "False -1\n")


@pytest.mark.parametrize(
    ("command", "fields", "code"),
    [
        (["no-such-program"], {}, ErrorCode.COMMAND_NOT_FOUND),
        (["/no/such/program"], {}, ErrorCode.COMMAND_NOT_FOUND),
        (["/etc/passwd"], {"image": "python"}, ErrorCode.COMMAND_NOT_EXECUTABLE),
        (["/tmp"], {}, ErrorCode.COMMAND_NOT_EXECUTABLE),
        (["true"], {"working_dir": "/no/such"}, ErrorCode.WORKING_DIR_INVALID),
        (["true"], {"working_dir": "/etc/passwd", "image": "python"}, ErrorCode.WORKING_DIR_INVALID),
    ],
)
def test_what_cannot_start(run: Run, command: list[str], fields: dict[str, Any], code: ErrorCode) -> None:
    outcome = run(*command, **fields)
    assert (outcome.code, outcome.exit_code, outcome.signal) == (code, None, None)
    assert outcome.message


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"image": "no-such-image"}, ImageNotFound),
        ({"security": {"user": "no-such-user"}}, UserInvalid),
        ({"security": {"user": "0"}}, UserInvalid),
        ({"security": {"user": "root"}}, UserInvalid),
        ({"platform": "nonsense"}, SecurityViolation),
        ({"runsc_path": "/bin/sh"}, SecurityViolation),
    ],
)
def test_what_is_refused(runner: RunscRunner, fields: dict[str, Any], error: type[Exception]) -> None:
    spec = SandboxSpec.model_validate({"image": "busybox", "command": ["true"], **fields})
    with pytest.raises(error):
        runner.run(spec)


def test_a_job_without_any_command_is_refused(runner: RunscRunner, tmp_path: Path) -> None:
    (tmp_path / "tree/bin").mkdir(parents=True)
    store = ImageStore(tmp_path / "images")
    store.add("bare", f"rootfs:{tmp_path / 'tree'}")
    with RunscRunner(runner.config.model_copy(update={"images": ImagesSettings(root=store.root)})) as bare:
        spec = SandboxSpec(image="bare")
        with pytest.raises(SpecInvalid, match="no command"):
            bare.run(spec)


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


def test_no_runsc(host: HostSettings) -> None:
    missing = host.model_copy(update={"runsc": host.runsc.model_copy(update={"path": "no-such-runsc"})})
    with RunscRunner(missing) as runner, pytest.raises(GVisorNotAvailable, match="no-such-runsc"):
        runner.run(new_spec("true"))


def test_a_runsc_that_is_too_old_is_refused(host: HostSettings, tmp_path: Path) -> None:
    old = tmp_path / "runsc-old"
    old.write_text("#!/bin/sh\necho 'runsc version 0.0~20221219.0'\n")
    old.chmod(0o755)
    settings = host.model_copy(update={"runsc": host.runsc.model_copy(update={"path": str(old)})})
    with RunscRunner(settings) as runner, pytest.raises(GVisorNotAvailable, match="too old"):
        runner.run(new_spec("true"))


def test_a_runsc_removed_after_start_up(host: HostSettings, tmp_path: Path) -> None:
    copy = tmp_path / "runsc-copy"
    shutil.copy(shutil.which("runsc") or "", copy)
    settings = host.model_copy(update={"runsc": host.runsc.model_copy(update={"path": str(copy)})})
    with RunscRunner(settings) as runner:
        assert runner.run(new_spec("true")).exit_code == 0
        copy.unlink()
        with pytest.raises(GVisorNotAvailable):
            runner.run(new_spec("true"))


def test_a_platform_that_hangs_at_boot_is_given_up_in_time(host: HostSettings) -> None:
    """kvm: on a machine where it works the job runs, and elsewhere the boot deadline or runsc itself says so."""
    settings = host.model_copy(update={"runsc": RunscSettings(root_dir=host.runsc.root_dir, boot_deadline_seconds=2)})
    started = time.monotonic()
    with RunscRunner(settings) as runner:
        try:
            assert runner.run(new_spec("true", platform="kvm")).exit_code == 0
        except GVisorNotAvailable as error:
            assert "kvm" in error.message  # noqa: PT017  either end is right, depending on the machine
    assert time.monotonic() - started < 15


def test_a_sandbox_that_cannot_be_built(runner: RunscRunner, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    image = runner.images.resolve("busybox")
    damaged = tmp_path / "damaged.erofs"
    damaged.write_bytes(b"no image at all" * 1000)
    broken = image.model_copy(update={"erofs_path": damaged}) if hasattr(image, "model_copy") else image
    monkeypatch.setattr(type(image), "erofs_path", damaged, raising=False)
    monkeypatch.setattr(runner.images, "resolve", lambda _name: broken)
    with pytest.raises(SandboxCreationFailed):
        runner.run(new_spec("true"))


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

    def look() -> bool:
        for process in psutil.process_iter(["name", "cmdline"]):
            words = process.info["cmdline"] or []
            if words and "runsc-sandbox" in words[0] and name in words:
                found.append(process)
        return bool(found)

    wait_until(look, 60, "the job's sentry is up")
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


def test_a_full_disk_of_the_host_is_the_hosts_trouble(host: HostSettings, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "small", str(small)], check=True)
    try:
        settings = host.model_copy(update={"runsc": RunscSettings(root_dir=small)})
        with RunscRunner(settings) as runner:
            with contextlib.suppress(OSError):
                (small / "ballast").write_bytes(bytes(1 << 20))
            spec = new_spec("true")
            with pytest.raises((HostResources, SandboxCreationFailed)) as caught:
                runner.run(spec)
            assert caught.value.retryable
            (small / "ballast").unlink()
            assert runner.run(new_spec("true")).exit_code == 0
    finally:
        subprocess.run(["umount", str(small)], check=True)


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


def test_usage_and_timing_are_told(runner: RunscRunner) -> None:
    outcome = runner.execute(admit(new_spec("true"), runner.config)).to_outcome(job_id="x")
    for name in ("image", "create", "run", "collect", "cleanup"):
        assert getattr(outcome.timing, name) is not None, name
    assert outcome.usage.cpu_seconds
    assert outcome.usage.memory_peak_bytes
    assert outcome.runtime.version
    assert outcome.image_digest
