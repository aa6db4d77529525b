"""Keeps several child processes up: passes signals on, and starts a child again that has ended.

A stop signal goes to each child, and the end of the last one ends `run`. SIGHUP restarts the
children one after the other, each once the one before is ready. A child that ends by itself is
started again after a back-off, as systemd does with `Restart=always`. One that refuses to start
(exit code 1 or 2) before all of them were ready once ends the rest: the settings or the host are
wrong, and whoever started them must see that.

Everything happens in the main thread: signals wake its poll, and a child's parent-death signal
fires when the thread that started it ends.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import select
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandfleet_worker.system.supervised_thread import is_resource_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandfleet_worker.system.children import Child

log = logging.getLogger(__name__)

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
REFUSALS = frozenset({1, 2})
"""Exit codes of a child that says in one line why it does not start, or of a wrong command line."""
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 1.0, 30.0
REFUSED_BACKOFF_SECONDS = 5.0
"""Least back-off after a refusal; `RestartSec` of the unit."""
STEADY_SECONDS = 60.0
"""A child that has lived for so long ends a row of failures."""


@dataclass(eq=False)
class _Member:
    """One of the children; `number` counts from 1."""

    number: int
    child: Child | None = None
    ready_fd: int = -1
    """Readable once the child is ready, or gone; -1 once it was read."""
    is_ready: bool = False
    is_renewed: bool = False
    """Whether it was told to end so that another takes its place."""
    began: float = 0.0
    backoff: float = 0.0
    due: float = 0.0
    """When to start it, in monotonic seconds."""

    def close_pipe(self) -> None:
        if self.ready_fd >= 0:
            os.close(self.ready_fd)
            self.ready_fd = -1

    def note_end(self, code: int) -> float:
        """Forget the child; return the seconds until the next one is started."""
        self.close_pipe()
        lived, self.child, self.is_ready = time.monotonic() - self.began, None, False
        if self.is_renewed:
            self.is_renewed, pause = False, 0.0
        else:
            last = 0.0 if lived >= STEADY_SECONDS else self.backoff
            self.backoff = min(MAX_BACKOFF_SECONDS, 2 * last or FIRST_BACKOFF_SECONDS)
            pause = max(self.backoff, REFUSED_BACKOFF_SECONDS if code in REFUSALS else 0.0)
        self.due = time.monotonic() + pause
        return pause


class Supervisor:
    """Keeps `count` children up until a signal.

    `start` starts the child of a number; it writes to the descriptor that it is given, or closes
    it, once it is ready. `hangup` is what SIGHUP means: SIGTERM where a terminal has gone.
    """

    def __init__(self, start: Callable[[int, int], Child], count: int, hangup: signal.Signals = signal.SIGHUP) -> None:
        self._start, self._hangup = start, hangup
        self._members = [_Member(number) for number in range(1, count + 1)]
        self._received: list[signal.Signals] = []
        self._to_renew: list[_Member] = []
        self._is_stopping = self._was_ready = False
        self._code = 0

    def run(self) -> int:
        """Keep them up; return the exit code: the first that was not 0 when they were told to stop."""
        with self._signals() as wake_fd:
            while True:
                self._obey_signals()
                self._reap()
                if self._is_stopping and not any(member.child for member in self._members):
                    return self._code
                self._start_due()
                self._renew_next()
                self._wait(wake_fd)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[int]:
        """Note signals, and yield a descriptor that is readable after one, or after a child's end."""
        reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        numbers = (*STOP_SIGNALS, signal.SIGHUP, signal.SIGCHLD)
        before = [(number, signal.signal(number, self._note)) for number in numbers]
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(-1)
            for number, handler in before:
                signal.signal(number, handler)
            os.close(reader)
            os.close(writer)

    def _note(self, number: int, _frame: object) -> None:
        if number != signal.SIGCHLD:
            self._received.append(signal.Signals(number))

    def _obey_signals(self) -> None:
        while self._received:
            number = self._received.pop(0)
            number = self._hangup if number == signal.SIGHUP else number
            if number != signal.SIGHUP:
                self._stop(number)
            elif not self._is_stopping:
                log.info(
                    "SIGHUP: the processes are restarted one after the other", extra={"action": "processes_renewed"}
                )
                self._to_renew = list(self._members)

    def _stop(self, number: signal.Signals) -> None:
        """Pass a signal on. A child that is not ready has nothing to give back: SIGTERM ends it."""
        self._is_stopping = True
        for member in self._members:
            if member.child is not None:
                member.child.send(number if member.is_ready else signal.SIGTERM)

    def _reap(self) -> None:
        for member in self._members:
            code = None if member.child is None else member.child.ended
            if code is not None:
                self._note_end(member, code)

    def _note_end(self, member: _Member, code: int) -> None:
        was_ready, is_renewed = member.is_ready or self._read_pipe(member), member.is_renewed
        pause = member.note_end(code)
        if self._is_stopping:
            is_clean = code == -signal.SIGTERM and not was_ready
            self._code = self._code or (0 if is_clean else to_exit_code(code))
        elif code in REFUSALS and not self._was_ready:
            text = "process %d does not start: the others end, too"
            log.critical(text, member.number, extra={"action": "processes_refused"})
            self._code = code
            self._stop(signal.SIGTERM)
        elif is_renewed:
            log.info("process %d has ended, and is started anew", member.number, extra={"action": "process_renewed"})
        else:
            text = "process %d has ended with %s; it is started again in %.0f s"
            log.error(text, member.number, describe_end(code), pause, extra={"action": "process_ended"})

    def _start_due(self) -> None:
        for member in self._members:
            if not self._is_stopping and member.child is None and member.due <= time.monotonic():
                self._start_one(member)

    def _start_one(self, member: _Member) -> None:
        member.began = time.monotonic()
        try:
            reader, writer = os.pipe2(os.O_CLOEXEC)
            member.ready_fd = reader
            try:
                member.child = self._start(member.number, writer)
            finally:
                os.close(writer)
        except OSError as error:
            pause = member.note_end(0)
            if not is_resource_error(error):
                raise
            text = "process %d cannot be started: %s; it is tried again in %.0f s"
            log.error(text, member.number, error.strerror, pause, extra={"action": "process_not_started"})  # noqa: TRY400
            return
        extra = {"action": "process_started"}
        log.info("process %d is started as process id %d", member.number, member.child.pid, extra=extra)

    def _renew_next(self) -> None:
        """Tell the next one to end that is to be renewed, once all are ready."""
        are_well = all(member.is_ready and not member.is_renewed for member in self._members)
        if self._to_renew and are_well and not self._is_stopping:
            member = self._to_renew.pop(0)
            member.is_renewed = True
            assert member.child is not None  # it is ready
            member.child.send(signal.SIGTERM)

    def _wait(self, wake_fd: int) -> None:
        poller = select.poll()
        poller.register(wake_fd, select.POLLIN)
        waiting = {member.ready_fd: member for member in self._members if member.ready_fd >= 0}
        for fd in waiting:
            poller.register(fd, select.POLLIN)
        due = [member.due for member in self._members if member.child is None and not self._is_stopping]
        seconds = max(0.0, min(due, default=math.inf) - time.monotonic())
        for fd, _ in poller.poll(None if seconds == math.inf else seconds * 1000):
            if fd == wake_fd:
                os.read(wake_fd, 4096)
            else:
                waiting[fd].is_ready = self._read_pipe(waiting[fd])
        if not self._was_ready and all(member.is_ready for member in self._members):
            self._was_ready = True
            log.info("all %d processes are ready", len(self._members), extra={"action": "processes_ready"})

    def _read_pipe(self, member: _Member) -> bool:
        """Return whether the child has said that it is ready; the pipe is closed by that, or by its end."""
        if member.ready_fd < 0:
            return False
        said = os.read(member.ready_fd, 1)
        member.close_pipe()
        return bool(said)


def to_exit_code(code: int) -> int:
    """Return a child's exit code as a shell does: 128+N of one that was killed by signal N."""
    return 128 - code if code < 0 else code


def describe_end(code: int) -> str:
    """Say how a child has ended."""
    if code >= 0:
        return f"exit code {code}"
    # Real-time signals have no names of their own.
    return signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
