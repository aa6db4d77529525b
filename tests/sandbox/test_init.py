"""Init's reports, and the environment that it gives a job."""

from __future__ import annotations

import errno
import resource
import signal
import struct
from typing import TYPE_CHECKING, Any

import pytest
from initbox import DISK, NOBODY, PATH, close_control, job, limit, shell, wait_for_output
from sandfleet_worker.sandbox.process import init_job
from sandfleet_worker.sandbox.process.init_job import WritablePath
from sandfleet_worker.sandbox.process.init_reports import (
    ChdirFailed,
    ExecFailed,
    Exited,
    Fault,
    MountFailed,
    ProtocolFault,
    Ready,
    Report,
    RlimitFailed,
    Signaled,
    Started,
    UserFailed,
)

if TYPE_CHECKING:
    from initbox import NewSandbox, Sandbox

# ---- how a job ends ----


@pytest.mark.parametrize("code", [0, 1, 2, 124, 125, 126, 127, 128, 137, 255])
def test_every_exit_code_is_the_programs_own(new_sandbox: NewSandbox, code: int) -> None:
    sandbox = new_sandbox()
    assert sandbox.run(shell(f"echo out; echo err >&2; exit {code}")) == Exited(code, disk_full=False)
    assert (sandbox.stdout, sandbox.stderr) == ("out\n", "err\n")
    assert sandbox.process.returncode == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM, signal.SIGABRT])
def test_a_signal_is_no_exit_code(new_sandbox: NewSandbox, number: signal.Signals) -> None:
    assert new_sandbox().run(shell(f"kill -{int(number)} $$")) == Signaled(number, disk_full=False)


@pytest.mark.parametrize(
    ("command", "report"),
    [
        ("nowhere", ExecFailed(errno.ENOENT, path_exists=False)),
        ("/bin/nowhere", ExecFailed(errno.ENOENT, path_exists=False)),
        ("no-interpreter", ExecFailed(errno.ENOENT, path_exists=True)),
        ("plain", ExecFailed(errno.EACCES, path_exists=True)),
        ("/bin", ExecFailed(errno.EACCES, path_exists=True)),
        ("garbage", ExecFailed(errno.ENOEXEC, path_exists=True)),
        ("/locked/inside", ExecFailed(errno.EACCES, path_exists=False)),
    ],
)
def test_a_program_that_cannot_run_says_why(new_sandbox: NewSandbox, command: str, report: Report) -> None:
    assert new_sandbox().run(job(command)) == report


def test_a_closed_path_folder_does_not_hide_a_later_candidate(sandbox: Sandbox) -> None:
    candidates = ["/locked/true", "/usr/bin/true", "/bin/true"]
    assert sandbox.run(job("true", candidates=candidates)) == Exited(0, disk_full=False)


@pytest.mark.parametrize(
    ("fields", "report"),
    [
        ({"cwd": "/nowhere"}, ChdirFailed(errno.ENOENT)),
        ({"cwd": "/bin/true"}, ChdirFailed(errno.ENOTDIR)),
        ({"cwd": "/locked"}, ChdirFailed(errno.EACCES)),
        ({"writable_paths": (*DISK, WritablePath("/nowhere"))}, MountFailed(errno.ENOENT, 3)),
        ({"writable_paths": (WritablePath("/bin/true"),)}, MountFailed(errno.ENOTDIR, 0)),
        ({"rlimits": [limit(resource.RLIMIT_NOFILE, 1 << 40)]}, RlimitFailed(errno.EPERM, resource.RLIMIT_NOFILE)),
        ({"rlimits": [limit(99, 1)]}, RlimitFailed(errno.EINVAL, 99)),
    ],
)
def test_a_failed_set_up_says_which(new_sandbox: NewSandbox, fields: dict[str, Any], report: Report) -> None:
    assert new_sandbox().run(job("true", **fields)) == report


def test_a_uid_that_means_unchanged_is_refused(sandbox: Sandbox) -> None:
    assert sandbox.next_report() == Ready()
    message = bytearray(init_job.encode_job(job("true")))
    message[12:16] = b"\xff" * 4
    sandbox.send(bytes(message))
    assert sandbox.finish() == UserFailed(errno.EINVAL)


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (struct.pack("<I", 1 << 21), Fault.LENGTH),
        (struct.pack("<I4s", 4, b"abcd"), Fault.LAYOUT),
        (struct.pack("<I4s", 4, b"SFJ2"), Fault.LAYOUT),
        (struct.pack("<I4sI", 8, b"SFJ2", 2), Fault.LAYOUT),
    ],
)
def test_a_bad_message_is_a_protocol_fault(new_sandbox: NewSandbox, message: bytes, fault: Fault) -> None:
    sandbox = new_sandbox()
    assert sandbox.next_report() == Ready()
    sandbox.send(message)
    assert sandbox.finish() == ProtocolFault(fault)


@pytest.mark.parametrize("size", [-1, 1])
def test_a_message_cut_short_or_too_long_is_a_protocol_fault(new_sandbox: NewSandbox, size: int) -> None:
    sandbox = new_sandbox()
    assert sandbox.next_report() == Ready()
    body = init_job.encode_job(job("true"))[4:]
    body = body[:size] if size < 0 else body + b"\0" * size
    sandbox.send(struct.pack("<I", len(body)) + body)
    assert sandbox.finish() == ProtocolFault(Fault.LAYOUT)


