"""Child processes that live and die with this one."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Stage:
    """One step of asking a child to end: a signal, and how long to wait for its effect."""

    signal: signal.Signals
    seconds: float


class Child:
    """One child in a session of its own, so that a terminal's Ctrl-C reaches only its parent.

    Must be started by a thread that outlives it: the parent-death signal fires when the starting
    *thread* ends.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        on_parent_death: signal.Signals,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self.name = name
        parent = os.getpid()

        def die_with_parent() -> None:
            _libc.prctl(PR_SET_PDEATHSIG, int(on_parent_death))
            if os.getppid() != parent:  # it died before we asked
                os._exit(1)

        self._process = subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=pass_fds,
            preexec_fn=die_with_parent,  # noqa: PLW1509  no thread of ours runs yet, and prctl is async-signal-safe
        )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def ended(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        if self.ended is None:
            self._process.send_signal(number)

    def stop(self, *stages: Stage) -> None:
        """Ask it to end, ever more firmly, then kill it."""
        for stage in (*stages, Stage(signal.SIGKILL, 10.0)):
            if self.ended is None:
                self.send(stage.signal)
                self.wait(stage.seconds)

    def wait(self, seconds: float) -> bool:
        """Wait for its end; return whether it came."""
        deadline = time.monotonic() + seconds
        while self.ended is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return self.ended is not None
