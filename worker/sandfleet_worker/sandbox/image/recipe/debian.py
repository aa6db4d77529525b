"""Install locked Debian packages into an empty tree; remove what differs between builds.

Packages run their maintainer scripts: as root, in a chroot(2), with namespaces of their own for
mounts, processes and the network, which has no interface but loopback. They come from Debian's
signed index.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from sandfleet_config.errors import ImageInvalid, ImageUnavailable

from sandfleet_worker.sandbox.image.pack import FIXED_TIME
from sandfleet_worker.sandbox.image.recipe.keystore import fix_keystore
from sandfleet_worker.sandbox.image.staging import remove_tree
from sandfleet_worker.sandbox.image.starter import trust_compiled

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from sandfleet_worker.sandbox.image.recipe.lock import LockedDeb
    from sandfleet_worker.sandbox.image.tools import StagingFolder

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UNNEEDED = ("doc", "man", "info", "locale", "lintian", "bug")
_WALLS = (
    ("--mount", "--net", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"),
    ("--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
    ("--mount",),
)
_VOLATILE = ("run", "tmp", "var/cache", "var/lib/apt", "var/log", "var/tmp")
_VOLATILE_FILES = (
    "etc/.pwd.lock",
    "etc/apt/sources.list",
    "etc/hostname",
    "etc/ld.so.cache~",
    "etc/machine-id",
    "etc/passwd-",
    "etc/group-",
    "etc/shadow-",
    "etc/gshadow-",
    "etc/resolv.conf",
    "var/lib/dpkg/diversions-old",
    "var/lib/dpkg/lock",
    "var/lib/dpkg/lock-frontend",
    "var/lib/dpkg/statoverride-old",
    "var/lib/dpkg/status-old",
    "var/lib/dpkg/triggers/Lock",
    "var/lib/systemd/random-seed",
)
_FIXED_DAY = FIXED_TIME // 86400
_SHADOW_FIELDS = 9


@functools.cache
def find_walls() -> tuple[str, ...]:
    """Return the unshare(1) command with the most namespaces that this host allows; empty if none.

    They end with their first process. So nothing goes on when a build is killed, and no mount
    stays.
    """
    unshare = shutil.which("unshare")
    for flags in _WALLS if unshare else ():
        argv = (str(unshare), *flags, "--")
        if subprocess.run([*argv, "true"], capture_output=True, check=False).returncode == 0:
            return argv
    return ()


def install_debs(repository: Path, suite: str, staging: StagingFolder) -> None:
    """Fill the tree with exactly the packages of a repository.

    Raises:
        ImageUnavailable: the caller is not root, or mmdebstrap is missing.
        ImageInvalid: a package cannot be installed.
    """
    if os.geteuid() != 0:
        raise ImageUnavailable.of("an image with Debian's packages is built as root: run it with sudo")
    excludes = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _UNNEEDED]
    try:
        staging.run(
            [
                "mmdebstrap",
                "--mode=root",
                "--variant=essential",
                # The repository has these packages and no other. Their names would make errors
                # unreadable.
                "--include=?not(?virtual)",
                "--format=directory",
                *excludes,
                # Java's packages put links there, and fail without the folder.
                '--essential-hook=mkdir -p "$1/usr/share/man/man1"',
                suite,
                str(staging.tree),
                # Trusted: the hash of each package was compared with the lock.
                f"deb [trusted=yes] copy:{repository} ./",
            ],
            env={"SOURCE_DATE_EPOCH": str(FIXED_TIME), "TMPDIR": str(staging.folder)},
            wrapper=find_walls(),
        )
    except ImageInvalid as error:
        raise ImageInvalid.of(f"Debian's packages cannot be installed: {error.message}") from error
    for path in (staging.tree / "usr" / "lib").rglob("*.pyc"):
        trust_compiled(path)
    remove_volatile(staging.tree)


def remove_volatile(tree: Path) -> None:
    """Remove what two builds of the same packages do not have alike: logs, caches, locks, times.

    Also links to manuals, which are left out.
    """
    for name in _VOLATILE:
        folder = tree / name
        if folder.is_symlink() or not folder.is_dir():
            continue
        for path in folder.iterdir():
            # A folder may be what a package expects to find; what is in it is no part of a package.
            remove_tree(path) if name in {"run", "tmp", "var/tmp"} else _remove_files(path)
    remove_tree(tree / "usr/share/man")
    for name in _VOLATILE_FILES:
        (tree / name).unlink(missing_ok=True)
    _fix_shadow(tree / "etc" / "shadow")
    fix_keystore(tree / "etc/ssl/certs/java/cacerts", FIXED_TIME)


def _remove_files(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        for inner in path.iterdir():
            _remove_files(inner)
    else:
        path.unlink()


def _fix_shadow(path: Path) -> None:
    """Set the day of the last change of each password, shadow(5): no account has one."""
    if path.is_symlink() or not path.is_file():
        return
    path.write_text("".join(_fix_account(line) for line in path.read_text().splitlines(keepends=True)))


def _fix_account(line: str) -> str:
    fields = line.split(":")
    if len(fields) == _SHADOW_FIELDS and fields[2]:
        fields[2] = str(_FIXED_DAY)
    return ":".join(fields)


def find_python(debs: Iterable[LockedDeb]) -> str:
    """Return the version of Debian's Python in `debs`, such as 3.13; "" if it is not there."""
    for deb in debs:
        if deb.name == "python3":
            return ".".join(deb.version.rpartition(":")[2].split(".")[:2])
    return ""
