"""Supervise one running sandbox until it is gone.

Feed stdin, read both outputs and init's reports, keep the deadlines, kill. One thread and one
poller wait for all of it; nothing is polled.

Invariant: the status pipe is read once more before any kill or TERM of ours, so that a job which
had already ended is never called killed.
"""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sandfleet_config.codes import ErrorCode
from sandfleet_config.units import format_bytes

from sandfleet_worker.sandbox.process.capture import Capture
from sandfleet_worker.sandbox.process.deadlines import Deadline, Deadlines, new_kill
from sandfleet_worker.sandbox.process.facts import Clock, Kill
from sandfleet_worker.sandbox.process.init_job import TERMINATE
from sandfleet_worker.sandbox.process.init_reports import Exited, Ready, Signaled, Started, StatusParser
from sandfleet_worker.sandbox.process.pipes import CHUNK_BYTES, Feeder, read_available
from sandfleet_worker.sandbox.process.poller import WRITE, Poller

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.process.cancellation import Cancellation
    from sandfleet_worker.sandbox.process.init_reports import End
    from sandfleet_worker.sandbox.process.pipes import Pipes

STATUS_BYTES = 4096
BOOT_OUTPUT_BYTES = 64 << 10
END_DEADLINE_SECONDS = 10.0
"""After init's report or a kill, the sandbox has this long to vanish before its whole cgroup is
killed (again).
"""
DRAIN_POLL_SECONDS = 0.05


