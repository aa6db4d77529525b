"""Decide how a job ended and whose failure it is, from facts, with a fixed precedence.

No other module does. Pure: no I/O.
1. The job was ended from outside: it was cancelled, or its worker stops.
2. Our timer.
3. The kernel killed in the sandbox for memory, and init did not report exit 0: the job's own limit,
   or the host's memory.
4. The output limit, and our other kills: the sandbox did not come up in time.
5. Init's report: the program's own end. If the image's file was changed meanwhile, a failure is not
   the program's.
6. No report: the host refused the sandbox a process, by the job's own limit or another one.
7. No report: the sandbox died after *started*, or never came up.

runsc's exit status does not count: under systrap an OOM is "exit 1", a missing program 128, and a
killed sentry looks like the program's own death.
"""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass
from typing import Literal, assert_never

from sandfleet_config.codes import Category, ErrorCode
from sandfleet_config.redaction import MAX_CHARS, hide_in_text
from sandfleet_config.units import choose_noun, format_bytes, format_count

from sandfleet_worker.sandbox.process.facts import PANIC_CHARS, Facts
from sandfleet_worker.sandbox.process.init_reports import (
    ROOT_INDEX,
    ChdirFailed,
    End,
    ExecFailed,
    Exited,
    FileFailed,
    MountFailed,
    PreparationFailed,
    ProtocolFault,
    RlimitFailed,
    SetUpFailed,
    Signaled,
    UserFailed,
)
from sandfleet_worker.sandbox.process.runsc import LAUNCH_EXIT_CGROUP, LAUNCH_EXIT_EXEC, LAUNCH_EXIT_PARENT_GONE

MAX_ARGUMENT_BYTES = 128 << 10
"""The most that one argument or variable may take, its zero byte included (execve(2):
MAX_ARG_STRLEN).
"""

MAX_PROGRAM_CHARS = 200
"""Of a program's name, in a message."""


@dataclass(frozen=True)
class Verdict:
    """How the job ended; exit code and signal are the program's own, null where it gave none."""

    code: ErrorCode
    message: str = ""
    exit_code: int | None = None
    signal: int | None = None
    timed_out: Literal["soft", "hard"] | None = None
    is_crash: bool = False
    """The sandbox's kernel panicked while the program ran."""


def decide(facts: Facts) -> Verdict:
    """Return how the job ended.

    Every verdict keeps the exit code and the signal that init has reported.
    """
    code, message = _decide_code(facts)
    exit_code = facts.end.code if isinstance(facts.end, Exited) else None
    signal_number = facts.end.signal if isinstance(facts.end, Signaled) else None
    timed_out = facts.timed_out if code is ErrorCode.TIMEOUT else None
    is_crash = code is ErrorCode.SANDBOX_EXECUTION_FAILED and bool(facts.panic)
    return Verdict(code, message, exit_code, signal_number, timed_out, is_crash)


def _decide_code(facts: Facts) -> tuple[ErrorCode, str]:
    kill = facts.kill
    if kill is not None and kill.code is not ErrorCode.TIMEOUT and _is_from_outside(kill.code):
        return kill.code, kill.message
    if facts.timed_out is not None:
        return ErrorCode.TIMEOUT, kill.message if kill else "the job ran past its timeout and ended after SIGTERM"
    has_exited_ok = isinstance(facts.end, Exited) and facts.end.code == 0
    if facts.counts.oom_kills and not has_exited_ok:
        return _from_oom_kill(facts)
    if facts.is_output_over:
        return ErrorCode.OUTPUT_LIMIT, kill.message if kill else "the job wrote more than output.max_bytes"
    if kill is not None:
        return kill.code, kill.message
    if facts.overwritten and not has_exited_ok:
        return (
            ErrorCode.SANDBOX_EXECUTION_FAILED,
            f"{facts.overwritten} on this host was written to while the job ran: add it again",
        )
    if facts.end is not None:
        return _from_end(facts.end, facts)
    if facts.counts.fork_failures:
        return _from_fork_failure(facts)
    if facts.is_started:
        return ErrorCode.SANDBOX_EXECUTION_FAILED, _died_message(facts)
    return _from_failed_start(facts)


