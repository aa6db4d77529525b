"""Put unpacked Python packages where an image's Python finds them, and compile them ahead."""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet_config.errors import ImageInvalid

from sandfleet_worker.sandbox.image.recipe.debian import find_walls
from sandfleet_worker.sandbox.image.recipe.inside import make_folder, resolve_inside

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_worker.sandbox.image.tools import StagingFolder

_COMPILE = (
    # No site: a .pth file of a package would run at the start. No hash seed: sets come in one
    # order.
    "-S",
    "-s",
    "-P",
    "-m",
    "compileall",
    "-q",
    "--invalidation-mode=unchecked-hash",
)
_NOBODY = 65534
_SHEBANG = re.compile(rb"#!.*\n")
_OF_THIS_HOST = ("uv_cache.json", "direct_url.json")
"""A file in which uv notes path and time of a wheel that comes from a folder."""
_OUTSIDE = ("bin", "share", "include", "etc", "man")


@dataclass(frozen=True, slots=True)
class Site:
    """Where an image has its Python: version, program, package folder (without leading slash)."""

    version: str
    program: str
    packages: str
    is_debian: bool = False


def debian_site(version: str) -> Site:
    """Return where Debian's Python is, and where it looks for packages that are not Debian's."""
    return Site(version, "/usr/bin/python3", f"usr/local/lib/python{version}/dist-packages", is_debian=True)


def find_site(tree: Path) -> Site:
    """Return the Python of an unpacked image.

    Raises:
        ImageInvalid: there is none that wheels for glibc can be put into.
    """
    if list(tree.glob("lib/ld-musl-*")):
        raise ImageInvalid.of(
            "`pip` needs a base with glibc: this one has musl (Alpine), for which the wheels are not made"
        )
    for prefix in ("usr/local", "usr"):
        for program in sorted((tree / prefix / "bin").glob("python3.*")):
            version = program.name.removeprefix("python")
            if re.fullmatch(r"3\.\d+", version) and (tree / prefix / "lib" / program.name).is_dir():
                if prefix == "usr" and (tree / "usr/lib/python3/dist-packages").is_dir():
                    return Site(version, f"/usr/bin/python{version}", debian_site(version).packages)
                return Site(version, f"/{prefix}/bin/python{version}", f"{prefix}/lib/{program.name}/site-packages")
    raise ImageInvalid.of("`pip` needs a base with Python 3 in /usr/local or /usr, and this one has none there")


def place(unpacked: Path, site: Site, tree: Path) -> list[Path]:
    """Move unpacked packages into the tree; return their folders and modules there.

    uv unpacks programs and data beside the modules; their place is `bin` and so on of the prefix.

    Raises:
        ImageInvalid: the image has a file of that name.
    """
    (unpacked / ".lock").unlink(missing_ok=True)
    packages = make_folder(tree, site.packages)
    prefix = site.packages.partition("/lib/")[0]
    outside = [
        name for name in _OUTSIDE if (unpacked / name).is_dir() and not (unpacked / name / "__init__.py").exists()
    ]
    climb = "../" * (len(site.packages.split("/")) - len(prefix.split("/")))
    for record in unpacked.glob("*.dist-info/RECORD"):
        _correct_record(record, outside, climb)
        for name in _OF_THIS_HOST:
            record.with_name(name).unlink(missing_ok=True)
    for name in outside:
        for path in sorted(_list_files(unpacked / name)):
            if name == "bin":
                _correct_shebang(path, site.program)
            target = resolve_inside(tree, f"{prefix}/{path.relative_to(unpacked)}")
            make_folder(tree, str(target.parent.relative_to(tree)))
            if os.path.lexists(target):
                raise ImageInvalid.of(
                    f"a Python package brings /{target.relative_to(tree)}, which the image has already"
                )
            path.rename(target)
        shutil.rmtree(unpacked / name)
    placed = []
    for path in sorted(unpacked.iterdir()):
        target = packages / path.name
        if os.path.lexists(target):
            raise ImageInvalid.of(f"the image has the Python package {path.name} already: leave it out of `pip`")
        path.rename(target)
        placed.append(target)
    _open_modes(placed)
    return placed


