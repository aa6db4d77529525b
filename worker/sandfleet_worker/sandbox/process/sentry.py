"""The sentry, a sandbox's kernel, as a process of this host: find it, stop it, resume it."""

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
"""On a busy host a process stops only when it has got a core."""
STOPPED, ENDED = "T", frozenset("ZX")
"""Process states of proc_pid_stat(5)."""


class Sentry:
    """One sentry, held by a pidfd; `close` leaves the process as it is."""

    def __init__(self, pid: int) -> None:
        self._pid, self._pidfd = pid, os.pidfd_open(pid)
        self._asked = 0.0
        self.is_told_to_stop = False

    @classmethod
    def find(cls, paths: SandboxPaths) -> Self | None:
        """Return the sentry of a sandbox that is up.

        None if it is gone, or if no descriptor is left.
        """
        for _ in range(STATE_READS):  # runsc may be writing its state at this moment, see `find_sentry`
            with contextlib.suppress(OSError):  # of reading the folder as well as of pidfd_open
                pid = find_sentry(paths)
                if pid is not None:
                    sentry = cls(pid)
                    # Checked again with the pidfd open: another process may have got the number
                    # meanwhile.
                    if sentry.is_sentry_of(paths):
                        return sentry
                    sentry.close()
            time.sleep(STATE_PAUSE_SECONDS)
        return None

    def is_sentry_of(self, paths: SandboxPaths) -> bool:
        """Whether the process is the sentry of this sandbox.

        While it lives no other process gets its number.
        """
        return _names_folder(self._pid, paths)

    def stop(self) -> bool:
        """Tell it to stop; return False if it is gone."""
        self._asked, self.is_told_to_stop = time.monotonic(), True
        return self._signal(signal.SIGSTOP)

    @property
    def is_stopped(self) -> bool:
        """Whether it is stopped now.

        A killed process is not stopped any more, some ms before it has ended.
        """
        return read_state(self._pid) == STOPPED

    @property
    def is_dying(self) -> bool:
        """Whether it has ended, or was killed and ends within some ms."""
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
        """Resume it; return False if it is gone."""
        return self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> bool:
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        """Close the pidfd."""
        os.close(self._pidfd)


def find_sentry(paths: SandboxPaths) -> int | None:
    """Return the process id of the sandbox's sentry, None if runsc's state does not hold it (yet).

    runsc does not write its state in one step (20240729): a file that cannot be read now may be
    readable some ms later. A number that another process has got meanwhile is refused: the sentry's
    command line names the sandbox's folder.
    """
    for path in paths.folder.glob("*.state"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            pid = int(json.loads(path.read_bytes())["sandbox"]["pid"])
            if pid > 0 and _names_folder(pid, paths):
                return pid
    return None


def _names_folder(pid: int, paths: SandboxPaths) -> bool:
    """Whether a process's command line names the sandbox's folder; False if it has ended."""
    try:
        return f"--root={paths.folder}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


def read_state(pid: int) -> str:
    """Return the state letter of a process (proc_pid_stat(5)), empty if there is none."""
    try:
        # The name in brackets before it may hold any character.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""
