"""Watch one running sandbox until it is gone: feed stdin, drain both outputs, hear init, keep the clocks, kill.

One thread, one selector, no polling. Invariant: before any kill or TERM of ours the status pipe is read once more, so that a
job which had already ended is never called killed.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sandfleet_config.codes import ErrorCode
from sandfleet_config.words import format_bytes

from sandfleet_worker.sandbox.process.capture import Capture
from sandfleet_worker.sandbox.process.facts import Kill
from sandfleet_worker.sandbox.process.init_protocol import TERMINATE, Exited, Ready, Signaled, Started, StatusParser

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.process.cancellation import Cancellation
    from sandfleet_worker.sandbox.process.facts import End
    from sandfleet_worker.sandbox.process.launcher import Pipes

READ_BYTES = 1 << 20
BOOT_OUTPUT_BYTES = 64 << 10
END_DEADLINE_SECONDS = 10.0
"""After init's report or a kill, the sandbox has this long to vanish before its whole cgroup is killed (again)."""


@dataclass
class Clock:
    """When each step happened, monotonic seconds; `taken` is when the sandbox got its job."""

    booted: float | None = None
    ready: float | None = None
    taken: float | None = None
    started: float | None = None
    ended: float | None = None
    gone: float | None = None


@dataclass
class Supervision:
    """One sandbox's life from its launcher to gone.

    `kill_sandbox` sends SIGKILL to all of it, `end_sandbox` to runsc alone, which takes the rest along. `on_booted` is called
    once, as soon as the sandbox is up or will never be.
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
        self._selector = selectors.DefaultSelector()
        self._parser = StatusParser()
        self._stdin = memoryview(b"")
        self._message = memoryview(b"")
        self._limits: Admitted | None = None
        self._cancel: Cancellation | None = None
        self._deadlines: dict[str, float] = {}
        self._boot_deadline = 0.0
        self._platform = ""
        self._is_gone = False
        # What runsc itself says; the job's own captures take their place when it starts.
        self.boot_stderr = self.stderr
        self._selector.register(self.pidfd, selectors.EVENT_READ, self._on_exit)
        self._selector.register(self.pipes.status, selectors.EVENT_READ, self._read_status)
        self._selector.register(self.pipes.stdout, selectors.EVENT_READ, self._read_stdout)
        self._selector.register(self.pipes.stderr, selectors.EVENT_READ, self._read_stderr)

    def fileno(self) -> int:
        """Return a descriptor that is readable whenever `poll` has something to do."""
        return self._selector.fileno()

    @property
    def next_deadline(self) -> float | None:
        """When `poll` is due even if nothing happens."""
        return min(self._deadlines.values(), default=None)

    @property
    def is_gone(self) -> bool:
        """Whether runsc has ended."""
        return self._is_gone

    def begin_boot(self, platform: str, deadline_seconds: float) -> None:
        """Note that runsc starts now; a sandbox that is not up within `deadline_seconds` is killed."""
        self._platform, self._boot_deadline = platform, deadline_seconds
        self.clock.booted = time.monotonic()
        self._deadlines["boot"] = self.clock.booted + deadline_seconds

    def poll(self) -> None:
        """Act on what has happened, without waiting."""
        self._step(0.0)

    @property
    def _is_live(self) -> bool:
        """Whether the job could still be ended by us: no end reported, nothing of ours decided yet."""
        return self.end is None and self.kill is None and not self._is_gone

    @property
    def is_output_over(self) -> bool:
        """Whether a stream went past its cap in a job that asked to be killed for it.

        It counts even where the job ended before our kill: which of the two came first is chance, what was written is not.
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
        """Hand over the job's `message` and wait until the sandbox is gone and both outputs are read to their ends.

        `allow_start` is called just before; the job does not start if it raises.
        """
        self._limits, self._cancel = limits, cancel
        if deadline is not None:
            self._deadlines["deadline"] = deadline
        self._selector.register(cancel.open_fd(), selectors.EVENT_READ, self._on_cancel)
        try:
            if self.wait_ready():
                allow_start()
                self._hand_over(message)
            while not self._is_gone:
                self._step()
            self._drain()
        finally:
            self._selector.unregister(cancel.open_fd())
            cancel.close_fd()

    def close(self) -> None:
        """Close the selector; the pipes are the caller's."""
        self._selector.close()

    def _hand_over(self, message: bytes) -> None:
        assert self._limits is not None
        self._deadlines = {name: at for name, at in self._deadlines.items() if name == "deadline"}
        self._deadlines["start"] = time.monotonic() + self._boot_deadline
        output = self._limits.spec.output
        self.stdout = Capture(self._limits.output_bytes, output.keep)
        self.stderr = Capture(self._limits.output_bytes, output.keep)
        self._message = memoryview(message)
        self._selector.register(self.pipes.control, selectors.EVENT_WRITE, self._feed_control)
        self._stdin = memoryview(self._limits.spec.stdin.to_bytes())
        if self._stdin:
            self._selector.register(self.pipes.stdin, selectors.EVENT_WRITE, self._feed_stdin)
        else:
            self.pipes.close("stdin")

    def _step(self, timeout: float | None = None) -> None:
        """Wait for the next thing to happen, or for the next deadline, and act on it."""
        if timeout is None and self._deadlines:
            timeout = max(0.0, min(self._deadlines.values()) - time.monotonic())
        for key, _ in self._selector.select(timeout):
            key.data()
        now = time.monotonic()
        for name, at in sorted(self._deadlines.items(), key=lambda item: item[1]):
            if at <= now and self._deadlines.pop(name, None) is not None:
                self._on_deadline(name)

    def _on_deadline(self, name: str) -> None:
        if name == "end":
            # Killed or ended, and still there: kill whatever is left, again and again until it is gone.
            self.kill_sandbox()
            self._deadlines["end"] = time.monotonic() + END_DEADLINE_SECONDS
            return
        self._read_status()
        if not self._is_live:
            return
        limits = self._limits
        match name:
            case "boot":
                message = f"platform {self._platform} did not boot a sandbox within {self._boot_deadline:g} s"
                self._kill(ErrorCode.GVISOR_NOT_AVAILABLE, message)
            case "start":
                message = f"the program did not start within {self._boot_deadline:g} s of the sandbox being up"
                self._kill(ErrorCode.SANDBOX_CREATION_FAILED, message)
            case "soft":
                self.timed_out = "soft"
                with contextlib.suppress(BrokenPipeError, BlockingIOError):
                    os.write(self.pipes.control, TERMINATE)
            case "hard" if limits is not None:
                self.timed_out = "hard"
                message = f"the job ran past its timeout of {limits.timeout_seconds:g} s and {limits.grace_seconds:g} s of grace"
                self._kill(ErrorCode.TIMEOUT, message)
            case _:
                self.timed_out = "hard"
                self._kill(ErrorCode.TIMEOUT, "the caller's deadline passed")

    def _on_cancel(self) -> None:
        assert self._cancel is not None
        os.eventfd_read(self._cancel.open_fd())  # else it stays readable and this loop spins
        self._read_status()
        if self._is_live:
            self._kill(self._cancel.code, self._cancel.message)

    def _kill(self, code: ErrorCode, message: str) -> None:
        self.kill = Kill(code, message)
        self._deadlines = {"end": time.monotonic() + END_DEADLINE_SECONDS}
        self.kill_sandbox()

    def _on_exit(self) -> None:
        self._is_gone = True
        self.clock.gone = time.monotonic()
        self._selector.unregister(self.pidfd)
        self.on_booted()

    def _read_status(self) -> None:
        if self.pipes.status < 0:
            return
        data = _read(self.pipes.status, 4096)
        if data is None:
            return
        if not data:
            self._forget("status")
            return
        now = time.monotonic()
        for report in self._parser.feed(data):
            match report:
                case Ready():
                    self.clock.ready = now
                    self._deadlines.pop("boot", None)
                    self.on_booted()
                case Started():
                    self.clock.started = now
                    self._start_clocks(now)
                case end:
                    self.end = self.end or end
                    self.clock.ended = self.clock.ended or now
                    self._deadlines = {"end": now + END_DEADLINE_SECONDS}
                    # All that the program wrote is in the pipes: its writes were the host's. What it left in the background
                    # dies now and not some ms later by runsc's own tidying up.
                    self.end_sandbox()

    def _start_clocks(self, now: float) -> None:
        limits = self._limits
        if limits is None:
            return
        self._deadlines.pop("start", None)
        self._deadlines["soft"] = now + limits.timeout_seconds
        self._deadlines["hard"] = now + limits.timeout_seconds + limits.grace_seconds

    def _read_stdout(self) -> None:
        self._read_output("stdout", self.stdout)

    def _read_stderr(self) -> None:
        self._read_output("stderr", self.stderr)

    def _read_output(self, name: str, capture: Capture) -> None:
        data = _read(getattr(self.pipes, name), READ_BYTES)
        if data is None:
            return
        if not data:
            self._forget(name)
            return
        capture.feed(data)
        if (
            capture.is_over
            and self._limits is not None
            and self._limits.spec.output.on_limit == "kill"
            and self._is_live
        ):
            self._read_status()
            if self._is_live:
                self._kill(
                    ErrorCode.OUTPUT_LIMIT,
                    f"the job wrote more than {format_bytes(capture.max_bytes)} to {name}: raise output.max_bytes",
                )

    def _feed_control(self) -> None:
        try:
            self._message = self._message[os.write(self.pipes.control, self._message) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._message = self._message[:0]  # the sandbox died; its exit is told by the pidfd
        if not self._message:
            self._selector.unregister(self.pipes.control)  # kept open: its end of file ends the sandbox

    def _feed_stdin(self) -> None:
        try:
            self._stdin = self._stdin[os.write(self.pipes.stdin, self._stdin[:READ_BYTES]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._stdin = self._stdin[:0]  # the program closed its stdin: its right
        if not self._stdin:
            self._forget("stdin")

    def _forget(self, name: str) -> None:
        self._selector.unregister(getattr(self.pipes, name))
        self.pipes.close(name)

    def _drain(self) -> None:
        """Read what is left in the pipes after the sandbox is gone; their other ends died with it."""
        deadline = time.monotonic() + END_DEADLINE_SECONDS
        while any(getattr(self.pipes, name) >= 0 for name in ("status", "stdout", "stderr")):
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                return
            # A stub that is still dying may hold a pipe's end for some ms more.
            events = self._selector.select(min(remaining, 0.05))
            for key, _ in events:
                key.data()
            if not events:
                self.kill_sandbox()


def _read(fd: int, size: int) -> bytes | None:
    """Return what is there, empty at the end of the file, None when there is nothing yet."""
    if fd < 0:
        return None
    try:
        return os.read(fd, size)
    except BlockingIOError:
        return None
