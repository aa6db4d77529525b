"""One sandbox, from an empty folder to nothing left: a berth, a boot up to *ready*, perhaps some time idle, one job, gone.

Destroying it cleans up in total, and can meet: a runsc that is still alive (killed with its cgroup), stopped or not, a busy
cgroup (retried), files of runsc's state (removed). What fails there is logged and left to the janitor.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from sandfleet_config.errors import GVisorNotAvailable, HostResources

from sandfleet_worker.sandbox.bundle import encode_config
from sandfleet_worker.sandbox.runsc import (
    NATIVE,
    SandboxPaths,
    duplicate_high,
    encode_command,
    find_sentry,
    launch_command,
    new_command,
    read_state,
)
from sandfleet_worker.sandbox.supervision import Pipes, Supervision

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from sandfleet_config.settings import LimitName, RunscSettings

    from sandfleet_worker.policy import Admitted
    from sandfleet_worker.sandbox.cgroups import SandboxCgroup
    from sandfleet_worker.sandbox.runsc import RunscBinary

log = logging.getLogger(__name__)

PIPE_BYTES = 1 << 20
EXIT_DEADLINE_SECONDS = 10.0
STATE_READS, STATE_PAUSE_SECONDS = 10, 0.002
STOP_SECONDS = 5.0
"""On a busy host a process gets to its own stop only when it has a core."""
STOPPED = "T"
"""Of proc_pid_stat(5)."""


@dataclass(frozen=True)
class Plan:
    """What a sandbox is built from: everything that cannot change once it is up, and nothing of any job.

    `identity` tells the image's file from another one at the same path.
    """

    binary: RunscBinary
    platform: str
    erofs: Path
    identity: tuple[int, ...]

    @classmethod
    def of(cls, binary: RunscBinary, platform: str, erofs: Path) -> Self:
        """Return the plan for the image file that is there now.

        Raises:
            FileNotFoundError: there is none.
        """
        facts = erofs.stat()
        # The change time too: whoever overwrites a file in place can set its other times back, not that one (inode(7)).
        identity = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        return cls(binary, platform, erofs, identity)

    @property
    def is_stale(self) -> bool:
        """Whether the image's file has gone or been replaced since."""
        try:
            return self.of(self.binary, self.platform, self.erofs) != self
        except OSError:
            return True


