"""One sandbox, from an empty folder to nothing left: boot up to *ready*, run one job, destroy.

Leaving the context cleans up in total, and can meet: a runsc that is still alive (killed with its cgroup), a busy cgroup
(retried), files of runsc's state (removed). What fails there is logged and left to the janitor.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import shutil
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from sandfleet_config.errors import GVisorNotAvailable, HostResources

from sandfleet_worker.sandbox.bundle import new_config
from sandfleet_worker.sandbox.capture import Capture
from sandfleet_worker.sandbox.runsc import NATIVE, SandboxPaths, duplicate_high, launch_command, new_command
from sandfleet_worker.sandbox.supervision import Clock, Pipes, Supervision

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


@dataclass(frozen=True)
class Plan:
    """What a sandbox is built from: everything that cannot change once it is up."""

    binary: RunscBinary
    settings: RunscSettings
    platform: str
    erofs: Path


class Sandbox:
    """One single-use sandbox; enter it to boot, leave it to destroy it."""

    def __init__(
        self,
        plan: Plan,
        paths: SandboxPaths,
        cgroup: SandboxCgroup,
        limits: Admitted,
        allow_unenforced: frozenset[LimitName] = frozenset(),
    ) -> None:
        self.plan = plan
        self._allow_unenforced = allow_unenforced
        self.paths = paths
        self.cgroup = cgroup
        self.limits = limits
        self._process: subprocess.Popen[bytes] | None = None
        self._pipes: Pipes | None = None
        self._pidfd = -1
        self.supervision: Supervision

    def __enter__(self) -> Self:
        """Spawn runsc; what fails half-way is cleaned up before the error leaves."""
        try:
            self._create()
        except BaseException:
            self.destroy()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Destroy the sandbox and everything it left on the host."""
        self.destroy()

    def _create(self) -> None:
        try:
            self.paths.make()
            config = new_config(self.paths.rootfs, self.plan.erofs)
            (self.paths.folder / "config.json").write_text(json.dumps(config))
        except OSError as error:
            msg = f"cannot prepare the sandbox's folder: {error.strerror} ({error.filename})"
            raise HostResources.of(msg) from error
        self.cgroup.create(self.limits)
        self._require_limits()
        spawned = time.monotonic()
        self._spawn()
        assert self._pipes is not None
        output = self.limits.spec.output
        self.supervision = Supervision(
            pipes=self._pipes,
            pidfd=self._pidfd,
            stdout=Capture(self.limits.output_bytes, output.keep),
            stderr=Capture(self.limits.output_bytes, output.keep),
            platform=self.plan.platform,
            boot_deadline=self.plan.settings.boot_deadline_seconds,
            kill_sandbox=self.kill,
            clock=Clock(spawned=spawned),
        )

    @property
    def enforced(self) -> frozenset[str]:
        """The limits this host holds the job to: of memory, cpu, pids, disk."""
        # The disk is a tmpfs inside, made by init: no job starts without it.
        return self.cgroup.enforced | {"disk"}

    def _require_limits(self) -> None:
        """Refuse rather than degrade: a limit that does not hold is an error unless the operator allowed it by name."""
        needed = {"memory", "pids", "disk"} | ({"cpu"} if self.limits.cpu_quota else set())
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
            command = new_command(self.plan.binary, self.plan.settings, self.plan.platform, self.paths, passed)
            process = subprocess.Popen(
                launch_command(command, self.cgroup.procs_files),
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
        if self._process is not None:
            self._process.kill()
        self.cgroup.kill()

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
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        if self._pipes is not None:
            self.supervision_close()
            self._pipes.close_all()
        try:
            self.cgroup.remove()
        except HostResources as error:
            log.warning("%s; the janitor will try again", error.message, extra={"action": "cgroup_left"})
        remove_folder(self.paths.folder)

    def supervision_close(self) -> None:
        """Close the selector, if the sandbox came so far."""
        if hasattr(self, "supervision"):
            self.supervision.close()


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
        shutil.rmtree(folder)
    except FileNotFoundError:
        pass
    except OSError as error:
        log.warning(
            "cannot remove %s: %s; the janitor will try again", folder, error.strerror, extra={"action": "folder_left"}
        )