def _list_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            yield path


def _open_modes(placed: list[Path]) -> None:
    """Let everybody read what was unpacked: its modes depend on the caller's umask."""
    for top in placed:
        for path in [top, *(top.rglob("*") if top.is_dir() else ())]:
            if not path.is_symlink():
                is_program = path.is_dir() or stat.S_IMODE(path.stat().st_mode) & 0o100
                path.chmod(0o755 if is_program else 0o644)


def _correct_shebang(path: Path, program: str) -> None:
    """Let a program of a package run by the image's Python instead of the host's."""
    path.chmod(0o755)
    content = path.read_bytes()
    match = _SHEBANG.match(content)
    if match is not None and sys.executable.encode() in match[0]:
        path.write_bytes(f"#!{program}\n".encode() + content[match.end() :])


def _correct_record(record: Path, outside: list[str], climb: str) -> None:
    """Name the places of files that were moved, without the hashes of those that were changed."""
    lines = [
        line
        for line in record.read_text(encoding="utf-8").splitlines()
        if not line.partition(",")[0].endswith(tuple(f".dist-info/{name}" for name in _OF_THIS_HOST))
    ]
    record.write_text("".join(f"{_correct_entry(line, outside, climb)}\n" for line in lines), encoding="utf-8")


def _correct_entry(line: str, outside: list[str], climb: str) -> str:
    top = line.partition("/")[0]
    if top not in outside:
        return line
    name, digest, size = line.rsplit(",", 2)
    return f"{climb}{name},," if top == "bin" else f"{climb}{name},{digest},{size}"


def compile_ahead(site: Site, placed: list[Path], staging: StagingFolder) -> bool:
    """Compile the packages, so that no sandbox does it at each import; False if no Python here can.

    Debian's own Python does it in a chroot as nobody, and may write to one folder only. Of another
    image nothing is run: the host's Python of the same version does it.

    Raises:
        ImageInvalid: Python could not do it. A single file that it cannot read is no failure.
    """
    tree = staging.tree
    if not site.is_debian:
        host = shutil.which(f"python{site.version}")
        if host is not None:
            _run_compiler(staging, [host, *_COMPILE, "-s", str(tree), "-p", "/", *map(str, placed)])
        return host is not None
    output = tree / ".compiled"
    output.mkdir()
    os.chown(output, _NOBODY, _NOBODY)
    inside = [f"/{path.relative_to(tree)}" for path in placed]
    chroot = ["chroot", f"--userspec={_NOBODY}:{_NOBODY}", "--groups=", str(tree)]
    try:
        _run_compiler(staging, [*chroot, site.program, "-X", "pycache_prefix=/.compiled", *_COMPILE, *inside])
        collect_compiled(output, tree)
    finally:
        shutil.rmtree(output)
    return True


def _run_compiler(staging: StagingFolder, argv: list[str]) -> None:
    try:
        staging.run(argv, {"PYTHONHASHSEED": "0", "HOME": "/"}, wrapper=find_walls())
    except ImageInvalid as error:
        # compileall exits so if it could not compile one of the files: tests and templates are
        # such.
        if "(exit 1)" not in error.message:
            raise ImageInvalid.of(f"the Python packages cannot be compiled: {error.message}") from error


def collect_compiled(output: Path, tree: Path) -> None:
    """Move what was compiled beside its sources.

    Whoever wrote it may have left other things there.
    """
    for path in sorted(output.rglob("*.pyc")):
        folder = resolve_inside(tree, str(path.parent.relative_to(output) / "_")).parent
        if not stat.S_ISREG(path.lstat().st_mode) or not folder.is_dir() or output in (folder, *folder.parents):
            continue
        (folder / "__pycache__").mkdir(exist_ok=True)
        target = folder / "__pycache__" / path.name
        os.chown(path, 0, 0)
        path.chmod(0o644)
        path.rename(target)
