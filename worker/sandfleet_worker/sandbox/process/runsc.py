"""runsc's command line, its version and its log. No other module starts runsc."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

from sandfleet_config.errors import GVisorNotAvailable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet_config.settings import RunscSettings

NATIVE = Path(__file__).parents[1] / "native"
VERSION_DEADLINE_SECONDS = 20.0
MIN_RELEASE_DATE = 20230904
"""runsc gained --pass-fd (2023-03), --exec-fd (2023-04) and an EROFS root (2023-08): older ones
cannot run our sandboxes.
"""

QUIET_FLAG = "sidecar-usage-policy"
"""A flag that came with 20260721.

Such a release takes no CPU in an idle sandbox (since 20260622), boots without slow membarrier calls
(20260714), and does not need SCHED_BATCH (20260224).
"""

REQUIRED_FLAGS = frozenset({
    "root", "platform", "network", "ignore-cgroups", "log", "log-format", "panic-log", "overlay2",
})  # fmt: skip
"""Global flags that each sandbox is started with; see `new_command`."""

ROOTFS, LOG, PANIC_LOG = "rootfs", "runsc.log", "panic.log"
LOG_TAIL_BYTES = 4096
LAUNCH_EXIT_CGROUP, LAUNCH_EXIT_EXEC, LAUNCH_EXIT_PARENT_GONE = 120, 121, 122


@dataclass(frozen=True)
class Abilities:
    """How sandboxes boot with a runsc, as a boot has proved; see abilities.py.

    `inherits_capabilities`: the bundle gives init its capabilities as inheritable ones.
    `is_directfs_off`: boot with ``--directfs=false``, so that the sentry runs on the host as nobody
    without capabilities. `is_quiet`: an idle sandbox takes no CPU, and neither SCHED_BATCH nor a
    hidden membarrier(2) makes a boot faster. `mounts_erofs`: datasets can be mounted.
    """

    inherits_capabilities: bool = False
    is_directfs_off: bool = False
    is_quiet: bool = False
    mounts_erofs: bool = False


@dataclass(frozen=True)
class RunscBinary:
    """A runsc that was found on this host.

    `flags` are the names of the global flags that it knows.
    """

    path: str
    version: str
    flags: frozenset[str] = field(default=frozenset(), repr=False)
    abilities: Abilities = Abilities()

    def with_abilities(self, abilities: Abilities) -> Self:
        """Return the same binary with its abilities."""
        return replace(self, abilities=abilities)


def find_runsc(name: str) -> RunscBinary:
    """Find runsc and ask its version.

    Raises:
        GVisorNotAvailable: not found, not runnable, or too old for our sandboxes; the message says
            what to install.
    """
    try:
        path = _find_path(name, os.environ.get("PATH"))
        stat = os.stat(path)  # noqa: PTH116  done for each job, and pathlib costs twice as much
    except FileNotFoundError:
        _find_path.cache_clear()  # it may have moved
        path = _find_path(name, os.environ.get("PATH"))
        stat = os.stat(path)  # noqa: PTH116
    return _read_version(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=8)
def _find_path(name: str, _search_path: str | None) -> str:
    path = shutil.which(name)
    if path is None:
        msg = f"runsc was not found as {name!r}: install gVisor (Debian trixie's package `runsc`) or set SANDFLEET_RUNSC__PATH"
        raise GVisorNotAvailable.of(msg)
    return path


@functools.lru_cache(maxsize=8)
def _read_version(path: str, mtime_ns: int, size: int) -> RunscBinary:  # noqa: ARG001  part of the cache's key
    version = parse_version(_ask(path, "--version"))
    released = release_date(version)
    if released is not None and released < MIN_RELEASE_DATE:
        msg = f"runsc {version} is too old (needs release {MIN_RELEASE_DATE} or later): install Debian trixie's package `runsc`"
        raise GVisorNotAvailable.of(msg)
    flags = parse_flags(_ask(path, "flags"))
    if flags and (missing := sorted(REQUIRED_FLAGS - flags)):
        named = ", ".join(f"--{flag}" for flag in missing)
        msg = (
            f"runsc {version} at {path} does not know {named}: install a release that was tested (20240729 to 20260905)"
        )
        raise GVisorNotAvailable.of(msg)
    return RunscBinary(path, version, flags)


def _ask(path: str, word: str) -> str:
    try:
        done = subprocess.run(
            [path, word], capture_output=True, text=True, timeout=VERSION_DEADLINE_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        msg = f"{path} {word} does not work: {error}"
        raise GVisorNotAvailable.of(msg) from error
    # runsc prints its flags on stderr.
    return done.stdout + done.stderr


def parse_flags(text: str) -> frozenset[str]:
    """Return the names of the global flags in the output of ``runsc flags``.

    Each flag has a line that begins with blanks and a dash.
    """
    return frozenset(re.findall(r"^\s+-([a-z][a-zA-Z0-9-]*)", text, re.MULTILINE))


def parse_version(text: str) -> str:
    """Return the version in line 1 of ``runsc --version``, such as ``release-20240729.0``."""
    first = text.splitlines()[0] if text else ""
    return first.rpartition("version ")[2].strip()


def release_date(version: str) -> int | None:
    """Return the date in a version as yyyymmdd.

    None for a self-built one, which counts as new enough.
    """
    match = re.search(r"(20\d{6})", version)
    return int(match.group(1)) if match else None


@dataclass(frozen=True)
class SandboxPaths:
    """The files of a sandbox, all in its own folder: the bundle and runsc's private ``--root``."""

    folder: Path

    @property
    def log(self) -> Path:
        """The log of runsc, JSON."""
        return self.folder / LOG

    @property
    def panic_log(self) -> Path:
        """Written only when the sentry panics."""
        return self.folder / PANIC_LOG

    @property
    def rootfs(self) -> str:
        """The path of an empty folder that all sandboxes share.

        The real root is the EROFS image that the bundle's annotations name.
        """
        return f"{str(self.folder).rpartition('/')[0]}/{ROOTFS}"

    def make(self) -> None:
        """Make the folder, private to root."""
        os.mkdir(self.folder, mode=0o700)  # noqa: PTH102  done for each job, and pathlib costs twice as much


