from __future__ import annotations

import errno
import signal

from rows import each_row
from sandfleet_config.codes import ErrorCode
from sandfleet_worker.sandbox.cgroup.counters import Counts
from sandfleet_worker.sandbox.process.facts import Facts, Kill
from sandfleet_worker.sandbox.process.init_reports import (
    ROOT_INDEX,
    ChdirFailed,
    ExecFailed,
    Exited,
    FileFailed,
    MountFailed,
    ProtocolFault,
    RlimitFailed,
    Signaled,
    UserFailed,
)
from sandfleet_worker.sandbox.verdict import decide

RUNNING = Facts(is_ready=True, is_started=True, runsc_exit=0, memory_bytes=1 << 20, command="prog")


def facts(**changes: object) -> Facts:
    return Facts(**{**vars(RUNNING), **changes})


@each_row("code", range(256))
def test_every_exit_is_itself(code: int) -> None:
    verdict = decide(facts(end=Exited(code, disk_full=False)))
    assert verdict.exit_code == code
    assert verdict.signal is None
    assert verdict.code is (ErrorCode.OK if code == 0 else ErrorCode.EXIT_NONZERO)


@each_row("number", range(1, 65))
def test_every_signal_is_itself(number: int) -> None:
    verdict = decide(facts(end=Signaled(number, disk_full=False)))
    assert (verdict.code, verdict.signal, verdict.exit_code) == (ErrorCode.SIGNALED, number, None)


KILLED = Kill(ErrorCode.CANCELLED, "cancelled")
OVERTIME = Kill(ErrorCode.TIMEOUT, "too long")
FLOODED = Kill(ErrorCode.OUTPUT_LIMIT, "too much")


OWN_OOM = Counts(oom_kills=1, own_ooms=1)
HOST_OOM = Counts(oom_kills=1)
PIDS_FUSE = Counts(fork_failures=3, pids_fuse_hits=3)
PARENTS_PIDS = Counts(fork_failures=3)


