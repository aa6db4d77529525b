"""The packages of Debian: lock them, fetch what is locked, and offer them to mmdebstrap."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING
from urllib.parse import unquote

from sandfleet_config.errors import ImageInvalid, ImageUnavailable

from sandfleet_worker.sandbox.image.recipe.lock import LockedDeb
from sandfleet_worker.sandbox.image.recipe.mirror import PrivateApt, find_architecture

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from sandfleet_worker.sandbox.image.recipe.cache import BuildCache
    from sandfleet_worker.sandbox.image.tools import StagingFolder

APT_HELPER = "/usr/lib/apt/apt-helper"
_LINE = re.compile(r"'(?P<uri>[^']+)' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})")
# The first one stands behind the words of `StagingFolder.check_end`.
_APT_FAULT = re.compile(r"(?:^|\): )E: (.*)$", re.MULTILINE)
_GONE = ("404", "not found", "hash sum mismatch", "unexpected size")


def lock_debs(apt: PrivateApt, packages: Sequence[str]) -> tuple[LockedDeb, ...]:
    """Return Debian's essential packages, `packages`, and all that they depend on, in apt's order.

    Raises:
        ImageInvalid: a package or version does not exist, or two exclude each other.
        ImageUnavailable: the mirror cannot be read.
    """
    apt.prepare()
    try:
        apt.run("update")
    except ImageInvalid as error:
        raise ImageUnavailable.of(
            f"cannot read Debian {apt.suite} from the mirror of this host: {_tell(error)}"
        ) from error
    try:
        listed = apt.run("install", "--print-uris", "--yes", "?essential", *packages)
    except ImageInvalid as error:
        raise ImageInvalid.of(
            f"Debian {apt.suite} cannot give what the recipe names in `apt`: {_tell(error)}"
        ) from error
    return tuple(_parse(match, apt.mirror) for match in _LINE.finditer(listed))


def _parse(match: re.Match[str], mirror: str) -> LockedDeb:
    name, version, architecture = match["file"].removesuffix(".deb").split("_")
    return LockedDeb(
        name=name,
        version=unquote(version),
        architecture=architecture,
        path=match["uri"].removeprefix(mirror),
        size=int(match["size"]),
        sha256=match["sha256"],
    )


def _tell(error: ImageInvalid) -> str:
    """Return what apt said, without its warnings and its words around."""
    faults = dict.fromkeys(_APT_FAULT.findall(error.message))
    return "; ".join(faults) or error.message


def fetch_debs(debs: Sequence[LockedDeb], mirror: str, staging: StagingFolder, cache: BuildCache) -> Path:
    """Return a folder with the locked packages, as a repository that mmdebstrap reads.

    Raises:
        ImageUnavailable: a package is gone from the mirror, or the mirror cannot be reached.
    """
    missing = [deb for deb in debs if not cache.has_deb(deb.sha256)]
    if missing:
        _download(missing, mirror, staging, cache)
    repository = staging.folder / "repository"
    repository.mkdir()
    for deb in debs:
        cache.take_deb(deb.sha256, repository / _file_name(deb))
    return repository


def _file_name(deb: LockedDeb) -> str:
    return f"{deb.name}_{deb.version.replace(':', '%3a')}_{deb.architecture}.deb"


def _download(debs: Sequence[LockedDeb], mirror: str, staging: StagingFolder, cache: BuildCache) -> None:
    folder = staging.folder / "downloads"
    folder.mkdir()
    words = [word for deb in debs for word in (f"{mirror}{deb.path}", str(folder / deb.sha256), f"SHA256:{deb.sha256}")]
    options = ["-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2", "-qq"]
    fault: ImageInvalid | None = None
    try:
        staging.run([APT_HELPER, *options, "download-file", *words], is_limited=False)
    except ImageInvalid as error:
        fault = error
    lost = []
    for deb in debs:
        path = folder / deb.sha256
        if path.is_file() and _hash(path) == deb.sha256:
            cache.keep_deb(deb.sha256, path)
        else:
            lost.append(f"{deb.name} {deb.version}")
    if lost:
        raise _new_lost(lost, fault)


def _hash(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _new_lost(lost: Sequence[str], fault: ImageInvalid | None) -> ImageUnavailable:
    said = fault.message if fault else ""
    names = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")  # noqa: PLR2004
    if any(sign in said.lower() for sign in _GONE):
        return ImageUnavailable.of(
            f"locked packages of Debian are gone from the mirror of this host: {names}. Make a new lock with "
            "--update (the image gets another digest), or name a mirror that has them in SANDFLEET_IMAGES__DEBIAN_MIRROR"
        )
    return ImageUnavailable.of(f"cannot fetch {names} from the mirror of this host: {said or 'apt said nothing'}")


def index_repository(folder: Path, suite: str, staging: StagingFolder) -> None:
    """Write the index of a folder of packages, in the form of a Debian mirror."""
    entries = []
    for path in sorted(folder.glob("*.deb")):
        control = staging.run(["dpkg-deb", "--field", str(path)], is_limited=False).rstrip("\n")
        entries.append(f"{control}\nFilename: ./{path.name}\nSize: {path.stat().st_size}\nSHA256: {_hash(path)}\n")
    index = folder / "Packages"
    index.write_text("\n".join(entries))
    # mmdebstrap finds the essential packages by the name of their release.
    (folder / "Release").write_text(
        f"Origin: Debian\nSuite: {suite}\nCodename: {suite}\nArchitectures: {find_architecture()}\n"
        f"SHA256:\n {_hash(index)} {index.stat().st_size} Packages\n"
    )
