"""The process that becomes runsc: it waits inside the sandbox's cgroup for its command."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from sandfleet_config.errors import GVisorNotAvailable, HostResources, SandboxError

from sandfleet_worker.sandbox.process.child_process import ChildProcess
from sandfleet_worker.sandbox.process.pipes import PIPE_BYTES, Pipes, widen
from sandfleet_worker.sandbox.process.runsc import NATIVE
from sandfleet_worker.system.descriptors import HIGH_FD, RUNSC
from sandfleet_worker.system.oom_score import SANDBOX, raise_oom_score

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandfleet_config.settings import RunscSettings

INIT, LAUNCH = str(NATIVE / "init"), str(NATIVE / "launch")
EXIT_DEADLINE_SECONDS = 10.0
STDERR = 2
PASSED = 3
"""Descriptors that runsc gets beside its three streams."""


@dataclass(eq=False)
class Launcher:
    """A launcher and, once it has its command, the attached runsc that it has become.

    `passed` are the descriptors that runsc's command line names: control's read end, status' write
    end, init's ELF.
    """

    process: ChildProcess
    pipes: Pipes
    passed: Sequence[int]

    @classmethod
    def spawn(cls, settings: RunscSettings, procs_files: Sequence[str], *, is_quiet: bool = False) -> Self:
        """Start a launcher that enters the cgroups of `procs_files`.

        It dies with the thread that calls this. `is_quiet` is runsc's, see `Abilities`.

        Raises:
            GVisorNotAvailable: a program of ours is missing.
            HostResources: the host has no descriptor, process or memory left.
        """
        opened: list[int] = []
        try:
            control_r, control_w = _pipe(opened)
            status_r, status_w = _pipe(opened)
            stdin_r, stdin_w = _pipe(opened)
            stdout_r, stdout_w = _pipe(opened)
            stderr_r, stderr_w = _pipe(opened)
            init = os.open(INIT, os.O_RDONLY | os.O_CLOEXEC)
            opened.append(init)
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            # Where the worker's own were closed, a pipe may have got one of the numbers 0 to 2.
            streams = [fd if fd > STDERR else _duplicate_high(fd, opened) for fd in (stdin_r, stdout_w, stderr_w)]
            first = _find_high(opened, limit)
            passed = range(first, first + PASSED)
            command = launch_command(settings, passed, procs_files, is_quiet=is_quiet)
            process = _start(command, streams, dict(zip((control_r, status_w, init), passed, strict=True)))
        except BaseException as error:
            _close(opened)
            if isinstance(error, OSError):
                raise _new_start_error(error) from error
            raise
        raise_oom_score(process.pid, SANDBOX)
        pipes = Pipes(control=control_w, status=status_r, stdin=stdin_w, stdout=stdout_r, stderr=stderr_r)
        _set_up(pipes, opened)
        return cls(process, pipes, passed)

    @property
    def pidfd(self) -> int:
        """A descriptor that is readable once it has ended; -1 after `close`."""
        return self.process.pidfd

    def begin(self, command: Sequence[str]) -> None:
        """Let it become `command`. If it is gone, its exit says so."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.pipes.control, encode_command(command))  # shorter than an empty pipe

    def kill(self) -> None:
        """SIGKILL it, if it is still there."""
        self.process.kill()

    def is_alive(self) -> bool:
        """Whether it still runs; reap it if it does not."""
        return self.process.poll() is None

    def wait_exit(self) -> int | None:
        """Reap it and return its exit status.

        None if it is still alive after `EXIT_DEADLINE_SECONDS`.
        """
        return self.process.wait(EXIT_DEADLINE_SECONDS)

    def close(self) -> None:
        """Close its descriptors; idempotent."""
        self.process.close()
        self.pipes.close_all()


def _set_up(pipes: Pipes, opened: Sequence[int]) -> None:
    """Close all of `opened` but the worker's ends of the pipes; make these ready for a poller."""
    kept = {pipes.control, pipes.status, pipes.stdin, pipes.stdout, pipes.stderr}
    _close([fd for fd in opened if fd not in kept])
    for fd in kept:
        os.set_blocking(fd, False)
    for fd in (pipes.stdout, pipes.stderr):
        widen(fd, PIPE_BYTES)


def launch_command(
    settings: RunscSettings, passed: Sequence[int], procs_files: Sequence[str], *, is_quiet: bool = False
) -> list[str]:
    """Return a launcher's argv: it keeps `passed`, and waits on the first (`native/launch.c`)."""
    membarrier, batch = str(int(settings.membarrier or is_quiet)), str(int(not is_quiet))
    return [
        LAUNCH,
        str(os.getpid()),
        str(passed[0]),
        membarrier,
        batch,
        str(len(procs_files)),
        *procs_files,
        *map(str, passed[1:]),
    ]


def _start(command: list[str], streams: Sequence[int], passed: Mapping[int, int]) -> ChildProcess:
    """Start a launcher with `streams` as its stdin, stdout and stderr.

    `passed` maps our descriptor numbers to its own.
    """
    # One after the other, in the child: no number is overwritten that is still to be duplicated.
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for fd, number in passed.items()]
    actions += [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(streams)]
    return ChildProcess.spawn(command, {"PATH": os.environ.get("PATH", os.defpath)}, actions)


def _new_start_error(error: OSError) -> SandboxError:
    if isinstance(error, FileNotFoundError):
        msg = f"{error.filename} is missing: reinstall sandfleet-worker (its native programs are built by the package)"
        return GVisorNotAvailable.of(msg)
    return HostResources.of(f"cannot start a sandbox: {error.strerror}")


def encode_command(command: Sequence[str]) -> bytes:
    """Pack an argv as the launcher reads it: u32 length, then each word and a zero byte."""
    words = os.fsencode("\0".join([*command, ""]))
    return struct.pack("<I", len(words)) + words


def _find_high(opened: Sequence[int], limit: int) -> int:
    """Return the first of the numbers by which runsc gets its descriptors.

    It is above `HIGH_FD`, and above all of `opened`.
    """
    first = max(HIGH_FD, max(opened) + 1)
    # runsc needs higher numbers. Without them it says "bad file descriptor", and blames user
    # namespaces.
    if first + PASSED - 1 + RUNSC >= limit:
        raise OSError(errno.EMFILE, f"the limit of open files, {limit}, is too low (ulimit -n, LimitNOFILE=)")
    return first


def _duplicate_high(fd: int, opened: list[int]) -> int:
    opened.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, HIGH_FD))
    return opened[-1]


def _pipe(opened: list[int]) -> tuple[int, int]:
    pipe_ends = os.pipe2(os.O_CLOEXEC)
    opened += pipe_ends
    return pipe_ends


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
