"""The two output streams of one sandbox: runsc's own messages first, then the job's."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeAlias

from sandfleet_worker.sandbox.process.capture import Capture
from sandfleet_worker.sandbox.process.pipes import CHUNK_BYTES, read_available

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.process.pipes import Pipes
    from sandfleet_worker.sandbox.process.poller import Poller

KeepOutput: TypeAlias = "Callable[[str], Callable[[bytes], None]]"
BOOT_OUTPUT_BYTES: Final = 64 << 10
DRAIN_POLL_SECONDS: Final = 0.05


class Outputs:
    """Reads stdout and stderr to their ends and keeps what the job may have of them.

    `on_over` gets the stream's name and the bytes kept, at each read past the cap of a job that
    asked to be killed for it.
    """

    def __init__(self, pipes: Pipes, poller: Poller, on_over: Callable[[str, int], None]) -> None:
        self._pipes, self._poller, self._on_over = pipes, poller, on_over
        self._is_fatal = self._is_paused = False
        self._keepers: dict[str, Callable[[bytes], None]] = {}
        self.stdout = Capture(BOOT_OUTPUT_BYTES, "head")
        # runsc's own messages; the job's own captures take their place when it starts.
        self.stderr = self.boot_stderr = Capture(BOOT_OUTPUT_BYTES, "head")
        poller.register(pipes.stdout, self._read_stdout)
        poller.register(pipes.stderr, self._read_stderr)

    def begin(self, limits: Admitted, keep: KeepOutput | None = None) -> None:
        """Keep what comes from now on as the job's own; `keep` gets all of it, too."""
        output = limits.spec.output
        if keep is not None:
            self._keepers = {name: keep(name) for name in ("stdout", "stderr")}
        self._is_fatal = output.on_limit == "kill"
        self.stdout = Capture(limits.output_bytes, output.keep)
        self.stderr = Capture(limits.output_bytes, output.keep)

    def pause(self) -> None:
        """Read neither stream until `resume`."""
        for name in ("stdout", "stderr"):
            if (fd := getattr(self._pipes, name)) >= 0 and not self._is_paused:
                self._poller.unregister(fd)
        self._is_paused = True

    def resume(self) -> None:
        """Read on after `pause`; else nothing."""
        if not self._is_paused:
            return
        self._is_paused = False
        for name, handler in (("stdout", self._read_stdout), ("stderr", self._read_stderr)):
            if (fd := getattr(self._pipes, name)) >= 0:
                self._poller.register(fd, handler)

    def read_rest(self) -> None:
        """Read what is left in both pipes after the end: one read takes all that a pipe holds."""
        self._read_stdout()
        self._read_stderr()

    @property
    def is_over(self) -> bool:
        """Whether a stream went past its cap in a job that asked to be killed for it.

        It counts even where the job ended before our kill: which of the two came first is chance,
        how much was written is not.
        """
        return self._is_fatal and (self.stdout.is_over or self.stderr.is_over)

    def _read_stdout(self) -> None:
        self._read("stdout", self.stdout)

    def _read_stderr(self) -> None:
        self._read("stderr", self.stderr)

    def _read(self, name: str, capture: Capture) -> None:
        fd = getattr(self._pipes, name)
        data = read_available(fd, CHUNK_BYTES)
        if data is None:
            return
        if not data:
            self._poller.unregister(fd)
            self._pipes.close(name)
            return
        capture.feed(data)
        if name in self._keepers:
            self._keepers[name](data)
        if self._is_fatal and capture.is_over:
            self._on_over(name, capture.max_bytes)


def read_to_end(pipes: Pipes, poller: Poller, kill: Callable[[], None], seconds: float) -> None:
    """Read what is left in the pipes of a sandbox that is gone, for `seconds` at most."""
    deadline = time.monotonic() + seconds
    while any(getattr(pipes, name) >= 0 for name in ("status", "stdout", "stderr")):
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            return
        # A stub that is still dying may hold a pipe's end for some ms more.
        if not poller.wait(min(remaining, DRAIN_POLL_SECONDS)):
            kill()