def new_command(
    binary: RunscBinary,
    settings: RunscSettings,
    platform: str,
    paths: SandboxPaths,
    fds: Sequence[int],
) -> list[str]:
    """Return the argv of one attached sandbox.

    `fds` are (control read end, status write end, init's ELF).
    """
    control, status, init = fds
    folder = str(paths.folder)  # once: with pathlib the command takes three times as long
    flags = [
        f"--root={folder}",
        f"--platform={platform}",
        "--network=none",
        # Our own cgroup holds the limits and outlives the sandbox, so that its counters can be
        # read.
        "--ignore-cgroups",
        f"--log={folder}/{LOG}",
        "--log-format=json",
        f"--panic-log={folder}/{PANIC_LOG}",
        # The default `root:self` writes a file into a shared rootfs; ours is EROFS.
        "--overlay2=none",
    ]
    if settings.rootless:
        flags.append("--rootless")
    if binary.abilities.is_directfs_off:
        flags.append("--directfs=false")
    run = [f"--bundle={folder}", f"--pass-fd={control}:3", f"--pass-fd={status}:4", f"--exec-fd={init}"]
    return [binary.path, *flags, "run", *run, paths.folder.name]


def read_log_errors(path: Path) -> str:
    """Return the last three errors and warnings of runsc's JSON log; empty if there is none."""
    text = read_tail(path)
    decoder, position, messages = json.JSONDecoder(), 0, []
    # Entries follow one another without newlines. Debug levels do not help a user.
    while (start := text.find("{", position)) >= 0:
        try:
            entry, position = decoder.raw_decode(text, start)
        except ValueError:
            position = start + 1
            continue
        if isinstance(entry, dict) and entry.get("level") in {"error", "fatal", "warning"} and entry.get("msg"):
            messages.append(str(entry["msg"]).strip())
    return "; ".join(messages[-3:])


def read_head(path: Path, max_bytes: int = LOG_TAIL_BYTES) -> str:
    """Return the start of a file as text; empty if there is none.

    A panic's cause is in its first lines.
    """
    try:
        with path.open("rb") as file:
            return file.read(max_bytes).decode(errors="replace")
    except OSError:
        return ""


def read_tail(path: Path, max_bytes: int = LOG_TAIL_BYTES) -> str:
    """Return the end of a file as text; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - max_bytes))
            return file.read(max_bytes).decode(errors="replace")
    except OSError:
        return ""