@each_row(
    ("changes", "code"),
    [
        # cancelled > our timer > memory cgroup > output limit > the program's own end
        ({"kill": KILLED, "timed_out": "soft", "counts": OWN_OOM}, ErrorCode.CANCELLED),
        ({"kill": OVERTIME, "timed_out": "hard", "counts": OWN_OOM}, ErrorCode.TIMEOUT),
        ({"timed_out": "soft", "end": Exited(0, disk_full=False)}, ErrorCode.TIMEOUT),
        ({"timed_out": "soft", "end": Signaled(15, disk_full=False), "counts": OWN_OOM}, ErrorCode.TIMEOUT),
        ({"kill": FLOODED, "is_output_over": True, "counts": OWN_OOM}, ErrorCode.OUT_OF_MEMORY),
        ({"kill": FLOODED, "is_output_over": True}, ErrorCode.OUTPUT_LIMIT),
        ({"is_output_over": True, "end": Exited(0, disk_full=False)}, ErrorCode.OUTPUT_LIMIT),
        ({"counts": OWN_OOM, "end": Exited(1, disk_full=False)}, ErrorCode.OUT_OF_MEMORY),
        ({"counts": OWN_OOM, "end": Exited(0, disk_full=False)}, ErrorCode.OK),
        ({"counts": OWN_OOM}, ErrorCode.OUT_OF_MEMORY),
        ({"counts": HOST_OOM}, ErrorCode.HOST_RESOURCES),
        ({"counts": HOST_OOM, "end": Exited(1, disk_full=False)}, ErrorCode.HOST_RESOURCES),
        ({"counts": HOST_OOM, "end": Signaled(9, disk_full=False)}, ErrorCode.HOST_RESOURCES),
        ({"counts": HOST_OOM, "end": Exited(0, disk_full=False)}, ErrorCode.OK),
        ({"counts": HOST_OOM, "kill": KILLED}, ErrorCode.CANCELLED),
        ({"counts": HOST_OOM, "kill": OVERTIME, "timed_out": "hard"}, ErrorCode.TIMEOUT),
        ({"counts": HOST_OOM, "kill": FLOODED, "is_output_over": True}, ErrorCode.HOST_RESOURCES),
        ({"counts": PARENTS_PIDS}, ErrorCode.HOST_RESOURCES),
        ({"counts": PARENTS_PIDS, "end": Exited(1, disk_full=False)}, ErrorCode.EXIT_NONZERO),
        ({"counts": PARENTS_PIDS, "end": ExecFailed(errno.ENOMEM, path_exists=True)}, ErrorCode.HOST_RESOURCES),
        ({"counts": PIDS_FUSE, "end": ExecFailed(errno.ENOMEM, path_exists=True)}, ErrorCode.PIDS_LIMIT),
        ({"end": ExecFailed(errno.ENOMEM, path_exists=True)}, ErrorCode.COMMAND_NOT_EXECUTABLE),
        ({"overwritten": "the image's file", "end": Signaled(7, disk_full=False)}, ErrorCode.SANDBOX_EXECUTION_FAILED),
        ({"overwritten": "the image's file", "end": Exited(0, disk_full=False)}, ErrorCode.OK),
        ({"overwritten": "the image's file", "counts": OWN_OOM}, ErrorCode.OUT_OF_MEMORY),
        ({"counts": PIDS_FUSE}, ErrorCode.PIDS_LIMIT),
        ({"counts": PIDS_FUSE, "end": Exited(1, disk_full=False)}, ErrorCode.EXIT_NONZERO),
        ({"end": Exited(1, disk_full=True)}, ErrorCode.DISK_LIMIT),
        ({"end": Exited(0, disk_full=True)}, ErrorCode.OK),
        ({"end": Signaled(7, disk_full=True)}, ErrorCode.DISK_LIMIT),
        ({"end": ExecFailed(errno.ENOENT, path_exists=False)}, ErrorCode.COMMAND_NOT_FOUND),
        ({"end": ExecFailed(errno.ENOTDIR, path_exists=False)}, ErrorCode.COMMAND_NOT_FOUND),
        ({"end": ExecFailed(errno.ENOENT, path_exists=True)}, ErrorCode.COMMAND_NOT_FOUND),
        ({"end": ExecFailed(errno.EACCES, path_exists=True)}, ErrorCode.COMMAND_NOT_EXECUTABLE),
        ({"end": ExecFailed(errno.ENOEXEC, path_exists=True)}, ErrorCode.COMMAND_NOT_EXECUTABLE),
        ({"end": ExecFailed(errno.E2BIG, path_exists=True)}, ErrorCode.SPEC_INVALID),
        (
            {"end": ExecFailed(errno.ENAMETOOLONG, path_exists=True), "longest_argument_bytes": 1 << 17},
            ErrorCode.SPEC_INVALID,
        ),
        (
            {"end": ExecFailed(errno.ENAMETOOLONG, path_exists=False), "longest_argument_bytes": (1 << 17) - 1},
            ErrorCode.COMMAND_NOT_EXECUTABLE,
        ),
        ({"end": ChdirFailed(errno.ENOENT)}, ErrorCode.WORKING_DIR_INVALID),
        ({"end": UserFailed(errno.EINVAL)}, ErrorCode.USER_INVALID),
        ({"end": MountFailed(errno.ENOENT, 0)}, ErrorCode.SANDBOX_CREATION_FAILED),
        ({"end": RlimitFailed(errno.EPERM, 7)}, ErrorCode.SANDBOX_CREATION_FAILED),
        ({"end": FileFailed(errno.EACCES, 0)}, ErrorCode.SPEC_INVALID),
        ({"end": FileFailed(errno.ENOSPC, 0)}, ErrorCode.SPEC_INVALID),
        ({"end": ProtocolFault(2)}, ErrorCode.INTERNAL),
        # The sandbox died under the program, whatever runsc's own status looks like.
        ({"runsc_exit": 0}, ErrorCode.SANDBOX_EXECUTION_FAILED),
        ({"runsc_exit": 137}, ErrorCode.SANDBOX_EXECUTION_FAILED),
        ({"runsc_exit": 2, "panic": "panic: boom"}, ErrorCode.SANDBOX_EXECUTION_FAILED),
    ],
)
def test_precedence(changes: dict[str, object], code: ErrorCode) -> None:
    assert decide(facts(**changes)).code is code


