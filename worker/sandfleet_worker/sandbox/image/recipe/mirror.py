"""A private apt: it sees one release of Debian, and nothing of the host's own packages."""

from __future__ import annotations

import platform
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet_config.errors import ImageUnavailable

from sandfleet_worker.sandbox.image.tools import find_tool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet_worker.sandbox.image.tools import StagingFolder

KEYRINGS = tuple(Path(f"/usr/share/keyrings/debian-archive-keyring.{kind}") for kind in ("pgp", "gpg"))
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class PrivateApt:
    """apt's folders in a staging folder, with one mirror as the only source."""

    staging: StagingFolder
    suite: str
    mirror: str

    @property
    def folder(self) -> Path:
        """Where its state and cache are."""
        return self.staging.folder / "apt"

    def prepare(self) -> None:
        """Make the folders, and the list of sources.

        Only the release itself, without its daily updates: those replace their packages, and a
        lock of them would not last a week.
        """
        for name in ("sources", "state/lists/partial", "cache/archives/partial"):
            (self.folder / name).mkdir(parents=True)
        (self.folder / "status").touch()
        source = f"deb [signed-by={find_keyring()} target=Packages] {self.mirror} {self.suite} main\n"
        (self.folder / "sources" / "debian.list").write_text(source)

    def run(self, *arguments: str) -> str:
        """Run apt-get; return its stdout. Raises as `StagingFolder.run`."""
        architecture = find_architecture()
        settings = (
            "Dir::Etc::SourceList=/dev/null",
            f"Dir::Etc::SourceParts={self.folder}/sources",
            "Dir::Etc::Preferences=/dev/null",
            "Dir::Etc::PreferencesParts=/dev/null",
            f"Dir::State={self.folder}/state",
            f"Dir::State::status={self.folder}/status",
            f"Dir::Cache={self.folder}/cache",
            "APT::Sandbox::User=root",
            "APT::Install-Recommends=false",
            "APT::Install-Suggests=false",
            f"APT::Architecture={architecture}",
            f"APT::Architectures={architecture}",
            "Acquire::Languages=none",
            "Acquire::ForceHash=SHA256",
            "Acquire::Retries=2",
            # apt counts itself to the essential packages; an image that is never changed needs no
            # apt.
            "pkgCacheGen::ForceEssential=,",
        )
        return self.staging.run(
            ["apt-get", "-qq", *(word for setting in settings for word in ("-o", setting)), *arguments],
            is_limited=False,
        )


def find_architecture() -> str:
    """Return Debian's name of this machine's architecture.

    Raises:
        ImageUnavailable: recipes do not know it.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise ImageUnavailable.of(f"recipes are built on {' and '.join(ARCHITECTURES)} only, not on {machine}")
    return ARCHITECTURES[machine]


def find_keyring() -> Path:
    """Return the file of Debian's keys.

    Raises:
        ImageUnavailable: it is not here.
    """
    for path in KEYRINGS:
        if path.exists():
            return path
    raise ImageUnavailable.of(
        "Debian's keys are not on this host: install the package debian-archive-keyring (Ubuntu has it, too)"
    )


def find_mirror(setting: str) -> str:
    """Return the address of a Debian mirror: that of the setting, else the one that apt uses here.

    Raises:
        ImageUnavailable: there is neither.
    """
    if setting:
        return setting.rstrip("/") + "/"
    argv = ["indextargets", "--format", "$(REPO_URI) $(COMPONENT) $(RELEASE)", "Created-By: Packages", "Origin: Debian"]
    done = subprocess.run([find_tool("apt-get"), *argv], capture_output=True, text=True, check=False)
    return choose_mirror([line.split() for line in done.stdout.splitlines()])


def choose_mirror(targets: Sequence[Sequence[str]]) -> str:
    """Return the first mirror of a whole release: those of updates have other packages."""
    for target in targets:
        match target:
            case [mirror, "main", release] if "-" not in release:
                return mirror.rstrip("/") + "/"
    raise ImageUnavailable.of(
        "apt knows no mirror of Debian on this host: set SANDFLEET_IMAGES__DEBIAN_MIRROR to the address of one"
    )
