"""Run the tools that write an image's files (tar, umoci, mkfs.erofs, skopeo, ...) within limits."""

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from sandfleet_config.errors import HostResources, ImageInvalid, ImageUnavailable
from sandfleet_config.units import format_bytes

from sandfleet_worker.sandbox.image.kind import Kind
from sandfleet_worker.sandbox.image.staging import disk_full

DEFAULT_MAX_BYTES = 20 << 30
DEFAULT_MAX_FILES = 2_000_000
_PACKAGES = {"mkfs.erofs": "erofs-utils", "cp": "coreutils"}
_FULL_DISK = ("no space left on device", "disk quota exceeded", "error 28")
_FILE_TOO_LARGE = ("file too large", "file size limit exceeded")
# Measuring the tree takes at most this share of the time that the tool runs.
_MEASURE_SHARE = 0.05
_MEASURE_SECONDS = 0.2
_MAX_OUTPUT_CHARS = 2000
_MAX_STDOUT_BYTES = 8 << 20


def _do_nothing() -> None:
    """Go on."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one image or dataset may take when unpacked. They are fixed: no setting has them."""

    max_bytes: int = DEFAULT_MAX_BYTES
    max_files: int = DEFAULT_MAX_FILES
    kind: Kind = Kind.IMAGE

    def check(self, size_bytes: int, files: int) -> None:
        """Raise ImageInvalid past a limit."""
        if size_bytes > self.max_bytes:
            raise ImageInvalid.of(
                f"the {self.kind} unpacks to more than {format_bytes(self.max_bytes)}, the fixed limit: make it smaller"
            )
        if files > self.max_files:
            raise ImageInvalid.of(
                f"the {self.kind} holds more than {self.max_files:,} files, the fixed limit: put fewer into it"
            )


@dataclass(frozen=True, slots=True)
class ToolEnd:
    """How a tool ended: its exit status (negative: a signal), and the last bytes of its output."""

    code: int
    stdout: bytes
    stderr: str


@dataclass(frozen=True, slots=True)
class StagingFolder:
    """The staging folder of one image that is made.

    Its tools inherit `lock`, so that no sweep removes it while a tool still writes. `check` is
    called again and again meanwhile; what it raises ends the tool and the making.
    """

    folder: Path
    lock: int
    limits: Limits
    check: Callable[[], None] = _do_nothing

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
        end = self.run_measured(argv, env, measured=self.tree if is_limited else None, wrapper=wrapper)
        self.check_end(argv[0], end)
        return end.stdout.decode("utf-8", "replace")

    def run_measured(
        self,
        argv: list[str],
        env: dict[str, str] | None = None,
        *,
        measured: Path | None,
        wrapper: Sequence[str] = (),
    ) -> ToolEnd:
        """Run a tool whose files in `measured` must stay within the limits; return how it ended.

        Raises:
            ImageUnavailable: the tool is not installed.
            ImageInvalid: what it wrote outgrew the limits.
        """
        fsize = self.limits.max_bytes if measured else None
        poll = self._new_poll(measured) if measured else self.check
        env = {"HOME": str(self.folder)} | (env or {})
        return run_tool(argv, env, poll, cwd=self.folder, pass_fds=(self.lock,), wrapper=wrapper, max_file_bytes=fsize)

    def _new_poll(self, measured: Path) -> Callable[[], None]:
        next_measurement = time.monotonic()

        def poll() -> None:
            nonlocal next_measurement
            self.check()
            began = time.monotonic()
            if began >= next_measurement:
                self.limits.check(*_measure_now(measured))
                took = time.monotonic() - began
                next_measurement = began + took + max(_MEASURE_SECONDS, took / _MEASURE_SHARE)

        return poll

    def check_disk(self, end: ToolEnd) -> None:
        """Raise `HostResources` of a tool that failed because the disk is full."""
        if end.code and any(sign in end.stderr.lower() for sign in _FULL_DISK):
            raise disk_full(self.folder)

    def check_end(self, tool: str, end: ToolEnd) -> None:
        """Raise the error of a tool that failed.

        Raises:
            HostResources: the disk is full, or the host has killed the tool.
            ImageInvalid: any other failure.
        """
        if end.code == 0:
            return
        output = end.stderr.lower()
        self.check_disk(end)
        if end.code == -signal.SIGKILL:
            raise HostResources.of(f"{tool} was killed on this host while it made the image: is its memory full?")
        if end.code == -signal.SIGXFSZ or any(sign in output for sign in _FILE_TOO_LARGE):
            self.limits.check(self.limits.max_bytes + 1, 0)
        raise ImageInvalid.of(
            f"{tool} failed ({_how(end.code)}): {end.stderr[-_MAX_OUTPUT_CHARS:].strip() or 'it said nothing'}"
        )


def run_tool(
    argv: Sequence[str],
    env: dict[str, str],
    poll: Callable[[], None],
    *,
    cwd: Path,
    pass_fds: Sequence[int] = (),
    wrapper: Sequence[str] = (),
    max_file_bytes: int | None = None,
) -> ToolEnd:
    """Run a tool in its own process group, which is killed if `poll` raises or this process dies.

    Raises:
        ImageUnavailable: the tool is not installed.
    """
    binary = find_tool(argv[0])
    # In memory: a full disk could not take the message that it is full.
    with _new_memory_file("stdout") as out, _new_memory_file("stderr") as err:
        child = subprocess.Popen(
            [*_die_with_parent(), *wrapper, binary, *argv[1:]],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            cwd=cwd,
            pass_fds=pass_fds,
            env=_tool_env() | env,
            start_new_session=True,
        )
        try:
            if max_file_bytes is not None:
                # The kernel stops one endless (or sparse) file, `poll` stops many files.
                resource.prlimit(child.pid, resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))
            _wait(child, poll)
        finally:
            _kill_group(child)
        return ToolEnd(child.returncode, _read_back(out, _MAX_STDOUT_BYTES), _read_back(err).decode("utf-8", "replace"))


def _wait(child: subprocess.Popen[bytes], poll: Callable[[], None]) -> None:
    while True:
        try:
            child.wait(_MEASURE_SECONDS)
        except subprocess.TimeoutExpired:
            poll()
        else:
            return


def _kill_group(child: subprocess.Popen[bytes]) -> None:
    """Kill the tool and what it has started, and wait for the tool."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _die_with_parent() -> list[str]:
    """Return the command for a tool to die with its worker (prctl(2), PR_SET_PDEATHSIG).

    The shell ends a tool whose worker died before setpriv had asked for the signal.
    """
    setpriv = shutil.which("setpriv", path=_tool_path())
    check = ["sh", "-c", '[ "$PPID" = "$0" ] || exit 1; exec "$@"', str(os.getpid())]
    return [setpriv, "--pdeathsig", "KILL", "--", *check] if setpriv else []


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


def _read_back(stream: IO[bytes], max_bytes: int = 64 << 10) -> bytes:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - max_bytes))
    return stream.read()


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
