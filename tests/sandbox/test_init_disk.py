"""The disk that init mounts: writable paths and the writable root, within one limit."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from initbox import DISK, NOBODY, PATH, job, shell
from sandfleet_worker.sandbox.process import init_job
from sandfleet_worker.sandbox.process.init_job import WritablePath
from sandfleet_worker.sandbox.process.init_reports import (
    Exited,
    Fault,
    ProtocolFault,
    Ready,
    Signaled,
)

if TYPE_CHECKING:
    from initbox import NewSandbox, Sandbox
    from sandfleet_worker.sandbox.process.runsc import RunscBinary


# ---- the disk ----


def test_writable_paths_belong_to_the_job(sandbox: Sandbox) -> None:
    script = "stat -c '%n %a %u:%g' /tmp /dev/shm /home/job; touch /tmp/a /dev/shm/b /home/job/c && ls /tmp /home/job"
    assert sandbox.run(shell(script, uid=1000, gid=1001)) == Exited(0, disk_full=False)
    assert sandbox.stdout.splitlines() == [
        *("/tmp 1777 1000:1001", "/dev/shm 1777 1000:1001", "/home/job 700 1000:1001"),
        *("/home/job:", "c", "", "/tmp:", "a"),
    ]


def test_a_writable_path_may_lie_in_a_closed_folder(sandbox: Sandbox) -> None:
    paths = [*DISK, WritablePath("/private/work")]
    assert sandbox.run(shell("touch /private/work/f", uid=1000, gid=1000, writable_paths=paths)) == Exited(
        0, disk_full=False
    )


@pytest.mark.parametrize("folder", ["/tmp", "/dev/shm", "/home/job"])
def test_a_full_disk_is_reported(new_sandbox: NewSandbox, folder: str) -> None:
    sandbox = new_sandbox()
    script = f"dd if=/dev/zero of={folder}/f bs=64k count=1000; exit 1"
    assert sandbox.run(shell(script)) == Exited(1, disk_full=True)
    assert "128+0 records out" in sandbox.stderr


def test_the_disk_limit_is_the_sum_of_all_writable_paths(sandbox: Sandbox) -> None:
    script = "dd if=/dev/zero of=/tmp/f bs=1M count=5 && dd if=/dev/zero of=/home/job/f bs=1M count=5; kill -9 $$"
    assert sandbox.run(shell(script)) == Signaled(signal.SIGKILL, disk_full=True)
    assert "5+0 records out" in sandbox.stderr
    assert "3+0 records out" in sandbox.stderr


def test_a_disk_that_is_not_full_is_not(sandbox: Sandbox) -> None:
    assert sandbox.run(shell("dd if=/dev/zero of=/tmp/f bs=1M count=7; exit 1")) == Exited(1, disk_full=False)


@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_nothing_else_is_writable(new_sandbox: NewSandbox, uid: int) -> None:
    sandbox = new_sandbox()
    script = (
        "touch /f /dev/f /proc/f /sys/f /home/f /dev/pts/f; cd /proc/1/fd/6 && touch f; busybox find / -xdev -name f"
    )
    sandbox.run(shell(script, uid=uid, gid=uid))
    assert sandbox.stdout == ""
    assert sandbox.stderr.count("touch: ") == 6


@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_no_folder_of_dev_is_a_disk_without_a_limit(new_sandbox: NewSandbox, uid: int) -> None:
    sandbox = new_sandbox()
    script = "cd /dev; for f in $(busybox find . -type d); do test $f = ./shm || touch $f/f 2>&- && echo $f; done"
    assert sandbox.run(shell(script, uid=uid, gid=uid)) == Exited(1, disk_full=False)
    assert sandbox.stdout == "./shm\n"


def test_many_empty_files_are_a_full_disk(sandbox: Sandbox, runsc: RunscBinary) -> None:
    """gVisor's tmpfs has nr_inodes since 20260520; before, the memory limit bounds them."""
    # One busybox for many files: the shell would need a process for each.
    script = "cd /tmp; i=0; while test $i -lt 60; do mkdir $i; cd $i; eval busybox touch $NAMES || break; cd ..; i=$((i+1)); done"
    names = " ".join(f"f{number}" for number in range(100))
    ended = sandbox.run(shell(f"{script} 2>&-; echo $i; test $i = 60", envp=[f"PATH={PATH}", f"NAMES={names}"]))
    if runsc.abilities.is_quiet:
        assert ended == Exited(1, disk_full=True)
        assert 38 <= int(sandbox.stdout) <= 40  # 8 MiB: 4096 inodes
    else:
        assert ended == Exited(0, disk_full=False)


# ---- the writable root ----


def test_a_writable_root_keeps_the_permissions_of_the_image(sandbox: Sandbox) -> None:
    script = """
        touch /home/free/a /tmp/b /dev/shm/c && busybox mv /home/free/a /home/free/d && busybox ln /home/free/d /home/free/e
        touch /etc/f /f; ls /home/free; stat -c '%n %a %u:%g' / /etc /locked /home/free /tmp
    """
    assert sandbox.run(shell(script, uid=1000, gid=1000, is_root_writable=True)) == Exited(0, disk_full=False)
    assert sandbox.stdout.splitlines() == [
        *("d", "e"),
        *("/ 751 0:7", "/etc 755 0:0", "/locked 700 0:0", "/home/free 700 1000:1000", "/tmp 1777 1000:1000"),
    ]
    assert sandbox.stderr.count("Permission denied") == 2


@pytest.mark.parametrize("uid", [NOBODY, 0])
def test_the_disk_limit_holds_for_a_writable_root(new_sandbox: NewSandbox, uid: int) -> None:
    sandbox = new_sandbox()
    folder = "/etc" if uid == 0 else "/home/shared"
    script = f"dd if=/dev/zero of=/tmp/f bs=1M count=5 && dd if=/dev/zero of={folder}/f bs=64k count=1000"
    assert sandbox.run(shell(script, uid=uid, gid=uid, is_root_writable=True)) == Exited(1, disk_full=True)
    assert "5+0 records out" in sandbox.stderr
    assert "48+0 records out" in sandbox.stderr


def test_a_writable_root_without_a_disk_is_refused(sandbox: Sandbox) -> None:
    assert sandbox.next_report() == Ready()
    message = bytearray(init_job.encode_job(job("true", writable_paths=(), disk_bytes=0)))
    message[8] |= 1
    sandbox.send(bytes(message))
    assert sandbox.finish() == ProtocolFault(Fault.LAYOUT)