class Sandbox:
    """One single-use sandbox: `open`, `boot`, perhaps `stop` and `wake`, `assign`, and then its `supervision` runs the job.

    Enter it to have it destroyed at the end. Must be opened by a thread that outlives it, see `launch_command`.
    """

    def __init__(
        self,
        settings: RunscSettings,
        paths: SandboxPaths,
        cgroup: SandboxCgroup,
        allow_unenforced: frozenset[LimitName] = frozenset(),
    ) -> None:
        self._settings, self._allow_unenforced = settings, allow_unenforced
        self.paths, self.cgroup = paths, cgroup
        self.plan: Plan | None = None
        self.is_warm = False
        self._process: subprocess.Popen[bytes] | None = None
        self._pipes: Pipes | None = None
        self._pidfd = self._sentry = self._sentry_pid = -1
        self._stopped = 0.0
        self.supervision: Supervision

    def __enter__(self) -> Self:
        """Return the sandbox, which is open already."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Destroy the sandbox and everything it left on the host."""
        self.destroy()

    def open(self) -> Self:
        """Make a berth: folder, cgroup, pipes, and a launcher inside that waits. It knows neither image nor job.

        Raises:
            HostResources: the host has no room; what was made of it is gone again.
        """
        try:
            self._make()
        except BaseException:
            self.destroy()
            raise
        return self

    def _make(self) -> None:
        try:
            self.paths.make()
        except OSError as error:
            raise _no_folder(error) from error
        self.cgroup.make()
        self._spawn()
        assert self._pipes is not None
        self.supervision = Supervision(
            pipes=self._pipes, pidfd=self._pidfd, kill_sandbox=self.kill, end_sandbox=self._kill_runsc
        )

    def boot(self, plan: Plan) -> None:
        """Start runsc in the berth, under the limits that its cgroup has by now.

        Raises:
            HostResources: its folder cannot be written.
        """
        self.plan = plan
        try:
            with open(f"{self.paths.folder}/config.json", "xb") as file:  # noqa: PTH123  faster than pathlib's
                file.write(encode_config(self.paths.rootfs, plan.erofs))
        except OSError as error:
            raise _no_folder(error) from error
        command = encode_command(new_command(plan.binary, self._settings, plan.platform, self.paths, self._passed))
        self.supervision.begin_boot(plan.platform, self._settings.boot_deadline_seconds)
        assert self._pipes is not None
        # Shorter than an empty pipe. A launcher that is gone is told by its exit.
        with contextlib.suppress(BrokenPipeError):
            os.write(self._pipes.control, command)

    def stop(self) -> bool:
        """Tell an idle sandbox's kernel to stop, which would poll for ever; return False where it cannot be found.

        It is warm once `note_stop` has seen it stopped.

        runsc 20240729 burns 2 % of a core in each idle sandbox (gVisor issue 13361); stopped it takes none.
        """
        for _ in range(STATE_READS):  # runsc may be writing it just now, see `find_sentry`
            pid = find_sentry(self.paths)
            if pid is not None:
                break
            time.sleep(STATE_PAUSE_SECONDS)
        else:
            return False
        try:
            self._sentry, self._sentry_pid = os.pidfd_open(pid), pid
            signal.pidfd_send_signal(self._sentry, signal.SIGSTOP)
        except OSError:
            return False
        self._stopped = time.monotonic()
        return True

    @property
    def is_stopping(self) -> bool:
        """Whether it was told to stop, and has not been seen stopped yet."""
        return self._sentry >= 0 and not self.is_warm

    def note_stop(self) -> bool:
        """See whether the sandbox has stopped; return False where it does not."""
        self.is_warm = read_state(self._sentry_pid) == STOPPED
        return self.is_warm or time.monotonic() - self._stopped < STOP_SECONDS

    def wake(self) -> bool:
        """Let a stopped sandbox go on; return False where it has died, or is about to."""
        self.supervision.poll()
        # One that was killed is not stopped any more, for some ms before it has ended.
        if self.supervision.is_gone or (self.is_warm and read_state(self._sentry_pid) != STOPPED):
            return False
        if self._sentry >= 0:
            try:
                signal.pidfd_send_signal(self._sentry, signal.SIGCONT)
            except ProcessLookupError:
                return False
        return True

    def assign(self, limits: Admitted) -> None:
        """Hold the sandbox to the job's limits from now on.

        Raises:
            HostResources: one of them cannot be enforced on this host.
        """
        self.supervision.clock.taken = time.monotonic()
        self.cgroup.apply(limits)
        self._require_limits(limits)

    @property
    def enforced(self) -> frozenset[str]:
        """The limits this host holds the job to: of memory, cpu, pids, disk."""
        # The disk is a tmpfs inside, made by init: no job starts without it.
        return self.cgroup.enforced | {"disk"}

    def _require_limits(self, limits: Admitted) -> None:
        """Refuse rather than degrade: a limit that does not hold is an error unless the operator allowed it by name."""
        needed = {"memory", "pids", "disk"} | ({"cpu"} if limits.cpu_quota else set())
        if missing := sorted(needed - self.enforced - self._allow_unenforced):
            names = ",".join(missing)
            msg = (
                f"this host cannot enforce the limits {names}: give the worker a writable cgroup, "
                f"or set SANDFLEET_ALLOW_UNENFORCED={names} to run without them"
            )
            raise HostResources.of(msg)

    def _spawn(self) -> None:
        opened: list[int] = []
        try:
            control_r, control_w = _pipe(opened)
            status_r, status_w = _pipe(opened)
            stdin_r, stdin_w = _pipe(opened)
            stdout_r, stdout_w = _pipe(opened)
            stderr_r, stderr_w = _pipe(opened)
            init = os.open(NATIVE / "init", os.O_RDONLY | os.O_CLOEXEC)
            opened.append(init)
            passed = [duplicate_high(fd) for fd in (control_r, status_w, init)]
            opened += passed
            process = subprocess.Popen(
                launch_command(self._settings, passed[0], self.cgroup.procs_files),
                stdin=stdin_r,
                stdout=stdout_w,
                stderr=stderr_w,
                pass_fds=passed,
                cwd="/",
                env={"PATH": os.environ.get("PATH", os.defpath)},
                start_new_session=True,
            )
        except OSError as error:
            _close(opened)
            if isinstance(error, FileNotFoundError):
                msg = f"{error.filename} is missing: reinstall sandfleet-worker (its native programs are built by the package)"
                raise GVisorNotAvailable.of(msg) from error
            msg = f"cannot start a sandbox: {error.strerror}"
            raise HostResources.of(msg) from error
        self._process = process
        self._passed = passed  # the launcher has its own; runsc's command line names them by number
        self._pipes = Pipes(control=control_w, status=status_r, stdin=stdin_w, stdout=stdout_r, stderr=stderr_r)
        kept = {control_w, status_r, stdin_w, stdout_r, stderr_r}
        _close([fd for fd in opened if fd not in kept])
        for fd in kept:
            os.set_blocking(fd, False)
        for fd in (stdout_r, stderr_r):
            with contextlib.suppress(OSError):  # only fewer wake-ups: the default of 64 KiB works too
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._pidfd = os.pidfd_open(process.pid)

    def kill(self) -> None:
        """SIGKILL all of it: the attached runsc takes sentry and stubs along by parent-death signal, the cgroup the rest."""
        self._kill_runsc()
        self.cgroup.kill()

    def _kill_runsc(self) -> None:
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def wait_exit(self) -> int | None:
        """Reap runsc and return its exit status; None where it will not die."""
        if self._process is None:
            return None
        try:
            return self._process.wait(EXIT_DEADLINE_SECONDS)
        except subprocess.TimeoutExpired:
            return None

    def destroy(self) -> None:
        """Kill and remove everything; idempotent."""
        if self._process is not None and self._process.poll() is None:
            self.kill()
            self.wait_exit()
        for fd in (self._pidfd, self._sentry):
            if fd >= 0:
                os.close(fd)
        self._pidfd = self._sentry = -1
        if self._pipes is not None:
            self.supervision_close()
            self._pipes.close_all()
        try:
            self.cgroup.remove()
        except HostResources as error:
            log.warning("%s; the janitor will try again", error.message, extra={"action": "cgroup_left"})
        remove_folder(self.paths.folder)

    def supervision_close(self) -> None:
        """Close the selector, if the sandbox came so far; one that was still booting gives its turn back."""
        if hasattr(self, "supervision"):
            self.supervision.on_booted()
            self.supervision.close()


def _no_folder(error: OSError) -> HostResources:
    return HostResources.of(f"cannot prepare the sandbox's folder: {error.strerror} ({error.filename})")


def _pipe(opened: list[int]) -> tuple[int, int]:
    ends = os.pipe2(os.O_CLOEXEC)
    opened += ends
    return ends


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)


def remove_folder(folder: Path) -> None:
    """Remove a sandbox's folder; fine when it is gone already."""
    try:
        if not _remove_flat(folder):
            shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning(
            "cannot remove %s: %s; the janitor will try again", folder, error.strerror, extra={"action": "folder_left"}
        )


def _remove_flat(folder: Path) -> bool:
    """Remove a folder of files, as every sandbox's is, by a third of the system calls of `shutil.rmtree`; follow no link.

    Return False where there is more in it.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        for name in os.listdir(descriptor):  # noqa: PTH208  pathlib knows no descriptors
            os.unlink(name, dir_fd=descriptor)
    except IsADirectoryError:
        return False
    finally:
        os.close(descriptor)
    os.rmdir(folder)  # noqa: PTH106  each job takes this way, and pathlib makes it dearer
    return True
