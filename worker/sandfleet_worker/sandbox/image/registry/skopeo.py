"""The calls of skopeo(1). Passwords go by file, never by an argument that `ps` shows."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandfleet_config.errors import ImageUnavailable

from sandfleet_worker.sandbox.image.oci import find_architecture
from sandfleet_worker.sandbox.image.tools import ToolEnd, run_tool

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_config.image_names import RegistryName
    from sandfleet_config.settings import ImagesSettings

    from sandfleet_worker.sandbox.image.tools import StagingFolder

_POLICY: Final = Path("/etc/containers/policy.json")
_LAYOUT: Final = "layout-pulled"
SPARE_SECONDS: Final = 5.0
"""skopeo's own timeout comes so much later than ours, which kills it and says why."""


class Skopeo:
    """Calls skopeo with a host's settings of registries."""

    def __init__(self, settings: ImagesSettings) -> None:
        self._settings = settings

    def inspect(self, name: RegistryName, seconds: float, check: Callable[[], None]) -> ToolEnd:
        """Fetch the raw manifest, or the raw index, that `name` means; it is the stdout."""
        argv = ["skopeo", *self._global_options(seconds), "inspect", "--raw", *self._access("--"), _address(name)]
        return run_tool(argv, self._env(), check, cwd=Path("/"))

    def copy(self, name: RegistryName, staging: StagingFolder, seconds: float) -> tuple[ToolEnd, str]:
        """Copy the image for this machine into a layout in `staging`.

        Return the end, and the layout for `read_oci`. umoci 0.4 reads no zstd, so layers become
        gzip; those that are gzip stay as they are.
        """
        layout = staging.folder / _LAYOUT
        argv = ["skopeo", *self._global_options(seconds), f"--tmpdir={staging.folder}", "copy", "--quiet"]
        argv += [
            "--dest-compress",
            "--dest-compress-format=gzip",
            *self._access("--src-"),
            _address(name),
            f"oci:{layout}:image",
        ]
        return staging.run_measured(argv, self._env(), measured=layout), f"{layout}:image"

    def _global_options(self, seconds: float) -> list[str]:
        options = [
            "--override-os=linux",
            f"--override-arch={find_architecture()}",
            f"--command-timeout={seconds + SPARE_SECONDS:.0f}s",
        ]
        # Without a policy skopeo runs nothing. One of the host's own, which may ask for signatures,
        # counts.
        return options if _POLICY.exists() else [*options, "--insecure-policy"]

    def _access(self, prefix: str) -> list[str]:
        """Return the options for passwords and certificates of the settings, never root's own."""
        settings = self._settings
        options = [f"{prefix}cert-dir={settings.ca_dir}"] if settings.ca_dir else []
        if settings.auth_file is None:
            return [*options, f"{prefix}no-creds"]
        check_auth_file(settings.auth_file)
        return [*options, f"{'--authfile' if prefix == '--' else '--src-authfile'}={settings.auth_file}"]

    @staticmethod
    def _env() -> dict[str, str]:
        return {"HOME": "/nonexistent"}


def check_auth_file(path: Path) -> None:
    """Refuse a file of passwords that others may read.

    Raises:
        ImageUnavailable: it cannot be read, or others may read it.
    """
    try:
        facts = path.stat()
        with path.open("rb"):
            pass
    except OSError as error:
        raise ImageUnavailable.of(
            f"SANDFLEET_IMAGES__AUTH_FILE cannot be read: {path}: {error.strerror}; "
            f"make it with `skopeo login --authfile {path} REGISTRY`"
        ) from error
    if not stat.S_ISREG(facts.st_mode) or stat.S_IMODE(facts.st_mode) & 0o077 or facts.st_uid not in {0, os.geteuid()}:
        raise ImageUnavailable.of(
            f"SANDFLEET_IMAGES__AUTH_FILE {path} holds passwords and may be read by others: `chmod 600 {path}`"
        )


def _address(name: RegistryName) -> str:
    """Return the name for skopeo: it refuses one with both tag and digest; the digest counts."""
    return f"docker://{name.repository}" + (f"@{name.digest}" if name.digest else f":{name.tag}")
