"""The job message: what the worker tells the sandbox's init (`native/init.c`) on the control pipe.

Little-endian; `text` ends with a zero byte, `list(x)` is a u32 count and its items.

    u32 length of all that follows, at most 1 MiB
    u32 magic "SFJ2", u32 flags (1: writable root, 2: files follow, 4: artifacts are collected,
                               8: datasets are mounted below /data,
                               16: a preparation, see below)
    u32 uid, u32 gid, u64 disk_bytes
    list(u32 extra gid)
    list(u32 resource, u64 soft, u64 hard)
    list(u32 mode, text path)                       the writable paths
    text cwd
    list(text) exec candidates, list(text) argv, list(text) envp

With flag 2 the files come next, and the program starts after `END_OF_FILES`. Each is

    u32 length of the path, u32 mode, u64 size in bytes
    absolute path, without a zero byte at its end
    the bytes

With flag 16 the message names an interpreter that starts ahead of the job (`native/prepare.h`). Init
answers `Q` or `N`, and then waits for the message of the job: the same user, and no other flag than
2, 4 and 8.

After the job's message single bytes: `TERMINATE`, and `END_PROCESSES` with flag 4. End of file ends the sandbox at
once. init_reports.py has the answers, collection.py what follows the job's end with flag 4.
"""

import itertools
import os
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from sandfleet_config.units import format_bytes

TERMINATE: Final = b"T"
"""SIGTERM, then SIGCONT, to every process of the job."""

END_PROCESSES: Final = b"K"
"""SIGKILL to every process of a job with artifacts. The sandbox stays for the collection."""

END_OF_FILES: Final = bytes(16)

MAX_MESSAGE_BYTES: Final = 1 << 20
MAX_FILE_PATH_BYTES: Final = 4095

_MAGIC: Final = 0x324A4653
_FLAG_WRITABLE_ROOT: Final = 1
_FLAG_FILES: Final = 2
_FLAG_ARTIFACTS: Final = 4
_FLAG_DATASETS: Final = 8
_FLAG_PREPARE: Final = 16
_NO_ID: Final = 2**32 - 1
# The sizes of init's static tables; it refuses more with ProtocolFault(Fault.LAYOUT).
_MAX_POINTERS: Final = 1 << 17
_MAX_GROUPS: Final = 64
_MAX_RLIMITS: Final = 16
_MAX_WRITABLE_PATHS: Final = 64


@dataclass(frozen=True, slots=True)
class Rlimit:
    """One resource limit; `resource` is Linux's number (`resource.RLIMIT_NPROC`)."""

    resource: int
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class WritablePath:
    """A folder of the image where a part of the job's tmpfs is mounted, owned by the job's user."""

    path: str
    mode: int = 0o700


@dataclass(frozen=True, slots=True)
class InitJob:
    """Everything that init needs to run one program.

    `disk_bytes` bounds the sum of all `writable_paths` and of all changes to a writable root. The
    paths must be folders of the image, and none may be inside another. Include `/tmp` and
    `/dev/shm`: gVisor makes both an unlimited tmpfs otherwise. A writable root needs at least one
    path, since it is on the same tmpfs.
    """

    candidates: Sequence[str]
    argv: Sequence[str]
    envp: Sequence[str]
    uid: int
    gid: int
    groups: Sequence[int] = ()
    cwd: str = "/"
    rlimits: Sequence[Rlimit] = ()
    disk_bytes: int = 0
    writable_paths: Sequence[WritablePath] = ()
    is_root_writable: bool = False
    has_files: bool = False
    has_artifacts: bool = False
    has_datasets: bool = False
    is_preparation: bool = False

    @property
    def flags(self) -> int:
        """The flags of the message."""
        return (
            _FLAG_WRITABLE_ROOT * self.is_root_writable
            | _FLAG_FILES * self.has_files
            | _FLAG_ARTIFACTS * self.has_artifacts
            | _FLAG_DATASETS * self.has_datasets
            | _FLAG_PREPARE * self.is_preparation
        )


