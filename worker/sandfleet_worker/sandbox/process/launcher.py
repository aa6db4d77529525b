"""The process that becomes runsc: it waits inside the sandbox's cgroup for its command."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal
import struct
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from sandfleet_config.errors import GVisorNotAvailable, HostResources, SandboxError

from sandfleet_worker.sandbox.process.pipes import PIPE_BYTES, Pipes, widen
from sandfleet_worker.sandbox.process.runsc import NATIVE
from sandfleet_worker.system.descriptors import HIGH_FD, RUNSC
from sandfleet_worker.system.oom_score import SANDBOX, raise_oom_score

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet_config.settings import RunscSettings

INIT, LAUNCH = str(NATIVE / "init"), str(NATIVE / "launch")
EXIT_DEADLINE_SECONDS = 10.0


@dataclass(eq=False)
class Launcher:
    """A launcher and, once it has its command, the attached runsc that it has become.

    `passed` are the descriptors that runsc's command line names: control's read end, status' write
    end, init's ELF.
    """

    process: subprocess.Popen[bytes]
    pidfd: int
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
            # The launcher gets duplicates of its own; these are closed below.
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
            passed = [_duplicate_high(fd, limit, opened) for fd in (control_r, status_w, init)]
            command = launch_command(settings, passed[0], procs_files, is_quiet=is_quiet)
            process, pidfd = _start(command, (stdin_r, stdout_w, stderr_w), passed)
        except BaseException as error:
            _close(opened)
            if isinstance(error, OSError):
                raise _new_start_error(error) from error
            raise
        raise_oom_score(process.pid, SANDBOX)
        pipes = Pipes(control=control_w, status=status_r, stdin=stdin_w, stdout=stdout_r, stderr=stderr_r)
        kept = {control_w, status_r, stdin_w, stdout_r, stderr_r}
        _close([fd for fd in opened if fd not in kept])
        for fd in kept:
            os.set_blocking(fd, False)
        for fd in (stdout_r, stderr_r):
            widen(fd, PIPE_BYTES)
        return cls(process, pidfd, pipes, passed)

    def begin(self, command: Sequence[str]) -> None:
        """Let it become `command`. If it is gone, its exit says so."""
        with contextlib.suppress(BrokenPipeError):
            os.write(self.pipes.control, encode_command(command))  # shorter than an empty pipe

    def kill(self) -> None:
        """SIGKILL it, if it is still there."""
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def is_alive(self) -> bool:
        """Whether it still runs; reap it if it does not."""
        return self.process.poll() is None

    def wait_exit(self) -> int | None:
        """Reap it and return its exit status.

        None if it is still alive after `EXIT_DEADLINE_SECONDS`.
        """
        try:
            return self.process.wait(EXIT_DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """Close its descriptors; idempotent."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
        self.pidfd = -1
        self.pipes.close_all()


def launch_command(
    settings: RunscSettings, command_fd: int, procs_files: Sequence[str], *, is_quiet: bool = False
) -> list[str]:
    """Return the argv of a launcher that waits on `command_fd`, see `native/launch.c`."""
    membarrier, batch = str(int(settings.membarrier or is_quiet)), str(int(not is_quiet))
    return [
        LAUNCH,
        str(os.getpid()),
        str(command_fd),
        membarrier,
        batch,
        str(len(procs_files)),
        *procs_files,
    ]


def _start(
    command: Sequence[str], streams: tuple[int, int, int], passed: Sequence[int]
) -> tuple[subprocess.Popen[bytes], int]:
    """Start a launcher with `streams` as its stdin, stdout and stderr.

    Return it with a pidfd of it.
    """
    stdin, stdout, stderr = streams
    process = subprocess.Popen(
        command,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        pass_fds=passed,
        cwd="/",
        env={"PATH": os.environ.get("PATH", os.defpath)},
        start_new_session=True,
    )
    try:
        return process, os.pidfd_open(process.pid)
    except BaseException:
        process.kill()
        process.wait()
        raise


def _new_start_error(error: OSError) -> SandboxError:
    if isinstance(error, FileNotFoundError):
        msg = f"{error.filename} is missing: reinstall sandfleet-worker (its native programs are built by the package)"
        return GVisorNotAvailable.of(msg)
    return HostResources.of(f"cannot start a sandbox: {error.strerror}")


def encode_command(command: Sequence[str]) -> bytes:
    """Pack an argv as the launcher reads it: u32 length, then each word and a zero byte."""
    words = os.fsencode("\0".join([*command, ""]))
    return struct.pack("<I", len(words)) + words


def _duplicate_high(fd: int, limit: int, opened: list[int]) -> int:
    if limit > HIGH_FD:
        opened.append(fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, HIGH_FD))
        # runsc needs higher numbers. Without them it says "bad file descriptor", and blames user
        # namespaces.
        if opened[-1] + RUNSC < limit:
            return opened[-1]
    raise OSError(errno.EMFILE, f"the limit of open files, {limit}, is too low (ulimit -n, LimitNOFILE=)")


def _pipe(opened: list[int]) -> tuple[int, int]:
    pipe_ends = os.pipe2(os.O_CLOEXEC)
    opened += pipe_ends
    return pipe_ends


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