def test_an_unused_sandbox_ends_without_a_report(sandbox: Sandbox) -> None:
    assert sandbox.next_report() == Ready()
    close_control(sandbox)
    assert sandbox.finish() is None


# ---- what the job finds ----


def test_the_job_gets_its_own_user_folder_environment_and_limits(sandbox: Sandbox) -> None:
    script = "id; pwd; umask; hostname; echo $COLOUR; ulimit -n; grep -E '^(Cap|Groups)' /proc/self/status"
    described = shell(
        script.replace("grep", "busybox grep"),
        uid=1000,
        gid=1001,
        groups=[5, 6],
        cwd="/tmp",
        envp=[f"PATH={PATH}", "COLOUR=red"],
        rlimits=[limit(resource.RLIMIT_NOFILE, 64), limit(resource.RLIMIT_CORE, 0)],
    )
    assert sandbox.run(described) == Exited(0, disk_full=False), sandbox.stderr
    lines = sandbox.stdout.splitlines()
    assert lines[:6] == ["uid=1000 gid=1001 groups=5,6", "/tmp", "0022", "sandbox", "red", "64"]
    assert lines[6].split() == ["Groups:", "5", "6"]
    # Ambient ones (CapAmb) are shown since 20260615.
    names = {"CapInh:", "CapPrm:", "CapEff:", "CapBnd:"}
    found = dict(zip(*[iter(" ".join(lines[7:]).split())] * 2, strict=True))
    assert names <= found.keys() <= names | {"CapAmb:"}
    assert set(found.values()) == {"0" * 16}


def test_root_has_no_capabilities_either(sandbox: Sandbox) -> None:
    script = (
        "busybox grep ^Cap /proc/self/status; mount -t tmpfs t /tmp && exit 9; busybox chown 5 /tmp && exit 8; id -u"
    )
    assert sandbox.run(shell(script, uid=0, gid=0)) == Exited(0, disk_full=False)
    assert {line.split()[1] for line in sandbox.stdout.splitlines()[:4]} == {"0" * 16}
    assert sandbox.stdout.endswith("\n0\n")


def test_signals_descriptors_and_session_are_fresh(sandbox: Sandbox) -> None:
    assert sandbox.run(job("attacks", "show-start")) == Exited(0, disk_full=False)
    assert sandbox.stdout == "ignored 0 blocked 0 descriptors 3 leader 1 nnp 1\n"


def test_a_file_size_limit_holds(sandbox: Sandbox) -> None:
    script = "trap '' XFSZ; dd if=/dev/zero of=/tmp/f bs=4k count=10"
    assert sandbox.run(shell(script, rlimits=[limit(resource.RLIMIT_FSIZE, 8192)])) == Exited(1, disk_full=False)
    assert "File too large" in sandbox.stderr


def test_a_cpu_limit_holds(sandbox: Sandbox) -> None:
    """It does where it is set in the guest; in the bundle, releases before 20241118 ignore it."""
    ended = sandbox.run(shell("while :; do :; done", rlimits=[limit(resource.RLIMIT_CPU, 1)]))
    assert isinstance(ended, Signaled)
    assert ended.signal in {signal.SIGXCPU, signal.SIGKILL}
    assert ended.ran_microseconds >= 900_000


@pytest.mark.parametrize(("uid", "most"), [(NOBODY, 50), (0, 49)])
def test_the_process_limit_holds(new_sandbox: NewSandbox, uid: int, most: int) -> None:
    # gVisor does not count the process that changed its uid, but counts init's start as root's.
    sandbox = new_sandbox()
    limits = [limit(resource.RLIMIT_NPROC, 50)]
    assert sandbox.run(job("attacks", "count-forks", uid=uid, gid=uid, rlimits=limits)) == Exited(0, disk_full=False)
    assert sandbox.stdout == f"forks {most} errno {errno.EAGAIN}\n"


@pytest.mark.parametrize("uid", [NOBODY, 0, 1000])
def test_standard_output_opens_again(new_sandbox: NewSandbox, uid: int) -> None:
    sandbox = new_sandbox()
    script = "echo a >/dev/stdout && echo b >/dev/stderr && echo c >/proc/self/fd/1"
    assert sandbox.run(shell(script, uid=uid, gid=uid)) == Exited(0, disk_full=False), sandbox.stderr
    assert (sandbox.stdout, sandbox.stderr) == ("a\nc\n", "b\n")


# ---- control ----


@pytest.mark.parametrize(
    ("script", "command", "report"),
    [
        ("echo up; sleep 60", init_job.TERMINATE, Signaled(signal.SIGTERM, disk_full=False)),
        (
            "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done",
            init_job.TERMINATE,
            Exited(7, disk_full=False),
        ),
        ("echo up; kill -STOP $$", init_job.TERMINATE, Signaled(signal.SIGTERM, disk_full=False)),
        ("echo up; sleep 0.3; exit 3", b"?", Exited(3, disk_full=False)),
    ],
)
def test_control_bytes_reach_every_process(
    new_sandbox: NewSandbox, script: str, command: bytes, report: Report
) -> None:
    sandbox = new_sandbox()
    assert sandbox.start(shell(script)) == Started()
    wait_for_output(sandbox, "up\n")
    sandbox.send(command)
    assert sandbox.finish() == report


def test_the_end_of_the_worker_ends_everything(sandbox: Sandbox) -> None:
    assert sandbox.start(shell("trap '' TERM HUP; echo up; sleep 60")) == Started()
    wait_for_output(sandbox, "up\n")
    close_control(sandbox)
    assert sandbox.finish() is None
