"""The phase of a sandbox from *ready* to *prepared*, and from its job until *started*.

The image's code runs ahead of the job here, and may be hostile. Until the job starts, nobody reads
its output: what it writes ahead stays in two pipes that fill, so that it costs the worker no CPU.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from sandfleet_worker.sandbox.process.deadlines import Deadline
from sandfleet_worker.sandbox.process.init_reports import Prepared, Ready, Started
from sandfleet_worker.sandbox.process.pipes import PIPE_BYTES, read_available, widen

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_worker.sandbox.process.deadlines import Deadlines
    from sandfleet_worker.sandbox.process.init_reports import Report
    from sandfleet_worker.sandbox.process.interpreter import Interpreter
    from sandfleet_worker.sandbox.process.outputs import Outputs
    from sandfleet_worker.sandbox.process.pipes import Pipes

TAKE_SECONDS: Final = 10.0
"""How long a prepared interpreter may take to become its job. Then the job gets another sandbox."""


class PreparingPhase:
    """The supervision's part of a preparation: the message, the deadline, the output."""

    def __init__(self, interpreter: Interpreter, pipes: Pipes, deadlines: Deadlines, outputs: Outputs) -> None:
        self.interpreter = interpreter
        self._pipes, self._deadlines, self._outputs = pipes, deadlines, outputs
        self._begin_output: Callable[[], None] = lambda: None

    def on_report(self, report: Report, now: float) -> None:
        """Go on at a report of init."""
        match report:
            case Ready():
                self._begin(now)
            case Prepared():
                self._deadlines.drop(Deadline.PREPARE)
            case Started():
                self._begin_output()
                self._outputs.resume()
            case _:
                pass

    def _begin(self, now: float) -> None:
        self._outputs.pause()
        self._deadlines.set(Deadline.PREPARE, now + self.interpreter.seconds)
        widen(self._pipes.control, PIPE_BYTES)
        # Init, which waits for it, reads all that one pipe holds. If it is gone, its exit says so.
        with contextlib.suppress(BrokenPipeError, BlockingIOError):
            os.write(self._pipes.control, self.interpreter.message)

    def hold_output(self, begin: Callable[[], None]) -> None:
        """Call `begin`, which keeps the job's output, when the job starts and not before."""
        self._begin_output = begin

    def has_written(self) -> bool:
        """Whether the image's code has written to the job's output ahead of the job."""
        return any(read_available(fd, 1) for fd in (self._pipes.stdout, self._pipes.stderr))


def begin_seconds(phase: PreparingPhase | None, boot_seconds: float) -> float:
    """Return how long init may take from the job's message to *started*."""
    return boot_seconds if phase is None else min(boot_seconds, TAKE_SECONDS)
