"""The report lines of the sandbox's init (`native/init.c`) on the status pipe, one line each.

R                                      ready: it waits for its job
S                                      started: the program's execve succeeded
E <code> <disk full> <microseconds>    the program exited
G <signal> <disk full> <microseconds>  a signal ended the program
X <errno> <path exists>                no candidate could be executed
C <errno>                              the working directory cannot be entered
U <errno>                              init cannot become the job's user
M <errno> <index>                      a writable path cannot be mounted
L <errno> <resource>                   a resource limit cannot be set
F <errno> <index>                      a file of the job cannot be written
Q                                      prepared: the interpreter waits for its job
N <reason>                             the preparation failed, or its interpreter is lost
K                                      all processes of the job were ended, as the worker asked
P <fault>                              a fault of ours, see `Fault`
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Final

MAX_REPORT_BYTES: Final = 4096
MAX_REASON_BYTES: Final = 500

ROOT_INDEX: Final = 0xFFFF
"""Stands for the writable root in `MountFailed`."""


class Fault(IntEnum):
    """The numbers of `P` lines: a fault of ours, never the program's."""

    LENGTH = 1
    LAYOUT = 2
    ROOT = 4
    PRIVILEGES = 5
    SIGNALS = 6
    SPAWN = 7
    PREPARE = 8


@dataclass(frozen=True, slots=True)
class Ready:
    """The sandbox is up and waits for its job."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """The interpreter has done its preparation and waits for its job."""


@dataclass(frozen=True, slots=True)
class PreparationFailed:
    """The preparation failed, or its interpreter did not take the job. No job has started.

    `reason` is text of the image's code: at most 500 bytes, without control characters.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class Started:
    """The program runs: its execve succeeded."""


@dataclass(frozen=True, slots=True)
class Exited:
    """The program exited. `disk_full`: the writable paths had no free block then."""

    code: int
    disk_full: bool
    ran_microseconds: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Signaled:
    """A signal ended the program. `disk_full` as for `Exited`."""

    signal: int
    disk_full: bool
    ran_microseconds: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class ExecFailed:
    """No candidate could be executed.

    `path_exists` tells ENOENT of a missing interpreter from a missing file.
    """

    errno: int
    path_exists: bool


@dataclass(frozen=True, slots=True)
class ChdirFailed:
    """The job's working directory cannot be entered."""

    errno: int


@dataclass(frozen=True, slots=True)
class UserFailed:
    """Init cannot become the job's user."""

    errno: int


@dataclass(frozen=True, slots=True)
class MountFailed:
    """A writable path cannot be mounted; `index` is its position or `ROOT_INDEX`.

    ENOENT: the image has no such folder.
    """

    errno: int
    index: int


@dataclass(frozen=True, slots=True)
class RlimitFailed:
    """A resource limit cannot be set; `resource` is Linux's number."""

    errno: int
    resource: int


@dataclass(frozen=True, slots=True)
class FileFailed:
    """A file of the job cannot be written; `index` is its position in the order of arrival."""

    errno: int
    index: int


@dataclass(frozen=True, slots=True)
class Killed:
    """All processes of the job are dead, as the worker asked. The sandbox is still there."""


@dataclass(frozen=True, slots=True)
class ProtocolFault:
    """`number` is a `Fault`, or 0 for a line that init does not write."""

    number: int


ProgramEnd = Exited | Signaled
"""The program's own end."""

SetUpFailed = ChdirFailed | UserFailed | MountFailed | RlimitFailed
"""Init could not make what the job needs around it."""

End = ProgramEnd | ExecFailed | SetUpFailed | FileFailed | PreparationFailed | ProtocolFault
"""The reports after which the job is over. Init is gone, too, unless the job has artifacts."""

Report = Ready | Prepared | Started | Killed | End


# The regular expression of each line, and the report that is made of its numbers.
_FORMS: Final[tuple[tuple[re.Pattern[bytes], Callable[..., Report]], ...]] = (
    (re.compile(rb"R"), Ready),
    (re.compile(rb"Q"), Prepared),
    (re.compile(rb"S"), Started),
    (re.compile(rb"E ([0-9]{1,3}) ([01]) ([0-9]{1,18})"), lambda code, full, ran: Exited(code, bool(full), ran)),
    (re.compile(rb"G ([0-9]{1,3}) ([01]) ([0-9]{1,18})"), lambda signal, full, ran: Signaled(signal, bool(full), ran)),
    (re.compile(rb"X ([0-9]{1,5}) ([01])"), lambda errno, exists: ExecFailed(errno, bool(exists))),
    (re.compile(rb"C ([0-9]{1,5})"), ChdirFailed),
    (re.compile(rb"U ([0-9]{1,5})"), UserFailed),
    (re.compile(rb"M ([0-9]{1,5}) ([0-9]{1,5})"), MountFailed),
    (re.compile(rb"L ([0-9]{1,5}) ([0-9]{1,10})"), RlimitFailed),
    (re.compile(rb"F ([0-9]{1,5}) ([0-9]{1,10})"), FileFailed),
    (re.compile(rb"K"), Killed),
    (re.compile(rb"P ([0-9]{1,5})"), ProtocolFault),
)


def parse_report(line: bytes) -> Report:
    """Parse one line, with or without its newline.

    A line that init does not write is `ProtocolFault(0)`.
    """
    text = line.removesuffix(b"\n")
    if text.startswith(b"N "):
        return PreparationFailed(read_reason(text[2:]))
    for form, report in _FORMS:
        if found := form.fullmatch(text):
            return report(*map(int, found.groups()))
    return ProtocolFault(0)


def read_reason(text: bytes) -> str:
    """Return a reason of the image's code, with all but printable characters replaced."""
    decoded = text[:MAX_REASON_BYTES].decode(errors="replace")
    return "".join(character if character.isprintable() else "?" for character in decoded)


class StatusParser:
    """Cuts the bytes of the status pipe into reports, however they were split."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> list[Report]:
        """Take the next bytes and return the reports they complete.

        More than 4 KiB without a newline is a fault.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        reports = [parse_report(line) for line in lines]
        if len(self._rest) > MAX_REPORT_BYTES:
            self._rest = b""
            reports.append(ProtocolFault(0))
        return reports
