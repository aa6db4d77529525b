"""The files that enter a sandbox before its program starts."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Final

from sandfleet_config.errors import HostResources, InternalError, SpecInvalid
from sandfleet_config.units import format_bytes

from sandfleet_worker.sandbox.process.init_job import END_OF_FILES, MAX_FILE_PATH_BYTES, encode_file_head

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.process.init_job import InitJob

WORK_FOLDER: Final = "/work"
"""A job with files or artifacts starts here; its relative paths begin here."""
PAGE_BYTES: Final = 4096
READ_BYTES: Final = 256 << 10
_SYSTEM_FOLDERS: Final = ("/dev", "/proc", "/sys")


@dataclass(frozen=True, slots=True)
class InputFile:
    """A file that the program will find at `path`: absolute, or relative to ``/work``.

    `open` returns its bytes from the start; it is called when the file's turn comes, and again if
    the job gets another sandbox. It may raise a `SandboxError`, which ends the job with that code.
    """

    path: str
    size: int
    open: Callable[[], BinaryIO]
    mode: int = 0o644

    @property
    def absolute(self) -> str:
        """The path in the sandbox."""
        return posixpath.normpath(posixpath.join(WORK_FOLDER, self.path))


def check_inputs(files: Sequence[InputFile], job: InitJob, limits: Admitted) -> None:
    """Refuse files that cannot be written where they shall be.

    Raises:
        SpecInvalid: a path is outside of the folders that the job may write, or the files do not
            fit into the job's disk or memory. Says which, and what to change.
    """
    faults = [fault for file in files if (fault := _find_fault(file, job))]
    if not faults:
        faults = _find_lack(sum(_round_up(file.size) for file in files), limits)
    if faults:
        text = "; ".join(f"files: {fault}" for fault in faults)
        raise SpecInvalid.of(text, errors=[{"field": "files", "message": fault} for fault in faults])


def _find_fault(file: InputFile, job: InitJob) -> str:
    path, shown = file.absolute, repr(file.path[:200])
    if ".." in file.path.split("/") or "\0" in file.path:
        return f"{shown} must have neither .. nor a zero byte"
    if len(path.encode(errors="surrogateescape")) > MAX_FILE_PATH_BYTES:
        return f"{shown} is longer than {MAX_FILE_PATH_BYTES} bytes"
    places = [writable.path for writable in job.writable_paths]
    if path in {"/", *places} or file.path.endswith("/"):
        return f"{shown} is a folder: give the path of the file"
    if any(_is_below(path, place) for place in places):
        return ""
    if not job.is_root_writable:
        return f"{shown} is not inside a writable folder ({', '.join(places)}), and security.read_only_rootfs is true"
    if any(_is_below(path, folder) for folder in _SYSTEM_FOLDERS):
        return f"{shown} is in a folder of the system's own ({', '.join(_SYSTEM_FOLDERS)})"
    return ""


def _is_below(path: str, folder: str) -> bool:
    return path.startswith(f"{folder}/")


def _round_up(size: int) -> int:
    return -(-size // PAGE_BYTES) * PAGE_BYTES


def _find_lack(needed: int, limits: Admitted) -> list[str]:
    lacks = []
    for name, capacity, why in (
        ("disk_bytes", limits.disk_bytes, ""),
        ("memory_bytes", limits.memory_bytes, ", and files count as memory"),
    ):
        if needed > capacity:
            lacks.append(
                f"they take {format_bytes(needed)}, and resources.{name} is {format_bytes(capacity)}{why}: raise it"
            )
    return lacks


def encode_inputs(files: Sequence[InputFile], on_end: Callable[[], None]) -> Generator[bytes]:
    """Yield the files as init reads them, in parts of at most 256 KiB.

    `on_end` is called when all are written and nothing but the end is missing: the program starts
    right after it.

    Raises:
        SandboxError: as `read_parts`.
    """
    for file in files:
        yield encode_file_head(file.absolute, file.mode, file.size)
        yield from read_parts(file)
    on_end()
    yield END_OF_FILES


def read_parts(file: InputFile) -> Generator[bytes]:
    """Yield the file's bytes in parts of at most 256 KiB.

    Raises:
        HostResources: they cannot be read.
        InternalError: there are fewer than the file's size.
    """
    try:
        with file.open() as source:
            left = file.size
            while left:
                part = source.read(min(left, READ_BYTES))
                if not part:
                    shown = f"{file.path[:200]!r} ended after {file.size - left} of {file.size} bytes"
                    raise InternalError.of(f"the source of the job's file {shown}")
                left -= len(part)
                yield part
    except OSError as error:
        raise HostResources.of(f"cannot read the job's file {file.path[:200]!r}: {error.strerror}") from error