def _is_from_outside(code: ErrorCode) -> bool:
    """Whether people or the worker asked for a kill, and not a limit of the job."""
    return code.category in {Category.CONTROL, Category.HOST} and code not in {
        ErrorCode.GVISOR_NOT_AVAILABLE,
        ErrorCode.SANDBOX_CREATION_FAILED,
    }


def _from_oom_kill(facts: Facts) -> tuple[ErrorCode, str]:
    limit = format_bytes(facts.memory_bytes)
    if not facts.counts.own_ooms:
        return (
            ErrorCode.HOST_RESOURCES,
            f"the host, or a cgroup above the sandbox's, ran out of memory; the job was within its own limit of {limit}",
        )
    if not facts.is_started and facts.file_bytes:
        files = format_bytes(facts.file_bytes)
        message = (
            f"the job's files of {files} count as memory and do not fit into {limit}: raise resources.memory_bytes"
        )
    elif not facts.is_started:
        message = f"the sandbox itself does not fit into {limit} of memory: raise resources.memory_bytes"
    else:
        message = f"the job used more than {limit} of memory (files on /tmp count): raise resources.memory_bytes"
    return ErrorCode.OUT_OF_MEMORY, message


def _from_fork_failure(facts: Facts) -> tuple[ErrorCode, str]:
    if facts.counts.pids_fuse_hits:
        return (
            ErrorCode.PIDS_LIMIT,
            "the sandbox ran out of host processes: lower the job's parallelism or raise resources.pids_limit",
        )
    return (
        ErrorCode.HOST_RESOURCES,
        "the host refused the sandbox a process: the limit of a cgroup above the sandbox's (pids.max) was reached",
    )


def _from_end(end: End, facts: Facts) -> tuple[ErrorCode, str]:
    match end:
        case Exited(code=0):
            return ErrorCode.OK, ""
        case Exited(code=code, disk_full=full):
            if full:
                return (
                    ErrorCode.DISK_LIMIT,
                    f"the disk was full when the program exited {code}: raise resources.disk_bytes",
                )
            return ErrorCode.EXIT_NONZERO, f"the program exited {code}"
        case Signaled(signal=number, disk_full=full):
            name = _signal_name(number)
            if full:
                return (
                    ErrorCode.DISK_LIMIT,
                    f"the disk was full when {name} ended the program: raise resources.disk_bytes",
                )
            return ErrorCode.SIGNALED, f"the program was ended by {name}"
        case ExecFailed(errno=number, path_exists=exists):
            return _from_exec(number, exists, facts)
        case FileFailed(errno=number, index=index):
            return ErrorCode.SPEC_INVALID, _explain_file(number, index, facts)
        case PreparationFailed(reason=reason):
            return ErrorCode.SANDBOX_CREATION_FAILED, f"the prepared interpreter was lost before the job: {reason}"
        case ProtocolFault(number=fault):
            return ErrorCode.INTERNAL, f"init did not understand the worker (fault {fault}): reinstall sandfleet-worker"
        case _:
            return _from_failed_set_up(end)


def _from_failed_set_up(end: SetUpFailed) -> tuple[ErrorCode, str]:
    match end:
        case ChdirFailed(errno=number):
            return ErrorCode.WORKING_DIR_INVALID, f"cannot change to the working directory: {os.strerror(number)}"
        case UserFailed(errno=number):
            return ErrorCode.USER_INVALID, f"cannot become the job's user: {os.strerror(number)}"
        case MountFailed(errno=number, index=index):
            what = "the writable root" if index == ROOT_INDEX else f"writable folder {index}"
            return ErrorCode.SANDBOX_CREATION_FAILED, f"{what} cannot be mounted: {os.strerror(number)}"
        case RlimitFailed(errno=number, resource=which):
            return ErrorCode.SANDBOX_CREATION_FAILED, f"resource limit {which} cannot be set: {os.strerror(number)}"
        case _:
            assert_never(end)


