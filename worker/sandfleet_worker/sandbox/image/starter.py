"""Starter images, made without a registry: `python` and `busybox`, from Debian and the host.

The same mirror state (or the same busybox) always yields the same digest: an image contains no
clock, host name or random number, and only packages of the release itself, without its daily
updates.
"""

import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sandfleet_config.errors import ImageUnavailable

from sandfleet_worker.sandbox.image.oci import ImageConfig
from sandfleet_worker.sandbox.image.pack import FIXED_TIME
from sandfleet_worker.sandbox.image.tools import StagingFolder, find_tool

_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_UNNEEDED = ("doc", "man", "info", "locale", "lintian", "bug")
_CHECKED_HASH, _UNCHECKED_HASH = b"\x03\0\0\0", b"\x01\0\0\0"
_ACCOUNTS = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"
_GROUP = "root:x:0:\nnogroup:x:65534:\n"
READY_RECIPES = Path(__file__).with_name("recipe") / "ready"
"""The folder of the recipes that come with the worker."""
RECIPE_SUFFIX = ".toml"


@dataclass(frozen=True, slots=True)
class Starter:
    """The recipe of an image that needs no source."""

    build: Callable[[StagingFolder], None]
    config: ImageConfig
    summary: str


def build_python(staging: StagingFolder) -> None:
    """Let mmdebstrap install Debian's essential packages and Python, from the host's mirror."""
    release = _read_release()
    excludes = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _UNNEEDED]
    staging.run(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=essential",
            "--include=python3",
            "--format=directory",
            *excludes,
            # People type `python`; Debian only has python3.
            '--customize-hook=ln -s python3 "$1/usr/bin/python"',
            # mmdebstrap copies these two from the host.
            '--customize-hook=rm -f "$1/etc/hostname" "$1/etc/resolv.conf"',
            release,
            str(staging.tree),
            f"deb {_find_mirror(release)} {release} main",
        ],
        env={"SOURCE_DATE_EPOCH": str(FIXED_TIME), "TMPDIR": str(staging.folder)},
        wrapper=_private_mounts(),
    )
    for path in (staging.tree / "usr" / "lib").rglob("*.pyc"):
        trust_compiled(path)


def _private_mounts() -> list[str]:
    """Return the command that gives mmdebstrap a mount namespace; empty if the host forbids one.

    As root, mmdebstrap mounts /proc and /sys into the tree. If its umount fails, it only warns:
    once the host's /sys was still in the tree when it was to be packed (seen). Mounts in a
    namespace end with it, also if mmdebstrap is killed.
    """
    unshare = shutil.which("unshare")
    if unshare is None or subprocess.run([unshare, "--mount", "true"], capture_output=True, check=False).returncode:
        return []
    return [unshare, "--mount", "--"]


def trust_compiled(path: Path) -> None:
    """Mark a .pyc file as unchecked: no import compares it with its source's hash (PEP 552).

    Reproducible builds make checked ones. An image never changes, so reading each source again is
    useless.
    """
    with path.open("r+b") as stream:
        head = stream.read(8)
        if head[4:] == _CHECKED_HASH:
            stream.seek(4)
            stream.write(_UNCHECKED_HASH)


def _read_release() -> str:
    facts = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    release = facts.get("VERSION_CODENAME", "").strip('"')
    if facts.get("ID") != "debian" or not re.fullmatch(r"[a-z]+", release):
        raise ImageUnavailable.of(
            "the starter image `python` is made on Debian only: here give a source, "
            "`sandfleet-worker images add python oci:FOLDER:TAG` (skopeo copy docker://python:slim oci:FOLDER:TAG)"
        )
    return release


def _find_mirror(release: str) -> str:
    argv = [
        "apt-get",
        "indextargets",
        "--format",
        "$(REPO_URI) $(COMPONENT)",
        "Created-By: Packages",
        f"Release: {release}",
    ]
    done = subprocess.run([find_tool(argv[0]), *argv[1:]], capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        mirror, _, component = line.rpartition(" ")
        if component == "main":
            return mirror
    raise ImageUnavailable.of(
        f"apt knows no mirror of Debian {release}: add one to its sources, or give the image a source"
    )


def build_busybox(staging: StagingFolder) -> None:
    """Put the host's static busybox, and a link for each of its programs, into a tree."""
    binary = Path(find_tool("busybox"))
    _refuse_dynamic(binary)
    staging.new_tree()
    for name in ("bin", "sbin", "usr/bin", "usr/sbin", "etc", "root"):
        (staging.tree / name).mkdir(parents=True, exist_ok=True)
    target = staging.tree / "bin" / "busybox"
    target.write_bytes(binary.read_bytes())
    listed = subprocess.run([binary, "--list-full"], capture_output=True, text=True, check=True).stdout
    for line in sorted(set(listed.split())):
        link = staging.tree / line
        if re.fullmatch(r"(usr/)?s?bin/[^/]+", line) and not link.exists():
            link.symlink_to("/bin/busybox")
    (staging.tree / "etc" / "passwd").write_text(_ACCOUNTS)
    (staging.tree / "etc" / "group").write_text(_GROUP)
    for path in staging.tree.rglob("*"):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path == target else 0o644)


def _refuse_dynamic(binary: Path) -> None:
    # The head of a dynamic program names its loader (ELF PT_INTERP). The image would have neither
    # loader nor libc.
    if b"/ld-" in binary.read_bytes()[:4096]:
        raise ImageUnavailable.of(f"{binary} is not static: install busybox-static")


STARTERS = {
    "python": Starter(
        build_python,
        ImageConfig(env=(_PATH, "LANG=C.UTF-8"), cmd=("python3",)),
        "Debian's essential packages and Python 3",
    ),
    "busybox": Starter(build_busybox, ImageConfig(env=(_PATH,), cmd=("sh",)), "a shell and small tools in 2 MB"),
}


def list_ready_recipes() -> list[str]:
    """Return the names of the recipes that come with the worker."""
    return sorted(path.stem for path in READY_RECIPES.glob(f"*{RECIPE_SUFFIX}"))
