"""The kernel of a sandbox as a process of this host: found, stopped while it has nothing to do, and let go on."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.process.runsc import SandboxPaths

STATE_READS, STATE_PAUSE_SECONDS = 10, 0.002
STOP_SECONDS = 5.0
"""On a busy host a process gets to its own stop only when it has a core."""
STOPPED, ENDED = "T", frozenset("ZX")
"""Of proc_pid_stat(5)."""


class Sentry:
    """One sentry; `close` gives up the hold on it and leaves it as it is."""

    def __init__(self, pid: int) -> None:
        self._pid, self._pidfd = pid, os.pidfd_open(pid)
        self._asked = 0.0
        self.is_told_to_stop = False

    @classmethod
    def find(cls, paths: SandboxPaths) -> Self | None:
        """Return the sentry of a sandbox that is up; None where there is none any more, or no descriptor is left for it."""
        for _ in range(STATE_READS):  # runsc may be writing its state just now, see `find_sentry`
            with contextlib.suppress(OSError):  # of the folder's list as well as of the hold
                pid = find_sentry(paths)
                if pid is not None:
                    sentry = cls(pid)
                    # Asked again now that it is held: the number may have been another process's by then.
                    if sentry.is_sentry_of(paths):
                        return sentry
                    sentry.close()
            time.sleep(STATE_PAUSE_SECONDS)
        return None

    def is_sentry_of(self, paths: SandboxPaths) -> bool:
        """Whether the process that is held is the sentry of this sandbox: while it lives nobody else has its number."""
        return _names_folder(self._pid, paths)

    def stop(self) -> bool:
        """Tell it to stop; return False where it is gone."""
        self._asked, self.is_told_to_stop = time.monotonic(), True
        return self._signal(signal.SIGSTOP)

    @property
    def is_stopped(self) -> bool:
        """Whether it is stopped now: one that was killed is not any more, for some ms before it has ended."""
        return read_state(self._pid) == STOPPED

    @property
    def is_dying(self) -> bool:
        """Whether it has ended, or was killed and is about to: a process that was killed still runs for some ms."""
        try:
            fields = dict(line.split(":", 1) for line in Path(f"/proc/{self._pid}/status").read_text().splitlines())
        except (OSError, ValueError):
            return True
        pending = int(fields["SigPnd"], 16) | int(fields["ShdPnd"], 16)
        return fields["State"].split()[0] in ENDED or bool(pending & 1 << (signal.SIGKILL - 1))

    @property
    def is_late(self) -> bool:
        """Whether it should have stopped by now."""
        return time.monotonic() - self._asked > STOP_SECONDS

    def resume(self) -> bool:
        """Let it go on; return False where it is gone."""
        return self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> bool:
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        """Let go of it."""
        os.close(self._pidfd)


def find_sentry(paths: SandboxPaths) -> int | None:
    """Return the process id of the sandbox's kernel, None where runsc's state does not tell it (yet).

    runsc does not write its state in one step (20240729): what cannot be read now may be, some ms later. A number that another
    process has got meanwhile is refused: the sentry's own command line names the sandbox's folder.
    """
    for path in paths.folder.glob("*.state"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            pid = int(json.loads(path.read_bytes())["sandbox"]["pid"])
            if pid > 0 and _names_folder(pid, paths):
                return pid
    return None


def _names_folder(pid: int, paths: SandboxPaths) -> bool:
    """Whether a process's command line names the sandbox's folder; False where it has ended."""
    try:
        return f"--root={paths.folder}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def read_state(pid: int) -> str:
    """Return the state letter of a process (proc_pid_stat(5)), empty where there is none."""
    try:
        # The name before it, in brackets, may hold anything.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