def _explain_file(number: int, index: int, facts: Facts) -> str:
    if number == errno.ENOSPC:
        count, size, capacity = len(facts.file_paths), format_bytes(facts.file_bytes), format_bytes(facts.disk_bytes)
        files = f"{format_count(count, 'file')} of {size} {choose_noun(count, 'does', 'do')} not fit"
        return f"files: {files} into resources.disk_bytes of {capacity}: raise it"
    path = ascii(facts.file_paths[index]) if index < len(facts.file_paths) else f"number {index}"
    reasons = {
        errno.EACCES: "the job's user may not write there",
        errno.ELOOP: "a part of its path is a symbolic link of the image",
        errno.ENOTDIR: "a part of its path is a file or a symbolic link",
        errno.EISDIR: "there is a folder of that name",
    }
    return f"files: {path} cannot be written: {reasons.get(number, os.strerror(number))}"


def _from_exec(number: int, path_exists: bool, facts: Facts) -> tuple[ErrorCode, str]:  # noqa: FBT001  init's own field
    shown, longest = _show_program(facts.command), facts.longest_argument_bytes
    if number in {errno.ENOMEM, errno.EAGAIN} and facts.counts.fork_failures:
        return _from_fork_failure(facts)  # gVisor needs a host process for each address space
    if number in {errno.ENOENT, errno.ENOTDIR}:
        reason = "its interpreter is not in the image" if path_exists else "no such program in the image"
        return ErrorCode.COMMAND_NOT_FOUND, f"{shown}: {reason}"
    if longest >= MAX_ARGUMENT_BYTES:  # gVisor calls it ENAMETOOLONG, Linux E2BIG
        return (
            ErrorCode.SPEC_INVALID,
            f"{shown}: an argument or a variable takes {longest} bytes; {MAX_ARGUMENT_BYTES - 1} are possible (execve(2))",
        )
    if number == errno.E2BIG:
        return ErrorCode.SPEC_INVALID, f"{shown}: command and env are too long for one program (execve(2))"
    hint = " (a script needs a first line such as #!/bin/sh)" if number == errno.ENOEXEC else ""
    return ErrorCode.COMMAND_NOT_EXECUTABLE, f"{shown}: {os.strerror(number)}{hint}"


def _show_program(program: str) -> str:
    """Return the program of a command for people: short, without what looks secret.

    It may be a whole line, such as ``TOKEN=... ./run``, where somebody has forgotten ``sh -c``.
    """
    shown = ascii(hide_in_text(program[:MAX_CHARS]))
    return shown if len(shown) <= MAX_PROGRAM_CHARS else f"{shown[:MAX_PROGRAM_CHARS]}...{shown[0]}"


def _signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"


def _died_message(facts: Facts) -> str:
    panic = facts.panic.strip()[:PANIC_CHARS]
    if panic:
        # Its kernel runs nothing but the job: most such crashes are of the job's making, by a fault
        # of gVisor's.
        return f"the job met a fault of gVisor's that crashed its sandbox (a newer runsc may be without it): {panic}"
    return "the sandbox died under the running program; something on the host killed it"


def _from_failed_start(facts: Facts) -> tuple[ErrorCode, str]:
    text = (
        facts.runsc_log
        or facts.panic.strip()[:PANIC_CHARS]
        or f"runsc ended with status {facts.runsc_exit} and no message"
    )
    match facts.runsc_exit:
        case code if code == LAUNCH_EXIT_CGROUP:
            return ErrorCode.HOST_RESOURCES, f"the sandbox cannot enter its cgroup: {text}"
        case code if code == LAUNCH_EXIT_EXEC:
            return ErrorCode.GVISOR_NOT_AVAILABLE, f"runsc cannot be started: {text}"
        case code if code == LAUNCH_EXIT_PARENT_GONE:
            return ErrorCode.INTERNAL, "the worker's thread ended while it was starting the sandbox"
        case _:
            pass
    if not facts.is_ready and "platform" in text:
        return ErrorCode.GVISOR_NOT_AVAILABLE, f"platform {facts.platform} does not work on this host: {text}"
    return ErrorCode.SANDBOX_CREATION_FAILED, f"runsc could not start the sandbox: {text}"


def is_ok(facts: Facts) -> bool:
    """Whether the program ended OK."""
    return decide(facts).code is ErrorCode.OK
