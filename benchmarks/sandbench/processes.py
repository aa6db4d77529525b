"""Processes that a run starts, and what they use."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
POLL_SECONDS = 0.005
STOP_SECONDS = 30.0
PYTHON = sys.executable


@dataclass
class Process:
    """A child with its log.

    It dies with the thread that started it, which is the main one, and with this process.
    """

    popen: subprocess.Popen[bytes]
    log_path: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.popen.pid

    @property
    def log(self) -> str:
        """Its output so far."""
        return self.log_path.read_text(errors="replace")

    def wait_for_line(self, text: str, seconds: float = 60.0) -> None:
        """Return once `text` is in the log.

        Raises:
            RuntimeError: it ended before, or the time is up; with the log's end.
        """

        def is_there() -> bool:
            if self.popen.poll() is not None:
                raise RuntimeError(f"{self.log_path.stem} ended with {self.popen.returncode}: {self.log[-2000:]}")
            return text in self.log

        wait_until(is_there, seconds, f"{self.log_path.stem} says {text!r}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it, by force where it does not."""
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        try:
            self.popen.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL it."""
        self.popen.kill()
        self.popen.wait()


@contextlib.contextmanager
def running(
    command: Sequence[str],
    log_path: Path,
    env: Mapping[str, str] | None = None,
    *,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[Process]:
    """Run `command` in its own session (we handle a terminal's Ctrl-C); end it with `stop`."""
    with log_path.open("wb") as log:
        popen = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "--", *command],
            env=None if env is None else dict(env),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    process = Process(popen, log_path)
    try:
        yield process
    finally:
        process.stop(stop)


def wait_until(is_true: Callable[[], bool], seconds: float, what: str, *, poll_seconds: float = POLL_SECONDS) -> None:
    """Wait for `is_true`, called every `poll_seconds`: a call may cost what is being measured.

    Raises:
        RuntimeError: the time is up.
    """
    deadline = time.monotonic() + seconds
    while not is_true():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not within {seconds:g} s: {what}")
        time.sleep(poll_seconds)


def read_cpu_seconds(pid: int) -> float:
    """Return the CPU of a process without its children (proc_pid_stat(5), fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND


def read_pss_mib(pid: int) -> float:
    """Return the memory of one process, with its share of shared pages (proc_pid_smaps(5))."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        name, _, rest = line.partition(":")
        if name == "Pss":
            return int(rest.split()[0]) / 1024
    raise RuntimeError("this kernel tells no PSS")


def find_children(pid: int) -> list[int]:
    """Return the ids of a process's children."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += map(int, (task / "children").read_text().split())
    return found
