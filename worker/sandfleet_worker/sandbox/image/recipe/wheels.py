"""The packages of Python: uv resolves and locks them, one wheel each, and installs what is locked.

No code of a package runs on the host: nothing is built from source, and a wheel is only unpacked.
"""

from __future__ import annotations

import platform
import shutil
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from packaging.tags import compatible_tags, cpython_tags
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from sandfleet_config.errors import ImageInvalid, ImageUnavailable

from sandfleet_worker.sandbox.image.recipe.lock import LockedWheel
from sandfleet_worker.sandbox.image.recipe.pip_settings import read_index_settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from packaging.tags import Tag

    from sandfleet_worker.sandbox.image.recipe.cache import BuildCache
    from sandfleet_worker.sandbox.image.tools import StagingFolder

GLIBC = 28
"""The minor version of glibc 2 that wheels may ask for; Debian's releases have later ones."""

_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_NETWORK_SIGNS = (
    "connect",
    "dns error",
    "timed out",
    "timeout",
    "status code",
    "http status",
    "request failed",
    "certificate",
    "failed to fetch",
)


class Uv:
    """Runs uv for one Python of a tree, with the index of this host."""

    def __init__(self, staging: StagingFolder, cache: BuildCache, python: str) -> None:
        self._staging, self._python = staging, python
        index = read_index_settings()
        self._flags = index.flags
        self._env = {
            **index.env,
            "UV_CACHE_DIR": str(cache.uv),
            "UV_NO_PROGRESS": "1",
            "UV_PYTHON_DOWNLOADS": "never",
        }

    def _run(self, *arguments: str) -> str:
        return self._staging.run(
            [
                find_uv(),
                "pip",
                *arguments,
                "--quiet",
                *self._flags,
                "--only-binary=:all:",
                f"--python={sys.executable}",
                f"--python-version={self._python}",
                f"--python-platform={platform.machine()}-manylinux_2_{GLIBC}",
            ],
            self._env,
            is_limited=False,
        )

    def lock(self, requirements: Sequence[str]) -> tuple[LockedWheel, ...]:
        """Return one wheel for each package that `requirements` need.

        Raises:
            ImageInvalid: a package does not exist, has no wheel, or they exclude each other.
            ImageUnavailable: uv is missing, or the index cannot be reached.
        """
        wanted = self._staging.folder / "requirements.in"
        wanted.write_text("".join(f"{requirement}\n" for requirement in requirements))
        found = self._staging.folder / "pylock.toml"
        try:
            self._run("compile", str(wanted), f"--output-file={found}", "--format=pylock.toml", "--refresh")
        except ImageInvalid as error:
            raise _new_fault(error) from error
        tags = list_tags(self._python)
        return tuple(_choose(package, tags) for package in tomllib.loads(found.read_text()).get("packages", []))

    def install(self, wheels: Sequence[LockedWheel], target: Path) -> None:
        """Unpack exactly these wheels into the folder `target`.

        Raises:
            ImageUnavailable: a wheel is gone from the index, or the index cannot be reached.
            ImageInvalid: a wheel is damaged.
        """
        wanted = self._staging.folder / "requirements.txt"
        wanted.write_text("".join(f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in wheels))
        options = ("--no-deps", "--require-hashes", "--link-mode=copy", "--no-compile-bytecode")
        try:
            self._run("install", *options, f"--target={target}", f"--requirements={wanted}")
        except ImageInvalid as error:
            said = error.message
            if _is_network(said):
                raise _new_fault(error) from error
            raise ImageUnavailable.of(
                "a locked Python package is gone from the package index of this host, or is not the file that was "
                f"locked: lock the recipe anew with --update (the image gets another digest). uv said: {_tell(said)}"
            ) from error


def find_uv() -> str:
    """Return the path of uv: that of the worker's environment, else the one on PATH.

    Raises:
        ImageUnavailable: there is none.
    """
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.is_file() else shutil.which("uv")
    if found is None:
        raise ImageUnavailable.of(
            "Python packages of a recipe need uv, which is not installed here: pip install 'sandfleet-worker[build]'"
        )
    return found


def list_tags(python: str) -> dict[Tag, int]:
    """Return the tags of wheels that fit, each with its rank; 0 fits best (PEP 425, PEP 600)."""
    machine = platform.machine()
    platforms = []
    for minor in range(GLIBC, 4, -1):
        platforms.append(f"manylinux_2_{minor}_{machine}")
        platforms += [f"{_LEGACY[minor]}_{machine}"] if minor in _LEGACY else []
    platforms.append(f"linux_{machine}")
    major, minor_version = (int(part) for part in python.split("."))
    version, interpreter = (major, minor_version), f"cp{major}{minor_version}"
    tags = [
        *cpython_tags(python_version=version, abis=[interpreter], platforms=platforms),
        *compatible_tags(python_version=version, interpreter=interpreter, platforms=platforms),
    ]
    return {tag: rank for rank, tag in reversed(list(enumerate(tags)))}


def _choose(package: dict[str, Any], tags: dict[Tag, int]) -> LockedWheel:
    """Return the wheel of a package of pylock.toml (PEP 751) that fits best."""
    ranked = []
    for wheel in package.get("wheels", []):
        file = unquote(str(wheel.get("name") or wheel.get("url") or wheel.get("path"))).rpartition("/")[2]
        try:
            _, _, build, found = parse_wheel_filename(file)
        except InvalidWheelFilename:
            continue
        ranks = [tags[tag] for tag in found if tag in tags]
        if ranks and "sha256" in wheel.get("hashes", {}):
            ranked.append((min(ranks), tuple(-int(part) for part in build[:1]), file, wheel["hashes"]["sha256"]))
    if not ranked:
        raise ImageInvalid.of(
            f"the Python package {package['name']} {package.get('version', '')} has no wheel for this Python and "
            "machine, and a recipe builds nothing from source: choose another version of it, or another package"
        )
    return LockedWheel(name=package["name"], version=package["version"], sha256=min(ranked)[3])


def _is_network(said: str) -> bool:
    return any(sign in said.lower() for sign in _NETWORK_SIGNS)


def _new_fault(error: ImageInvalid) -> ImageInvalid | ImageUnavailable:
    said = _tell(error.message)
    if "no usable wheels" in said or "Wheels are required" in said or "no wheels with" in said:
        return ImageInvalid.of(
            "a Python package of the recipe has no wheel that fits, and a recipe builds nothing from source (that would "
            f"run its code on this host): choose another version or package. uv said: {said}"
        )
    if _is_network(error.message):
        return ImageUnavailable.of(f"cannot read the package index of this host: {said}")
    return ImageInvalid.of(f"the Python packages of the recipe cannot be had: {said}")


def _tell(said: str) -> str:
    """Return what uv said without its warnings, in one line."""
    lines = said.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith("error:")), 0)
    return " ".join(" ".join(lines[start:]).removeprefix("error:").split())
