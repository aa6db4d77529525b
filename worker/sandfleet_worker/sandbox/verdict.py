"""Whose failure is it? The one place that decides how a job ended, from facts, with a fixed precedence. Pure: no I/O.

cancelled > our timer > memory cgroup (unless init reported exit 0) > output limit > host's process fuse > init's report
> the sandbox died after *started* > it never came up. runsc's exit status is never believed: under systrap an OOM is
"exit 1", a missing program 128, a killed sentry looks like the program's own death.
"""

from __future__ import annotations

import errno
import os
import signal
from dataclasses import dataclass
from typing import Literal, assert_never

from sandfleet_config.errors import Category, ErrorCode
from sandfleet_config.words import format_bytes

from sandfleet_worker.sandbox.initproto import (
    ROOT_INDEX,
    ChdirFailed,
    ExecFailed,
    Exited,
    MountFailed,
    ProtocolFault,
    RlimitFailed,
    Signaled,
    UserFailed,
)
from sandfleet_worker.sandbox.runsc import LAUNCH_EXIT_CGROUP, LAUNCH_EXIT_EXEC, LAUNCH_EXIT_PARENT_GONE

End = Exited | Signaled | ExecFailed | ChdirFailed | UserFailed | MountFailed | RlimitFailed | ProtocolFault
"""The reports after which init is gone."""

PANIC_CHARS = 600


@dataclass(frozen=True)
class Kill:
    """Why we killed, recorded before the kill, and only while init had not reported an end."""

    code: ErrorCode
    message: str


@dataclass(frozen=True)
class Facts:
    """What is known when a sandbox is gone."""

    kill: Kill | None = None
    timed_out: Literal["soft", "hard"] | None = None
    is_ready: bool = False
    is_started: bool = False
    end: End | None = None
    oom_kills: int = 0
    pids_fuse_hits: int = 0
    is_output_over: bool = False
    runsc_exit: int | None = None
    runsc_log: str = ""
    panic: str = ""
    platform: str = ""
    command: str = ""
    memory_bytes: int = 0


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
    """Return the ending; exit code and signal so far are kept in every one."""
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
    if facts.oom_kills and not has_exited_ok:
        return ErrorCode.OUT_OF_MEMORY, _oom_message(facts)
    if facts.is_output_over:
        return ErrorCode.OUTPUT_LIMIT, kill.message if kill else "the job wrote more than output.max_bytes"
    if kill is not None:
        return kill.code, kill.message
    if facts.end is not None:
        return _from_end(facts.end, facts)
    if facts.pids_fuse_hits:
        return (
            ErrorCode.PIDS_LIMIT,
            "the sandbox ran out of host processes: lower the job's parallelism or raise resources.pids_limit",
        )
    if facts.is_started:
        return ErrorCode.SANDBOX_EXECUTION_FAILED, _died_message(facts)
    return _from_failed_start(facts)


def _is_from_outside(code: ErrorCode) -> bool:
    """Whether a kill was asked for by people or the worker, not by a limit of the job."""
    return code.category in {Category.CONTROL, Category.HOST} and code not in {
        ErrorCode.GVISOR_NOT_AVAILABLE,
        ErrorCode.SANDBOX_CREATION_FAILED,
    }


def _oom_message(facts: Facts) -> str:
    if not facts.is_started:
        return f"the sandbox itself does not fit into {format_bytes(facts.memory_bytes)} of memory: raise resources.memory_bytes"
    used = f"more than {format_bytes(facts.memory_bytes)} of memory (files on /tmp count)"
    return f"the job used {used}: raise resources.memory_bytes"


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
            return _from_exec(number, exists, facts.command)
        case ChdirFailed(errno=number):
            return ErrorCode.WORKING_DIR_INVALID, f"cannot change to the working directory: {os.strerror(number)}"
        case UserFailed(errno=number):
            return ErrorCode.USER_INVALID, f"cannot become the job's user: {os.strerror(number)}"
        case MountFailed(errno=number, index=index):
            what = "the writable root" if index == ROOT_INDEX else f"writable folder {index}"
            return ErrorCode.SANDBOX_CREATION_FAILED, f"{what} cannot be mounted: {os.strerror(number)}"
        case RlimitFailed(errno=number, resource=which):
            return ErrorCode.SANDBOX_CREATION_FAILED, f"resource limit {which} cannot be set: {os.strerror(number)}"
        case ProtocolFault(number=fault):
            return ErrorCode.INTERNAL, f"init did not understand the worker (fault {fault}): reinstall sandfleet-worker"
        case _:
            assert_never(end)


def _from_exec(number: int, path_exists: bool, command: str) -> tuple[ErrorCode, str]:  # noqa: FBT001  init's own field
    shown = ascii(command)
    if number in {errno.ENOENT, errno.ENOTDIR}:
        reason = "its interpreter is not in the image" if path_exists else "no such program in the image"
        return ErrorCode.COMMAND_NOT_FOUND, f"{shown}: {reason}"
    hint = " (a script needs a first line such as #!/bin/sh)" if number == errno.ENOEXEC else ""
    return ErrorCode.COMMAND_NOT_EXECUTABLE, f"{shown}: {os.strerror(number)}{hint}"


def _signal_name(number: int) -> str:
    try:
        return f"{signal.Signals(number).name} (signal {number})"
    except ValueError:
        return f"signal {number}"


def _died_message(facts: Facts) -> str:
    panic = facts.panic.strip()[:PANIC_CHARS]
    if panic:
        # Its kernel runs nothing but the job: most such crashes are of the job's making, by a fault of gVisor's.
        return f"the job met a fault of gVisor's that crashed its sandbox (a newer runsc may be without it): {panic}"
    return "the sandbox died under the running program; something on the host killed it"


def _from_failed_start(facts: Facts) -> tuple[ErrorCode, str]:
    told = (
        facts.runsc_log
        or facts.panic.strip()[:PANIC_CHARS]
        or f"runsc ended with status {facts.runsc_exit} and no message"
    )
    match facts.runsc_exit:
        case code if code == LAUNCH_EXIT_CGROUP:
            return ErrorCode.HOST_RESOURCES, f"the sandbox cannot enter its cgroup: {told}"
        case code if code == LAUNCH_EXIT_EXEC:
            return ErrorCode.GVISOR_NOT_AVAILABLE, f"runsc cannot be started: {told}"
        case code if code == LAUNCH_EXIT_PARENT_GONE:
            return ErrorCode.INTERNAL, "the worker's thread ended while it was starting the sandbox"
        case _:
            pass
    if not facts.is_ready and "platform" in told:
        return ErrorCode.GVISOR_NOT_AVAILABLE, f"platform {facts.platform} does not work on this host: {told}"
    return ErrorCode.SANDBOX_CREATION_FAILED, f"runsc could not start the sandbox: {told}"
