"""Write what a job gets through the pipes of its sandbox: its message, its files, its stdin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandfleet_worker.sandbox.process.pipes import Feeder
from sandfleet_worker.sandbox.process.poller import WRITE

if TYPE_CHECKING:
    from collections.abc import Generator

    from sandfleet_worker.sandbox.process.pipes import Pipes
    from sandfleet_worker.sandbox.process.poller import Poller

    Source = tuple[bytes, Generator[bytes] | None]


class Feeding:
    """Feeds the pipes of one sandbox whenever they take something.

    `control` and `stdin` are the first bytes of each, and parts that are asked for one by one.
    """

    def __init__(self, pipes: Pipes, poller: Poller, control: Source, stdin: Source) -> None:
        self._pipes, self._poller = pipes, poller
        self._control = Feeder(pipes.control, *control)
        if not self._control.feed():  # most messages fit into the pipe at once
            poller.register(pipes.control, self._feed_control, WRITE)
        self._stdin = Feeder(pipes.stdin, *stdin)
        if any(stdin):
            poller.register(pipes.stdin, self._feed_stdin, WRITE)
        else:
            pipes.close("stdin")

    def close(self) -> None:
        """Close the files that are not written to their end."""
        self._control.close()
        self._stdin.close()

    def _feed_control(self) -> None:
        if self._control.feed():
            # Kept open: its end of file ends the sandbox.
            self._poller.unregister(self._pipes.control)

    def _feed_stdin(self) -> None:
        if self._stdin.feed():
            self._poller.unregister(self._pipes.stdin)
            self._pipes.close("stdin")
