"""Files that left a sandbox, on this host's disk until the store has them."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import shutil
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from sandfleet_config.errors import HostResources, SandboxError
from sandfleet_config.units import format_bytes

from sandfleet_worker.delivery.lock_files import is_free

if TYPE_CHECKING:
    from typing import Self

PREFIX: Final = "worker-"


@dataclass(frozen=True, slots=True)
class SpooledFile:
    """A complete file in the spool: `path` is its name in the sandbox, relative to ``/work``."""

    path: str
    size: int
    mode: int
    sha256: str
    place: Path


class Spool:
    """One worker's folder below `root`, at most `max_bytes` large; safe for threads.

    The folder's lock is held as long as the worker lives. Opening a spool removes the folders of
    dead workers: their jobs run again elsewhere.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._max_bytes, self._used, self._lock = max_bytes, 0, threading.Lock()
        self._numbers = itertools.count()
        remove_dead_spools(root)
        self.folder, self._owner = _make_folder(root)

    def close(self) -> None:
        """Remove the folder with all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._owner)

    def new_job(self) -> JobSpool:
        """Return the spool of one job. Close it when the store has the files."""
        folder = self.folder / str(next(self._numbers))
        folder.mkdir(mode=0o700)
        return JobSpool(self, folder)

    def take(self, size: int) -> None:
        """Count `size` bytes more.

        Raises:
            HostResources: they do not fit.
        """
        with self._lock:
            if self._used + size > self._max_bytes:
                msg = (
                    f"the spool of this worker has {format_bytes(self._used)} of its"
                    f" {format_bytes(self._max_bytes)} in use (SANDFLEET_FILES__SPOOL_BYTES)"
                )
                raise HostResources.of(msg)
            self._used += size

    def give_back(self, size: int) -> None:
        """Count `size` bytes less."""
        with self._lock:
            self._used -= size


class JobSpool:
    """The files of one job; an `ArtifactSink`. Used in the job's thread."""

    def __init__(self, spool: Spool, folder: Path) -> None:
        self._spool, self._folder = spool, folder
        self._used = 0
        self._open: _OpenFile | None = None
        self._streams: list[_OpenFile] = []
        self.files: list[SpooledFile] = []

    def __enter__(self) -> Self:
        """Return the spool itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    def close(self) -> None:
        """Remove the files."""
        self.drop()
        for stream in self._streams:
            stream.abandon()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._spool.give_back(self._used)
        self._used = 0

    def begin(self, path: str, size: int, mode: int) -> None:
        """Begin a file of `size` bytes.

        Raises:
            HostResources: the spool has no room for it.
            OSError: the disk has none.
        """
        self.drop()
        self._spool.take(size)
        self._used += size
        place = self._folder / str(len(self.files))
        self._open = _OpenFile(path, mode, size, place, place.open("wb"))

    def write(self, chunk: bytes) -> None:
        """Take the next bytes of the file that was begun."""
        assert self._open is not None
        self._open.write(chunk)

    def end(self) -> None:
        """The file is complete."""
        assert self._open is not None
        file, self._open = self._open, None
        file.file.close()
        self._give_back(file.taken - file.size)
        self.files.append(SpooledFile(file.path, file.size, file.mode, file.digest.hexdigest(), file.place))

    def drop(self) -> None:
        """Forget the file that was begun, if any."""
        if self._open is None:
            return
        file, self._open = self._open, None
        file.abandon()
        file.place.unlink(missing_ok=True)
        self._give_back(file.taken)

    def open_stream(self, max_bytes: int) -> _OpenFile:
        """Open a file for an output stream, with room for `max_bytes`.

        Raises:
            HostResources: the spool has no room for it.
            OSError: the disk has none.
        """
        self._spool.take(max_bytes)
        self._used += max_bytes
        place = self._folder / f"stream-{len(self._streams)}"
        file = _OpenFile("", 0, max_bytes, place, place.open("wb"))
        self._streams.append(file)
        return file

    def close_stream(self, file: _OpenFile, name: str) -> SpooledFile:
        """Close a file of `open_stream`, and give back the room that it does not use.

        Raises:
            OSError: the disk has no room for its last bytes.
        """
        file.file.close()
        self._give_back(file.taken - file.size)
        return SpooledFile(name, file.size, 0o644, file.digest.hexdigest(), file.place)

    def _give_back(self, size: int) -> None:
        self._used -= size
        self._spool.give_back(size)


class StreamSpool:
    """The whole bytes of one output stream, once it goes past the bytes that its outcome keeps.

    At most `max_bytes` are kept. Neither method raises: the program's end does not depend on it.
    """

    def __init__(self, job: JobSpool, kept_bytes: int, max_bytes: int) -> None:
        self._job, self._kept_bytes, self._max_bytes = job, kept_bytes, max_bytes
        self._head = bytearray()
        self._file: _OpenFile | None = None
        self._total = 0
        self._failure = ""

    def write(self, data: bytes) -> None:
        """Take the next bytes of the stream."""
        self._total += len(data)
        if self._failure:
            return
        if self._file is None:
            self._head += data
            if len(self._head) <= self._kept_bytes:
                return
            data, self._head = bytes(self._head), bytearray()
        try:
            self._file = self._file or self._job.open_stream(self._max_bytes)
            self._file.write(data[: self._max_bytes - self._file.size])
        except SandboxError as error:
            self._failure = error.message
        except OSError as error:
            self._failure = _tell(error)

    def finish(self, name: str) -> tuple[SpooledFile | None, str]:
        """Return the stream's file, and what it lacks; no file if the outcome has all of it."""
        file, self._file = self._file, None
        if file is None:
            return None, self._failure
        if self._failure:
            return None, self._failure
        try:
            done = self._job.close_stream(file, name)
        except OSError as error:
            return None, _tell(error)
        if self._total > done.size:
            most = format_bytes(self._max_bytes)
            return done, f"only its first {most} of {format_bytes(self._total)} (SANDFLEET_POLICY__STORED_OUTPUT_BYTES)"
        return done, ""


def _tell(error: OSError) -> str:
    return f"this host cannot keep it: {error.strerror}"


class _OpenFile:
    """A file that is being written: `taken` bytes are counted for it, `size` are written by now."""

    def __init__(self, path: str, mode: int, taken: int, place: Path, file: BinaryIO) -> None:
        self.path, self.mode, self.taken, self.place, self.file = path, mode, taken, place, file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, chunk: bytes) -> None:
        self.file.write(chunk)
        self.digest.update(chunk)
        self.size += len(chunk)

    def abandon(self) -> None:
        """Close it, whatever becomes of its last bytes."""
        with contextlib.suppress(OSError):  # a full disk does not take them
            self.file.close()


def _make_folder(root: Path) -> tuple[Path, int]:
    """Make a folder for one worker; return it, and the descriptor that holds its lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=root))
        with contextlib.suppress(FileNotFoundError):
            owner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            # Another worker may have taken it for a dead one's between the two lines above.
            if is_free(owner) and folder.exists():
                return folder, owner
            os.close(owner)


def remove_dead_spools(root: Path) -> None:
    """Remove the folders of workers below `root` that are dead: nobody holds their locks."""
    for folder in root.glob(f"{PREFIX}*"):
        try:
            owner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # another worker removes it, too
            continue
        try:
            if is_free(owner):
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(owner)
