"""The facts from which `verdict` decides: reports, counters, runsc's messages, our own kills."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sandfleet_config.codes import ErrorCode

from sandfleet_worker.sandbox.cgroup.counters import Counts
from sandfleet_worker.sandbox.process.init_reports import End

PANIC_CHARS = 600


@dataclass
class Clock:
    """When each step happened, monotonic seconds; `taken` is when the sandbox got its job."""

    booted: float | None = None
    ready: float | None = None
    prepared: float | None = None
    taken: float | None = None
    started: float | None = None
    ended: float | None = None
    gone: float | None = None


@dataclass(frozen=True)
class Kill:
    """Why we killed.

    It is recorded before the kill, and only while init has not reported an end.
    """

    code: ErrorCode
    message: str
    is_of_files: bool = False
    """The job's files came too slowly: whatever sandbox it had."""


@dataclass(frozen=True)
class Facts:
    """The facts that are known when a sandbox is gone."""

    kill: Kill | None = None
    timed_out: Literal["soft", "hard"] | None = None
    is_ready: bool = False
    is_started: bool = False
    end: End | None = None
    counts: Counts = field(default_factory=Counts)
    overwritten: str = ""
    """The file that was written to while the sandbox ran from it, for people; empty if none was."""
    is_output_over: bool = False
    runsc_exit: int | None = None
    runsc_log: str = ""
    panic: str = ""
    platform: str = ""
    command: str = ""
    longest_argument_bytes: int = 0
    """Of all arguments and variables, where the program could not be started."""
    memory_bytes: int = 0
    disk_bytes: int = 0
    file_paths: Sequence[str] = ()
    """Of the files that were to be written before the program's start, in their order."""
    file_bytes: int = 0
