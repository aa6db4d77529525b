"""The deadlines of one sandbox, and the reason for the kill when one has passed. Pure: no I/O."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from sandfleet_config.codes import ErrorCode

from sandfleet_worker.sandbox.process.facts import Kill

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.process.facts import Clock

FILES_SECONDS = 120.0
"""How long it may take to write the job's files into a sandbox that is up."""
STOP_SECONDS = 5.0
"""How long init may take to end the processes of a job that was killed."""


class Deadline(StrEnum):
    """Events that have to happen before their time."""

    BOOT = "boot"
    """Init reports *ready*."""
    PREPARE = "prepare"
    """The interpreter that starts ahead of the job is prepared."""
    FILES = "files"
    """The job's files are in the sandbox."""
    START = "start"
    """Init reports *started*, or why not."""
    SOFT = "soft"
    """The program ends; after it the job gets SIGTERM."""
    HARD = "hard"
    """The program ends; after it the job is killed."""
    CALLER = "caller"
    """The instant that the caller of `RunscRunner.run` gave."""
    STOP = "stop"
    """Init reports that the processes of a killed job are dead."""
    END = "end"
    """The sandbox is gone, after init's report or a kill."""


class Deadlines:
    """`time.monotonic` instants by their names."""

    def __init__(self) -> None:
        self._at: dict[Deadline, float] = {}

    @property
    def next(self) -> float | None:
        """The earliest one."""
        return min(self._at.values(), default=None)

    def set(self, name: Deadline, at: float) -> None:
        """Set or move one."""
        self._at[name] = at

    def drop(self, name: Deadline) -> None:
        """Remove one, if it is set."""
        self._at.pop(name, None)

    def clear(self) -> None:
        """Remove all."""
        self._at = {}

    def keep_only(self, name: Deadline) -> None:
        """Remove all others."""
        self._at = {kept: at for kept, at in self._at.items() if kept is name}

    def set_only(self, name: Deadline, at: float) -> None:
        """Set one and remove all others."""
        self._at = {name: at}

    def begin_program(self, now: float, limits: Admitted | None) -> None:
        """Start the clocks of a program that runs from `now` on; None: nobody has given it any."""
        if limits is None:
            return
        self.drop(Deadline.START)
        self.set(Deadline.SOFT, now + limits.timeout_seconds)
        self.set(Deadline.HARD, now + limits.timeout_seconds + limits.grace_seconds)

    def take_due(self, now: float) -> Iterator[Deadline]:
        """Remove and yield those that have passed, the earliest first.

        Others may be set or dropped meanwhile.
        """
        if not self._at or min(self._at.values()) > now:
            return
        for name, at in sorted(self._at.items(), key=lambda item: item[1]):
            if at <= now and self._at.pop(name, None) is not None:
                yield name


def is_met(name: Deadline, clock: Clock) -> bool:
    """Whether the event of a deadline has happened: its report may come at the last moment."""
    events = {Deadline.BOOT: clock.ready, Deadline.PREPARE: clock.prepared, Deadline.START: clock.started}
    return events.get(name) is not None


def new_kill(name: Deadline, platform: str, boot_seconds: float, limits: Admitted | None) -> Kill:
    """Return why a sandbox is killed whose deadline `name` has passed.

    `boot_seconds` is what it had to boot or to start.
    """
    match name:
        case Deadline.BOOT:
            message = f"platform {platform} did not boot a sandbox within {boot_seconds:g} s"
            return Kill(ErrorCode.GVISOR_NOT_AVAILABLE, message)
        case Deadline.PREPARE:
            return Kill(
                ErrorCode.SANDBOX_CREATION_FAILED,
                "the preparation did not end within SANDFLEET_PREPARED__DEADLINE_SECONDS",
            )
        case Deadline.FILES:
            message = (
                f"the job's files were not in the sandbox within {FILES_SECONDS:g} s: the host is too busy for so much; "
                "send less, use a dataset, or let fewer jobs run at once there"
            )
            return Kill(ErrorCode.SANDBOX_CREATION_FAILED, message, is_of_files=True)
        case Deadline.START:
            message = f"the program did not start within {boot_seconds:g} s of the sandbox being up"
            return Kill(ErrorCode.SANDBOX_CREATION_FAILED, message)
        case Deadline.HARD if limits is not None:
            timeout, grace = limits.timeout_seconds, limits.grace_seconds
            return Kill(ErrorCode.TIMEOUT, f"the job ran past its timeout of {timeout:g} s and {grace:g} s of grace")
        case _:
            return Kill(ErrorCode.TIMEOUT, "the caller's deadline passed")
