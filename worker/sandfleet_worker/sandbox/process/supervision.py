"""Supervise one running sandbox until it is gone.

Feed it, read outputs and init's reports, keep the deadlines, kill: one thread, with one poller.

Invariant: the status pipe is read once more before any kill or TERM of ours, so that a job which
had already ended is never called killed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from sandfleet_config.codes import Category, ErrorCode
from sandfleet_config.units import format_bytes

from sandfleet_worker.sandbox.process.deadlines import (
    FILES_SECONDS,
    STOP_SECONDS,
    Deadline,
    Deadlines,
    is_met,
    new_kill,
)
from sandfleet_worker.sandbox.process.facts import Clock, Kill
from sandfleet_worker.sandbox.process.feeding import Feeding
from sandfleet_worker.sandbox.process.init_job import END_PROCESSES, TERMINATE
from sandfleet_worker.sandbox.process.init_reports import Killed, Prepared, ProgramEnd, Ready, Started, StatusParser
from sandfleet_worker.sandbox.process.inputs import encode_inputs, read_parts
from sandfleet_worker.sandbox.process.outputs import Outputs, read_to_end
from sandfleet_worker.sandbox.process.pipes import PIPE_BYTES, read_available, widen
from sandfleet_worker.sandbox.process.poller import Poller
from sandfleet_worker.sandbox.process.preparing import PreparingPhase, begin_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.process.cancellation import Cancellation
    from sandfleet_worker.sandbox.process.init_reports import End
    from sandfleet_worker.sandbox.process.interpreter import Interpreter
    from sandfleet_worker.sandbox.process.packed_job import PackedJob
    from sandfleet_worker.sandbox.process.pipes import Pipes

STATUS_BYTES = 4096
END_DEADLINE_SECONDS = 10.0
"""From init's report or a kill, the sandbox has this long; then its cgroup is killed (again)."""


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
    is_held: bool = False
    """The job's processes are dead or dying; the sandbox waits for the collection of its files."""

    def __post_init__(self) -> None:
        self._poller = Poller()
        self._parser = StatusParser()
        self._deadlines = Deadlines()
        self._limits: Admitted | None = None
        self._feeding: Feeding | None = None
        self._cancel: Cancellation | None = None
        self._boot_seconds = 0.0
        self._platform = ""
        self._is_gone = self._is_collected = False
        self.preparing: PreparingPhase | None = None
        self._poller.register(self.pidfd, self._on_exit)
        self._poller.register(self.pipes.status, self._read_status)
        self.outputs = Outputs(self.pipes, self._poller, self._on_output_over)

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

    def begin_boot(self, platform: str, deadline_seconds: float, interpreter: Interpreter | None = None) -> None:
        """Note that runsc starts now, which has `deadline_seconds`; with an interpreter it prepares."""
        if interpreter is not None:
            self.preparing = PreparingPhase(interpreter, self.pipes, self._deadlines, self.outputs)
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

    def wait_ready(self) -> bool:
        """Wait until init is up; return False where the sandbox is gone instead."""
        while self.clock.ready is None and not self._is_gone:
            self._step()
        return self.clock.ready is not None

    def run(
        self,
        job: PackedJob,
        limits: Admitted,
        cancel: Cancellation,
        deadline: float | None,
        allow_start: Callable[[], None] = lambda: None,
    ) -> None:
        """Hand over `job` and wait until the sandbox is gone and all output is read.

        A sandbox whose files are to be collected is held at its job's end, until `finish`. The job
        does not start if `allow_start` raises.
        """
        self._limits, self._cancel = limits, cancel
        if deadline is not None:
            self._deadlines.set(Deadline.CALLER, deadline)
        self._poller.register(cancel.open_fd(), self._on_cancel)
        try:
            if self.wait_ready():
                self._hand_over(job, limits, allow_start)
            while not self._is_gone and not self.is_held:
                self._step()
        finally:
            self._poller.unregister(cancel.open_fd())
            cancel.close_fd()
        if self._is_gone:
            self.is_held = False
            self._drain()

    def finish(self) -> None:
        """End a sandbox that is held; wait until it is gone and all output is read."""
        self._deadlines.set_only(Deadline.END, time.monotonic() + END_DEADLINE_SECONDS)
        self._close("status")  # what is left in it belongs to the collection
        self.end_sandbox()
        while not self._is_gone:
            self._step()
        self._drain()

    def close(self) -> None:
        """Close the poller, and the job's files; the pipes are the caller's."""
        self._poller.close()
        if self._feeding is not None:
            self._feeding.close()

    def _hand_over(self, job: PackedJob, limits: Admitted, allow_start: Callable[[], None]) -> None:
        self._deadlines.keep_only(Deadline.CALLER)
        self._is_collected = job.transfer.artifacts is not None
        if self._is_collected:
            widen(self.pipes.status, PIPE_BYTES)
        begin_output = functools.partial(self.outputs.begin, limits, job.transfer.keep_output)
        begin_output() if self.preparing is None else self.preparing.hold_output(begin_output)
        if job.transfer.files:
            widen(self.pipes.control, PIPE_BYTES)
            self._deadlines.set(Deadline.FILES, time.monotonic() + FILES_SECONDS)
            files = encode_inputs(job.transfer.files, lambda: self._begin_start(allow_start))
        else:
            self._begin_start(allow_start)
            files = None
        stdin = limits.spec.stdin.to_bytes(), read_parts(job.transfer.stdin) if job.transfer.stdin else None
        self._feeding = Feeding(self.pipes, self._poller, (job.message, files), stdin)

    def _begin_start(self, allow_start: Callable[[], None]) -> None:
        """Ask whether the job may start: what is written next lets init start it."""
        self._deadlines.drop(Deadline.FILES)
        allow_start()
        self._boot_seconds = begin_seconds(self.preparing, self._boot_seconds)
        self._deadlines.set(Deadline.START, time.monotonic() + self._boot_seconds)

    def _step(self, timeout: float | None = None) -> None:
        """Wait for the next event or the next deadline, and act on it."""
        if timeout is None and (due := self._deadlines.next) is not None:
            timeout = max(0.0, due - time.monotonic())
        self._poller.wait(timeout)
        for name in self._deadlines.take_due(time.monotonic()):
            self._on_deadline(name)

    def _on_deadline(self, name: Deadline) -> None:
        if name is Deadline.END:
            self.kill_sandbox()  # killed or ended, and still there
            self._deadlines.set(Deadline.END, time.monotonic() + END_DEADLINE_SECONDS)
            return
        self._read_status()
        if name is Deadline.STOP and not self.is_held:
            self._end_all()
        if not self._is_live or is_met(name, self.clock):
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
        if self._is_collected and self.clock.started is not None and kill.code.category is not Category.HOST:
            with contextlib.suppress(BrokenPipeError, BlockingIOError):
                os.write(self.pipes.control, END_PROCESSES)
                self._deadlines.set_only(Deadline.STOP, time.monotonic() + STOP_SECONDS)
                return
        self._end_all()

    def _end_all(self) -> None:
        self._deadlines.set_only(Deadline.END, time.monotonic() + END_DEADLINE_SECONDS)
        self.kill_sandbox()

    def _on_exit(self) -> None:
        self._is_gone = True
        self.clock.gone = time.monotonic()
        self._poller.unregister(self.pidfd)
        self.on_booted()

    def _read_status(self) -> None:
        data = read_available(self.pipes.status, STATUS_BYTES)
        if data == b"":
            self._close("status")
        if not data:
            return
        now = time.monotonic()
        for report in self._parser.feed(data):
            if self.preparing is not None:
                self.preparing.on_report(report, now)
            match report:
                case Ready():
                    self.clock.ready = now
                    self._deadlines.drop(Deadline.BOOT)
                    self.on_booted()
                case Prepared():
                    self.clock.prepared = now
                case Started():
                    self.clock.started = now
                    self._deadlines.begin_program(now, self._limits)
                case Killed():
                    self._on_end(now, is_over=False)
                case end:
                    self.end = self.end or end
                    self._on_end(now, is_over=not isinstance(end, ProgramEnd))

    def _on_end(self, now: float, *, is_over: bool) -> None:
        """Hold a sandbox whose files are collected; end any other, and one whose init `is_over`."""
        self.clock.ended = self.clock.ended or now
        if self._is_collected and not is_over:
            self._deadlines.clear()
            self.is_held = True
            self.outputs.read_rest()  # how much the program wrote is a part of how it ended
            return
        self._deadlines.set_only(Deadline.END, now + END_DEADLINE_SECONDS)
        # All output of the program is in the pipes: its writes were the host's. Its background
        # processes die now, not some ms later when runsc tidies up.
        self.end_sandbox()

    def _on_output_over(self, name: str, max_bytes: int) -> None:
        self._read_status()
        if self._is_live:
            message = f"the job wrote more than {format_bytes(max_bytes)} to {name}: raise output.max_bytes"
            self._kill(Kill(ErrorCode.OUTPUT_LIMIT, message))

    def _close(self, name: str) -> None:
        if (fd := getattr(self.pipes, name)) >= 0:
            self._poller.unregister(fd)
            self.pipes.close(name)

    def _drain(self) -> None:
        """Read the rest of the pipes after the sandbox is gone; their other ends died with it."""
        self.outputs.resume()
        read_to_end(self.pipes, self._poller, self.kill_sandbox, END_DEADLINE_SECONDS)
