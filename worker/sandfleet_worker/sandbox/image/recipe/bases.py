"""The image that is a recipe's base: an OCI layout, or a registry's image copied into one."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from sandfleet_config.errors import ImageInvalid
from sandfleet_config.image_names import RegistryName

from sandfleet_worker.sandbox.image.layers import check_layers
from sandfleet_worker.sandbox.image.oci import read_oci
from sandfleet_worker.sandbox.image.recipe.model import LAYOUT, REGISTRY
from sandfleet_worker.sandbox.image.registry.reader import RegistryReader
from sandfleet_worker.sandbox.image.unpack import unpack_oci

if TYPE_CHECKING:
    from sandfleet_config.settings import ImagesSettings

    from sandfleet_worker.sandbox.image.oci import ImageConfig
    from sandfleet_worker.sandbox.image.tools import StagingFolder


class BaseLayouts:
    """Finds and unpacks such bases, with a host's settings of registries.

    ``pull_from`` does not count: whoever builds chooses the base, not a job.
    """

    def __init__(self, settings: ImagesSettings) -> None:
        self._settings = settings
        self._reader = RegistryReader(settings)

    def find_digest(self, base: str) -> str:
        """Return what a registry's `base` means now, for the lock; empty for any other base.

        Raises:
            ImageInvalid: it is no name of an image.
            SandboxError: the registry does not have it, or cannot be reached.
        """
        if not base.startswith(REGISTRY):
            return ""
        name = _parse(base)
        return name.digest or self._reader.read_manifest(name, self._new_deadline(), _go_on).digest

    def unpack(self, base: str, digest: str, staging: StagingFolder) -> ImageConfig:
        """Unpack `base`, of a registry as it was locked with `digest`; return its settings.

        Raises:
            SandboxError: it is not there, not usable, or hostile.
        """
        if base.startswith(REGISTRY):
            name = _parse(base)
            if not digest or name.digest not in {"", digest}:
                text = f"the lock has another digest than the base {base[:300]}, or none: lock it anew with --update"
                raise ImageInvalid.of(text)
            name = replace(name, digest=digest)
            layout = self._reader.copy(name, staging, self._new_deadline(), _go_on)
        else:
            layout = base.removeprefix(LAYOUT)
        oci = read_oci(layout)
        check_layers(oci.layers, staging.limits, staging.check)
        unpack_oci(oci, staging)
        return oci.config

    def _new_deadline(self) -> float:
        return time.monotonic() + self._settings.pull_deadline_seconds


def _parse(base: str) -> RegistryName:
    try:
        return RegistryName.parse(base)
    except ValueError as error:
        raise ImageInvalid.of(f"the base {base[:200]!r}: {error}") from error


def _go_on() -> None:
    """Never end a build early: Ctrl-C does."""
