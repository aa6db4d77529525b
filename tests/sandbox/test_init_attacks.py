"""Attacks of a job on init; all fail."""

from __future__ import annotations

import contextlib
import errno
import resource
import signal
import time
from typing import TYPE_CHECKING

import pytest
from initbox import CFLAGS, NOBODY, Sandbox, close_control, compile_c, job, limit, shell
from sandfleet_worker.sandbox.process import init_job
from sandfleet_worker.sandbox.process.init_reports import Exited, Signaled, Started
from sandfleet_worker.sandbox.process.runsc import NATIVE

if TYPE_CHECKING:
    from pathlib import Path

    from initbox import NewSandbox
    from sandfleet_worker.sandbox.process.runsc import RunscBinary


@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_init_cannot_be_killed(new_sandbox: NewSandbox, uid: int) -> None:
    sandbox = new_sandbox()
    script = "kill -9 1 || echo refused; kill -TERM 1 || echo refused; kill -STOP 1 || echo refused; kill -9 -1; exit 9"
    assert sandbox.run(shell(script, uid=uid, gid=uid)) == Exited(9, disk_full=False)
    assert sandbox.stdout == "refused\n" * 3


@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_init_cannot_be_signalled_by_a_descriptor(new_sandbox: NewSandbox, uid: int) -> None:
    sandbox = new_sandbox()
    assert sandbox.run(job("attacks", "signal-init", uid=uid, gid=uid)) == Exited(9, disk_full=False)
    answers = dict(zip(*[iter(sandbox.stdout.split())] * 2, strict=True))
    assert set(answers) == {"own", "group", "ex", "fio", "sio"}
    if uid == 0:
        # FIOSETOWN is unknown to gVisor's pipes; the filter answers first where it is there.
        assert set(answers.values()) == {str(errno.EPERM)}


@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_the_report_cannot_be_forged(new_sandbox: NewSandbox, uid: int) -> None:
    sandbox = new_sandbox()
    script = "chmod 666 /proc/1/fd/*; for fd in 3 4; do echo 'E 0 0 1' >/proc/1/fd/$fd && echo forged; done; exit 9"
    assert sandbox.run(shell(script, uid=uid, gid=uid)) == Exited(9, disk_full=False)
    assert sandbox.stdout == ""


@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_init_cannot_be_traced(new_sandbox: NewSandbox, uid: int) -> None:
    sandbox = new_sandbox()
    assert sandbox.run(job("attacks", "trace-init", uid=uid, gid=uid)) == Exited(0, disk_full=False)
    answers = dict(zip(*[iter(sandbox.stdout.split())] * 2, strict=True))
    assert set(answers) == {"seize", "attach", "mem", "fd", "pidfd", "kill"}
    assert set(answers.values()) <= {str(errno.EPERM), str(errno.EACCES), str(errno.ENOSYS)}


def test_init_never_shares_its_uid(sandbox: Sandbox) -> None:
    ours = 0x7FFFFFFE
    assert sandbox.run(shell("kill -9 1 || id -u", uid=ours)) == Exited(0, disk_full=False)
    assert sandbox.stdout == f"{ours}\n"


@pytest.mark.parametrize("is_root_writable", [False, True])
@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_a_user_namespace_lifts_no_limit(new_sandbox: NewSandbox, uid: int, *, is_root_writable: bool) -> None:
    sandbox = new_sandbox()
    limits = [limit(resource.RLIMIT_NPROC, 20)]
    attack = job("attacks", "make-namespaces", uid=uid, gid=uid, rlimits=limits, is_root_writable=is_root_writable)
    sandbox.run(attack)
    assert sandbox.stdout.startswith("clone 1 unshare 1 mount 1 forks ")
    assert int(sandbox.stdout.split()[7]) <= 20


def test_the_namespace_attack_is_a_real_one(tmp_path: Path, init_image: Path, runsc: RunscBinary) -> None:
    """Should a later gVisor fail this, the chroot in init may go."""
    open_init = compile_c(NATIVE / "init.c", tmp_path / "init", *CFLAGS, "-DALLOW_USER_NAMESPACES")
    with contextlib.closing(Sandbox(tmp_path / "sandbox", init_image, open_init, runsc)) as sandbox:
        assert sandbox.start(job("attacks", "make-namespaces", rlimits=[limit(resource.RLIMIT_NPROC, 20)])) == Started()
        deadline = time.monotonic() + 20
        while "mount" not in sandbox.stdout and time.monotonic() < deadline:
            time.sleep(0.02)
        assert sandbox.stdout == "clone 0 unshare 0 mount 0 "
        close_control(sandbox)
        assert sandbox.finish() is None


@pytest.mark.parametrize(("attack", "code"), [("leave-daemons", 5), ("leave-stopped-children", 6)])
def test_children_left_behind_do_not_delay_the_end(new_sandbox: NewSandbox, attack: str, code: int) -> None:
    sandbox = new_sandbox()
    assert sandbox.run(job("attacks", attack)) == Exited(code, disk_full=False)


def test_closed_output_does_not_confuse_anyone(sandbox: Sandbox) -> None:
    assert sandbox.run(shell("exec <&- >&- 2>&-; sleep 0.2; exit 4")) == Exited(4, disk_full=False)


def test_a_fork_bomb_is_stopped(sandbox: Sandbox) -> None:
    assert sandbox.start(job("attacks", "bomb", rlimits=[limit(resource.RLIMIT_NPROC, 100)])) == Started()
    time.sleep(1)
    sandbox.send(init_job.TERMINATE)
    assert sandbox.finish() == Signaled(signal.SIGTERM, disk_full=False)