@dataclass
class Supervision:
    """One sandbox's life from its launcher to its end.

    `kill_sandbox` sends SIGKILL to all of it, `end_sandbox` to runsc alone, which takes the rest
    along. `on_booted` is called as soon as the sandbox is up or will never be.
    """

    pipes: Pipes
    pidfd: int
    kill_sandbox: Callable[[], None]
    end_sandbox: Callable[[], None]
    on_booted: Callable[[], None] = lambda: None
    clock: Clock = field(default_factory=Clock)
    kill: Kill | None = None
    timed_out: Literal["soft", "hard"] | None = None
    end: End | None = None
    stdout: Capture = field(default_factory=lambda: Capture(BOOT_OUTPUT_BYTES, "head"))
    stderr: Capture = field(default_factory=lambda: Capture(BOOT_OUTPUT_BYTES, "head"))

    def __post_init__(self) -> None:
        self._poller = Poller()
        self._parser = StatusParser()
        self._deadlines = Deadlines()
        self._limits: Admitted | None = None
        self._cancel: Cancellation | None = None
        self._boot_seconds = 0.0
        self._platform = ""
        self._is_gone = False
        # runsc's own messages; the job's own captures take their place when it starts.
        self.boot_stderr = self.stderr
        self._poller.register(self.pidfd, self._on_exit)
        self._poller.register(self.pipes.status, self._read_status)
        self._poller.register(self.pipes.stdout, self._read_stdout)
        self._poller.register(self.pipes.stderr, self._read_stderr)

    def fileno(self) -> int:
        """Return a descriptor that is readable whenever `poll` has something to do."""
        return self._poller.fileno()

    @property
    def next_deadline(self) -> float | None:
        """When `poll` is due even if nothing happens."""
        return self._deadlines.next

    @property
    def is_gone(self) -> bool:
        """Whether runsc has ended."""
        return self._is_gone

    def begin_boot(self, platform: str, deadline_seconds: float) -> None:
        """Note that runsc starts now; kill a sandbox that is not up within `deadline_seconds`."""
        self._platform, self._boot_seconds = platform, deadline_seconds
        self.clock.booted = time.monotonic()
        self._deadlines.set(Deadline.BOOT, self.clock.booted + deadline_seconds)

    def poll(self) -> None:
        """Act on the events that are there, without waiting."""
        self._step(0.0)

    @property
    def _is_live(self) -> bool:
        """Whether we could still end the job: no end is reported, no kill of ours decided."""
        return self.end is None and self.kill is None and not self._is_gone

    @property
    def is_output_over(self) -> bool:
        """Whether a stream went past its cap in a job that asked to be killed for it.

        It counts even where the job ended before our kill: which of the two came first is chance,
        how much was written is not.
        """
        if self._limits is None or self._limits.spec.output.on_limit != "kill":
            return False
        return self.stdout.is_over or self.stderr.is_over

    @property
    def ran_seconds(self) -> float | None:
        """How long the program ran by the sandbox's own clock; None where init could not say."""
        return self.end.ran_microseconds / 1e6 if isinstance(self.end, Exited | Signaled) else None

    def wait_ready(self) -> bool:
        """Wait until init is up; return False where the sandbox is gone instead."""
        while self.clock.ready is None and not self._is_gone:
            self._step()
        return self.clock.ready is not None

    def run(
        self,
        message: bytes,
        limits: Admitted,
        cancel: Cancellation,
        deadline: float | None,
        allow_start: Callable[[], None] = lambda: None,
    ) -> None:
        """Hand over the job's `message` and wait until the sandbox is gone and all output is read.

        `allow_start` is called just before; the job does not start if it raises.
        """
        self._limits, self._cancel = limits, cancel
        if deadline is not None:
            self._deadlines.set(Deadline.CALLER, deadline)
        self._poller.register(cancel.open_fd(), self._on_cancel)
        try:
            if self.wait_ready():
                allow_start()
                self._hand_over(message, limits)
            while not self._is_gone:
                self._step()
            self._drain()
        finally:
            self._poller.unregister(cancel.open_fd())
            cancel.close_fd()

    def close(self) -> None:
        """Close the poller; the pipes are the caller's."""
        self._poller.close()

    def _hand_over(self, message: bytes, limits: Admitted) -> None:
        self._deadlines.keep_only(Deadline.CALLER)
        self._deadlines.set(Deadline.START, time.monotonic() + self._boot_seconds)
        output = limits.spec.output
        self.stdout = Capture(limits.output_bytes, output.keep)
        self.stderr = Capture(limits.output_bytes, output.keep)
        self._control = Feeder(self.pipes.control, message)
        if not self._control.feed():  # most messages fit into the pipe at once
            self._poller.register(self.pipes.control, self._feed_control, WRITE)
        if stdin := limits.spec.stdin.to_bytes():
            self._stdin = Feeder(self.pipes.stdin, stdin)
            self._poller.register(self.pipes.stdin, self._feed_stdin, WRITE)
        else:
            self.pipes.close("stdin")

    def _step(self, timeout: float | None = None) -> None:
        """Wait for the next event or the next deadline, and act on it."""
        if timeout is None and (due := self._deadlines.next) is not None:
            timeout = max(0.0, due - time.monotonic())
        self._poller.wait(timeout)
        for name in self._deadlines.take_due(time.monotonic()):
            self._on_deadline(name)

    def _on_deadline(self, name: Deadline) -> None:
        if name is Deadline.END:
            # Killed or ended, and still there: kill the rest of it, again and again until it is
            # gone.
            self.kill_sandbox()
            self._deadlines.set(Deadline.END, time.monotonic() + END_DEADLINE_SECONDS)
            return
        self._read_status()
        if not self._is_live:
            return
        if name is Deadline.SOFT:
            self.timed_out = "soft"
            with contextlib.suppress(BrokenPipeError, BlockingIOError):
                os.write(self.pipes.control, TERMINATE)
            return
        if name in {Deadline.HARD, Deadline.CALLER}:
            self.timed_out = "hard"
        self._kill(new_kill(name, self._platform, self._boot_seconds, self._limits))

    def _on_cancel(self) -> None:
        assert self._cancel is not None
        os.eventfd_read(self._cancel.open_fd())  # else it stays readable and this loop spins
        self._read_status()
        if self._is_live:
            self._kill(Kill(self._cancel.code, self._cancel.message))

    def _kill(self, kill: Kill) -> None:
        self.kill = kill
        self._deadlines.set_only(Deadline.END, time.monotonic() + END_DEADLINE_SECONDS)
        self.kill_sandbox()

    def _on_exit(self) -> None:
        self._is_gone = True
        self.clock.gone = time.monotonic()
        self._poller.unregister(self.pidfd)
        self.on_booted()

    def _read_status(self) -> None:
        data = read_available(self.pipes.status, STATUS_BYTES)
        if data is None:
            return
        if not data:
            self._close("status")
            return
        now = time.monotonic()
        for report in self._parser.feed(data):
            match report:
                case Ready():
                    self.clock.ready = now
                    self._deadlines.drop(Deadline.BOOT)
                    self.on_booted()
                case Started():
                    self.clock.started = now
                    self._start_clocks(now)
                case end:
                    self.end = self.end or end
                    self.clock.ended = self.clock.ended or now
                    self._deadlines.set_only(Deadline.END, now + END_DEADLINE_SECONDS)
                    # All output of the program is in the pipes: its writes were the host's. Its
                    # background processes die now, and not some ms later when runsc tidies up.
                    self.end_sandbox()

    def _start_clocks(self, now: float) -> None:
        limits = self._limits
        if limits is None:
            return
        self._deadlines.drop(Deadline.START)
        self._deadlines.set(Deadline.SOFT, now + limits.timeout_seconds)
        self._deadlines.set(Deadline.HARD, now + limits.timeout_seconds + limits.grace_seconds)

    def _read_stdout(self) -> None:
        self._read_output("stdout", self.stdout)

    def _read_stderr(self) -> None:
        self._read_output("stderr", self.stderr)

    def _read_output(self, name: str, capture: Capture) -> None:
        data = read_available(getattr(self.pipes, name), CHUNK_BYTES)
        if data is None:
            return
        if not data:
            self._close(name)
            return
        capture.feed(data)
        if capture.is_over and self.is_output_over and self._is_live:
            self._read_status()
            if self._is_live:
                most = format_bytes(capture.max_bytes)
                message = f"the job wrote more than {most} to {name}: raise output.max_bytes"
                self._kill(Kill(ErrorCode.OUTPUT_LIMIT, message))

    def _feed_control(self) -> None:
        if self._control.feed():
            self._poller.unregister(self.pipes.control)  # kept open: its end of file ends the sandbox

    def _feed_stdin(self) -> None:
        if self._stdin.feed():
            self._close("stdin")

    def _close(self, name: str) -> None:
        self._poller.unregister(getattr(self.pipes, name))
        self.pipes.close(name)

    def _drain(self) -> None:
        """Read the rest of the pipes after the sandbox is gone; their other ends died with it."""
        deadline = time.monotonic() + END_DEADLINE_SECONDS
        while any(getattr(self.pipes, name) >= 0 for name in ("status", "stdout", "stderr")):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            # A stub that is still dying may hold a pipe's end for some ms more.
            if not self._poller.wait(min(remaining, DRAIN_POLL_SECONDS)):
                self.kill_sandbox()
