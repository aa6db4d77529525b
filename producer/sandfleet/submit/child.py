"""A forked process that sends frames of bytes to its parent through a pipe.

A child ends at its next frame if its parent has closed the pipes or is dead. If a child dies, it has
no more frames, and its parent does the rest.
"""

from __future__ import annotations

import gc
import os
import signal
import struct
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PIPE_BYTES: Final = 1 << 20
"""Size of a pipe: what unprivileged users may ask for. A child works ahead by so much."""
_LENGTH: Final = struct.Struct("<Q")


class Outlet:
    """The child's side: it sends frames, and waits for its parent's word."""

    def __init__(self, frames: int, word: int) -> None:
        self._frames = frames
        self._word = word

    def send(self, frame: bytes) -> None:
        """Send one frame; wait while the pipe is full.

        Raises:
            BrokenPipeError: the parent wants no more.
        """
        left = memoryview(_LENGTH.pack(len(frame)) + frame)
        while left:
            left = left[os.write(self._frames, left) :]

    def wait(self) -> bool:
        """Wait until the parent says to go on; False if it wants no more."""
        return bool(os.read(self._word, 1))


class Child:
    """The parent's side. `close` ends the child and collects it."""

    def __init__(self, work: Callable[[Outlet], None], siblings: Sequence[Child]) -> None:
        """Fork a process that calls `work` and then exits.

        `siblings` are the earlier children: this one closes what it inherits of their pipes, or
        they would not notice the parent's death.

        Raises:
            OSError: no process or pipe can be made.
        """
        import fcntl  # not everywhere, where no process is forked either

        frames, child_frames = os.pipe()
        try:
            child_word, self._word = os.pipe()
        except OSError:
            os.close(frames)
            os.close(child_frames)
            raise
        self._frames = os.fdopen(frames, "rb", buffering=PIPE_BYTES)
        with suppress(OSError):  # the user has used up what pipes may hold: it stays smaller
            fcntl.fcntl(frames, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        try:
            self._pid: int | None = self._fork(work, Outlet(child_frames, child_word), siblings)
        except OSError:
            self.close_pipes()
            raise
        finally:
            os.close(child_frames)
            os.close(child_word)

    def _fork(self, work: Callable[[Outlet], None], outlet: Outlet, siblings: Sequence[Child]) -> int:
        # Ctrl-C reaches the whole group. It is the parent that decides what it means, and it must
        # not interrupt the child before that one ignores it.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            pid = os.fork()
            if not pid:
                _run(work, outlet, [*siblings, self], before)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return pid

    def read(self) -> bytes | None:
        """Return the child's next frame, None if it is dead."""
        head = self._frames.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            return None
        (size,) = _LENGTH.unpack(head)
        frame = self._frames.read(size)
        return frame if len(frame) == size else None

    def go_on(self) -> None:
        """Let the child's `Outlet.wait` return; a dead child does not mind."""
        with suppress(BrokenPipeError):
            os.write(self._word, b"\n")

    def close(self) -> None:
        """Kill the child and collect it; may be repeated."""
        pid, self._pid = self._pid, None
        if pid is not None:
            self.close_pipes()
            os.kill(pid, signal.SIGKILL)  # not collected yet, so the id is still its own
            os.waitpid(pid, 0)

    def close_pipes(self) -> None:
        """Close this process's ends; another process that inherited them keeps its own."""
        self._frames.close()
        os.close(self._word)


def _run(
    work: Callable[[Outlet], None], outlet: Outlet, inherited: Sequence[Child], mask: set[int | signal.Signals]
) -> NoReturn:
    """Do the child's work; nothing of the parent's is flushed or cleaned up by its exit."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        gc.disable()
        for child in inherited:
            child.close_pipes()
        work(outlet)
    finally:
        # Whatever was raised: the parent does by itself what it did not get, and meets the same
        # error where it can be told.
        os._exit(0)
