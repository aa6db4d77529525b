"""Run the tools that write an image's files (tar, umoci, mkfs.erofs, ...), within limits."""

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sandfleet_config.errors import ImageInvalid, ImageUnavailable

from sandfleet_worker.sandbox.image.staging import disk_full

DEFAULT_MAX_BYTES = 20 << 30
DEFAULT_MAX_FILES = 2_000_000
_PACKAGES = {"mkfs.erofs": "erofs-utils", "cp": "coreutils"}
_FULL_DISK = ("no space left on device", "disk quota exceeded", "error 28")
# Measuring the tree takes at most this share of the time that the tool runs.
_MEASURE_SHARE = 0.05
_MEASURE_SECONDS = 0.2
_MAX_OUTPUT_CHARS = 2000


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one image may take when unpacked."""

    max_bytes: int = DEFAULT_MAX_BYTES
    max_files: int = DEFAULT_MAX_FILES

    def check(self, size_bytes: int, files: int) -> None:
        """Raise ImageInvalid past a limit."""
        if size_bytes > self.max_bytes:
            raise ImageInvalid.of(
                f"the image unpacks to more than {self.max_bytes >> 20} MiB, the limit of this store: "
                "a smaller image, or a greater max_bytes"
            )
        if files > self.max_files:
            raise ImageInvalid.of(f"the image holds more than {self.max_files} files, the limit of this store")


@dataclass(frozen=True, slots=True)
class StagingFolder:
    """The staging folder of one add.

    Its tools inherit `lock`, so that no sweep removes it while a tool still writes.
    """

    folder: Path
    lock: int
    limits: Limits

    @property
    def tree(self) -> Path:
        """The folder of the image's files."""
        return self.folder / "tree"

    def new_tree(self) -> Path:
        """Make the empty tree; its mode does not depend on the caller's umask."""
        self.tree.mkdir()
        self.tree.chmod(0o755)
        return self.tree

    def run(
        self,
        argv: list[str],
        env: dict[str, str] | None = None,
        *,
        is_limited: bool = True,
        wrapper: Sequence[str] = (),
    ) -> str:
        """Run a tool, by default one that fills `tree` and must stay within the limits.

        Return its stdout. `wrapper` is a command that executes the tool in the end, such as
        unshare(1).

        Raises:
            ImageUnavailable: the tool is not installed.
            HostResources: the disk is full.
            ImageInvalid: the tool failed, or what it wrote outgrew the limits.
        """
        binary = find_tool(argv[0])
        # In memory: a full disk could not take the message that it is full.
        with _new_memory_file("stdout") as out, _new_memory_file("stderr") as err:
            child = subprocess.Popen(
                [*wrapper, binary, *argv[1:]],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.folder,
                pass_fds=(self.lock,),
                env=_tool_env() | {"HOME": str(self.folder)} | (env or {}),
            )
            try:
                if is_limited:
                    self._wait_within_limits(child)
                else:
                    child.wait()
            finally:
                child.kill()
                child.wait()
            self._check_exit(argv[0], child.returncode, _read_back(err))
            return _read_back(out)

    def _wait_within_limits(self, child: subprocess.Popen[bytes]) -> None:
        # The kernel stops one endless (or sparse) file, the measurement stops many files.
        resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (self.limits.max_bytes, self.limits.max_bytes))
        pause = _MEASURE_SECONDS
        while True:
            try:
                child.wait(pause)
            except subprocess.TimeoutExpired:
                began = time.monotonic()
                self.limits.check(*_measure_now(self.tree))
                pause = max(_MEASURE_SECONDS, (time.monotonic() - began) / _MEASURE_SHARE)
            else:
                return

    def _check_exit(self, tool: str, code: int, output: str) -> None:
        if code == 0:
            return
        if any(sign in output.lower() for sign in _FULL_DISK):
            raise disk_full(self.folder)
        if code == -signal.SIGXFSZ or "file too large" in output.lower():
            self.limits.check(self.limits.max_bytes + 1, 0)
        raise ImageInvalid.of(
            f"{tool} failed ({_how(code)}): {output[-_MAX_OUTPUT_CHARS:].strip() or 'it said nothing'}"
        )


def find_tool(name: str) -> str:
    """Return the tool's path.

    Raises:
        ImageUnavailable: it is not installed.
    """
    path = shutil.which(name, path=_tool_path())
    if path is None:
        raise ImageUnavailable.of(
            f"{name} is not installed on this host (Debian: apt-get install {_PACKAGES.get(name, name)})"
        )
    return path


def _tool_path() -> str:
    # Debian keeps mkfs.erofs in sbin, which a service's PATH may lack.
    return f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/local/sbin:/usr/sbin:/sbin"


def _tool_env() -> dict[str, str]:
    """Return PATH, English messages and the proxy's settings.

    The rest of the worker's environment may hold secrets.
    """
    network = {key: value for key, value in os.environ.items() if key.lower().endswith("_proxy") or key == "APT_CONFIG"}
    return {"PATH": _tool_path(), "LC_ALL": "C", **network}


def _new_memory_file(name: str) -> IO[bytes]:
    return os.fdopen(os.memfd_create(name), "w+b")


def _read_back(stream: IO[bytes]) -> str:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - (64 << 10)))
    return stream.read().decode("utf-8", "replace")


def _how(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit {code}"


def _measure_now(tree: Path) -> tuple[int, int]:
    """Return bytes on disk and number of files of a tree that is being written.

    Skip what vanishes meanwhile.
    """
    size, files, folders = 0, 0, [str(tree)]
    while folders:
        try:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    files += 1
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    else:
                        size += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue
    return size, files