@each_row(
    ("changes", "code"),
    [
        ({"runsc_exit": 128, "runsc_log": "creating container: boom"}, ErrorCode.SANDBOX_CREATION_FAILED),
        ({"runsc_exit": 128, "runsc_log": "unknown platform: x"}, ErrorCode.GVISOR_NOT_AVAILABLE),
        ({"runsc_exit": 120, "runsc_log": "launch: cgroup /x: 13"}, ErrorCode.HOST_RESOURCES),
        ({"runsc_exit": 121, "runsc_log": "launch: exec /x: 2"}, ErrorCode.GVISOR_NOT_AVAILABLE),
        ({"runsc_exit": 122}, ErrorCode.INTERNAL),
        ({"runsc_exit": 1, "counts": OWN_OOM}, ErrorCode.OUT_OF_MEMORY),
        ({"kill": Kill(ErrorCode.GVISOR_NOT_AVAILABLE, "did not boot")}, ErrorCode.GVISOR_NOT_AVAILABLE),
        ({"kill": KILLED}, ErrorCode.CANCELLED),
        ({"is_ready": True, "runsc_exit": 137}, ErrorCode.SANDBOX_CREATION_FAILED),
    ],
)
def test_failed_start(changes: dict[str, object], code: ErrorCode) -> None:
    verdict = decide(facts(**({"is_ready": False, "is_started": False, "runsc_exit": None} | changes)))
    assert verdict.code is code
    assert verdict.message


def test_the_file_that_was_written_to_under_a_job_is_named() -> None:
    what = "the file of the dataset at /data/corpus"
    verdict = decide(facts(overwritten=what, end=Signaled(signal.SIGBUS, disk_full=False)))
    assert verdict.message == f"{what} on this host was written to while the job ran: add it again"


def test_a_timeout_keeps_the_programs_exit_and_signal() -> None:
    verdict = decide(facts(timed_out="soft", end=Signaled(signal.SIGTERM, disk_full=False)))
    assert (verdict.signal, verdict.timed_out) == (signal.SIGTERM, "soft")
    verdict = decide(facts(timed_out="soft", end=Exited(7, disk_full=False)))
    assert (verdict.exit_code, verdict.timed_out) == (7, "soft")


def test_timed_out_is_said_only_of_timeouts() -> None:
    assert decide(facts(kill=KILLED, timed_out="soft")).timed_out is None


def test_a_writable_root_that_cannot_be_made_is_named() -> None:
    assert "the writable root" in decide(facts(end=MountFailed(errno.ENOENT, ROOT_INDEX))).message
    assert "folder 1" in decide(facts(end=MountFailed(errno.ENOENT, 1))).message


@each_row(
    ("changes", "message"),
    [
        ({"end": FileFailed(errno.EACCES, 1)}, "files: '/opt/b' cannot be written: the job's user may not write there"),
        ({"end": FileFailed(errno.EIO, 0)}, "files: 'a' cannot be written: Input/output error"),
        ({"end": FileFailed(errno.EIO, 9)}, "files: number 9 cannot be written: Input/output error"),
        (
            {"end": FileFailed(errno.ENOSPC, 1)},
            "files: 2 files of 2 MiB do not fit into resources.disk_bytes of 1 MiB: raise it",
        ),
        (
            {"counts": OWN_OOM, "is_started": False},
            "the job's files of 2 MiB count as memory and do not fit into 1 MiB: raise resources.memory_bytes",
        ),
    ],
)
def test_files_that_cannot_be_written_are_named_with_what_to_change(changes: dict[str, object], message: str) -> None:
    files = {"file_paths": ["a", "/opt/b"], "file_bytes": 2 << 20, "disk_bytes": 1 << 20}
    assert decide(facts(**(files | changes))).message == message


@each_row(
    ("command", "shown"),
    [
        ("nope", "'nope'"),
        ("TOKEN=hunter2-Zx ./run --all", "'TOKEN=*** ./run --all'"),
        ("curl -H 'Authorization: Bearer abcdef123456'", "***"),
        ("x" * 65_536, f"'{'x' * 199}...'"),
        ("\U0001f600" * 16_384, "...'"),
    ],
)
def test_the_program_is_named_shortly_and_without_what_looks_secret(command: str, shown: str) -> None:
    message = decide(facts(end=ExecFailed(errno.ENOENT, path_exists=False), command=command)).message
    assert shown in message
    assert len(message) < 300
    assert "hunter2" not in message
    assert "abcdef" not in message