def encode_job(job: InitJob) -> bytes:
    """Pack a job for the control pipe.

    Raises:
        ValueError: the job does not fit into a message (a zero byte, too long, a number out of
            range, ...).
    """
    _check(job)
    try:
        body = b"".join(
            (
                struct.pack("<IIIIQ", _MAGIC, job.flags, job.uid, job.gid, job.disk_bytes),
                _list(struct.pack("<I", group) for group in job.groups),
                _list(struct.pack("<IQQ", limit.resource, limit.soft, limit.hard) for limit in job.rlimits),
                _list(struct.pack("<I", path.mode) + _text(path.path) for path in job.writable_paths),
                _text(job.cwd),
                _list(map(_text, job.candidates)),
                _list(map(_text, job.argv)),
                _list(map(_text, job.envp)),
            )
        )
    except struct.error as error:
        raise ValueError(f"a number of the job is out of range: {error}") from error
    if len(body) > MAX_MESSAGE_BYTES:
        size, most = format_bytes(len(body)), format_bytes(MAX_MESSAGE_BYTES)
        raise ValueError(
            f"command and environment, that of the image included, take {size}; {most} are possible: "
            "pass large data as a file or by stdin"
        )
    return struct.pack("<I", len(body)) + body


def encode_file_head(path: str, mode: int, size: int) -> bytes:
    """Pack what comes before the bytes of a file.

    Raises:
        ValueError: the path is too long, or `size` or `mode` is out of range.
    """
    data = os.fsencode(path)
    if not data.startswith(b"/") or b"\0" in data or len(data) > MAX_FILE_PATH_BYTES:
        raise ValueError(f"not an absolute path of at most {MAX_FILE_PATH_BYTES} bytes: {path[:200]!r}")
    try:
        return struct.pack("<IIQ", len(data), mode, size) + data
    except struct.error as error:
        raise ValueError(f"mode or size of {path[:200]!r} is out of range") from error


def exec_candidates(command0: str, path_env: str) -> list[str]:
    """Expand a command's first word as execvp(3) does; an empty PATH entry is the current folder.

    Raises:
        ValueError: all of them would not fit into a message.
    """
    if not command0:
        return []
    if "/" in command0:
        return [command0]
    # Checked before any is built: 70,000 folders and a name of 100,000 bytes would be 7 GB.
    folders, separators = path_env.count(":") + 1, 2
    if len(path_env) + folders * (len(command0) + separators) > MAX_MESSAGE_BYTES:
        raise ValueError(
            f"a PATH of {folders} folders and a program's name of {len(command0)} characters are too long to look it up: "
            "name the program by its path"
        )
    return [f"{folder}/{command0}" if folder else command0 for folder in path_env.split(":")]


def _list(items: Iterable[bytes]) -> bytes:
    packed = list(items)
    return struct.pack("<I", len(packed)) + b"".join(packed)


def _text(text: str) -> bytes:
    # With surrogateescape: an image may name files and users in bytes that are not UTF-8.
    data = os.fsencode(text)
    if b"\0" in data:
        raise ValueError("a zero byte cannot be part of a command, a path or an environment variable")
    return data + b"\0"


def _check(job: InitJob) -> None:
    if not job.argv or not job.candidates:
        raise ValueError("the job has no command")
    # One more for each list: init ends it with a null pointer.
    if len(job.candidates) + len(job.argv) + len(job.envp) + 3 > _MAX_POINTERS:
        count = len(job.candidates) + len(job.argv) + len(job.envp)
        raise ValueError(
            f"command and environment, that of the image included, have {count} entries with each place that PATH "
            f"names for the program; {_MAX_POINTERS - 3} are possible: use fewer arguments"
        )
    for name, size, most in (
        ("groups", len(job.groups), _MAX_GROUPS),
        ("rlimits", len(job.rlimits), _MAX_RLIMITS),
        ("writable paths", len(job.writable_paths), _MAX_WRITABLE_PATHS),
    ):
        if size > most:
            raise ValueError(f"{size} {name}; at most {most} are possible")
    if _NO_ID in {job.uid, job.gid, *job.groups}:
        raise ValueError(f"{_NO_ID} is not a user or group: it means `unchanged` to the kernel")
    if job.writable_paths and not job.disk_bytes:
        raise ValueError("writable paths need disk_bytes: an unlimited tmpfs is never mounted")
    if job.is_root_writable and not job.writable_paths:
        raise ValueError("a writable root needs a writable path: it lies on the same tmpfs")
    if job.is_root_writable and "," in job.writable_paths[0].path:
        raise ValueError("the first writable path beside a writable root has no comma: it becomes a mount option")
    _check_writable_paths([writable.path for writable in job.writable_paths])


def _check_writable_paths(paths: Sequence[str]) -> None:
    for path in paths:
        if not path.startswith("/") or path.startswith("//") or path == "/" or path != os.path.normpath(path):
            raise ValueError(f"writable path {path!r} is not an absolute, normal path below /")
    # With a slash at its end, a folder sorts right before the paths inside it.
    folders = sorted(f"{path}/" for path in paths)
    for outer, inner in itertools.pairwise(folders):
        if inner.startswith(outer):
            raise ValueError(f"writable path {inner[:-1]!r} lies in another one")
