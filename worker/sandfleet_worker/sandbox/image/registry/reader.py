"""Read manifests and images of a registry with skopeo, and try again what may pass."""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING

from sandfleet_config.errors import ImageUnavailable

from sandfleet_worker.sandbox.image.registry.failures import read_failure
from sandfleet_worker.sandbox.image.registry.manifest import Manifest
from sandfleet_worker.sandbox.image.registry.skopeo import Skopeo
from sandfleet_worker.sandbox.image.staging import LOCK_POLL_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_config.image_names import RegistryName
    from sandfleet_config.settings import ImagesSettings

    from sandfleet_worker.sandbox.image.tools import StagingFolder, ToolEnd

log = logging.getLogger(__name__)

MAX_TRIES = 4
FIRST_PAUSE_SECONDS = 1.0


class RegistryReader:
    """Reads with a host's settings of registries.

    `deadline` is a `time.monotonic` instant. `check` is called again and again, and ends a call if
    it raises.
    """

    def __init__(self, settings: ImagesSettings) -> None:
        self._settings = settings
        self._skopeo = Skopeo(settings)

    def read_manifest(self, name: RegistryName, deadline: float, check: Callable[[], None]) -> Manifest:
        """Return the manifest, or the index, that `name` means now.

        Raises:
            NotInRegistry: the registry has no such image.
            ImageUnavailable: the registry cannot be reached or refuses.
        """
        end = self._call(name, deadline, check, lambda seconds: self._skopeo.inspect(name, seconds, check))
        return Manifest.parse(end.stdout)

    def copy(self, name: RegistryName, staging: StagingFolder, deadline: float, check: Callable[[], None]) -> str:
        """Copy the image for this machine into `staging`; return the layout, for `read_oci`.

        Raises as `read_manifest`.
        """
        layout = ""

        def copy(seconds: float) -> ToolEnd:
            nonlocal layout
            end, layout = self._skopeo.copy(name, staging, seconds)
            staging.check_disk(end)
            return end

        self._call(name, deadline, check, copy)
        return layout

    def _call(
        self, name: RegistryName, deadline: float, check: Callable[[], None], act: Callable[[float], ToolEnd]
    ) -> ToolEnd:
        """Call skopeo until it succeeds, with growing pauses where its failure may pass."""
        for number in range(MAX_TRIES):
            end = act(max(1.0, deadline - time.monotonic()))
            if end.code == 0:
                return end
            check()
            failure = read_failure(end.stderr, name)
            pause = FIRST_PAUSE_SECONDS * 2**number * random.uniform(0.75, 1.25)  # noqa: S311  spreads hosts
            if not failure.is_passing or number == MAX_TRIES - 1 or time.monotonic() + pause > deadline:
                raise failure.error
            text = "%s; tried again in %.1f s"
            log.warning(text, failure.error.message, pause, extra={"action": "pull_retried", "image": str(name)})
            _pause(pause, check)
        raise new_late(name, self._settings.pull_deadline_seconds)


def new_late(name: RegistryName, seconds: float) -> ImageUnavailable:
    """Return the error of a pull that took longer than `seconds`."""
    return ImageUnavailable.of(
        f"{name} was not pulled within {seconds:g} s: check the registry, or raise SANDFLEET_IMAGES__PULL_DEADLINE_SECONDS"
    )


def _pause(seconds: float, check: Callable[[], None]) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        check()
        time.sleep(LOCK_POLL_SECONDS)
