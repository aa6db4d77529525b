"""How this host is: what its worker reports with each beat, and its images."""

from __future__ import annotations

import os
import time
from importlib.metadata import version
from typing import TYPE_CHECKING, Protocol

from sandfleet_worker.delivery.host_report import ImageUse, Measured
from sandfleet_worker.sandbox.cgroup.tree import find_tree
from sandfleet_worker.sandbox.image.cache import read_use
from sandfleet_worker.sandbox.process.runsc import find_runsc

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandfleet_config.settings import WorkerSettings

    from sandfleet_worker.delivery.host_slots import HostSlots
    from sandfleet_worker.sandbox.image.store import ImageStore
    from sandfleet_worker.sandbox.prepared.use import PreparedUse

LIMITS = ("memory", "cpu", "pids")
USE_SECONDS = 10.0
"""How old the times of the last use of images may be."""
MAX_WARM = 20
MAX_QUARANTINED = 5
MAX_QUEUES = 50
"""Most patterns of queues in a status; with more it names none, and readers take all from `hosts`."""


class Measurable(Protocol):
    """The parts of a runner that are measured: `sandfleet_worker.sandbox.runner.RunscRunner`."""

    images: ImageStore

    def count_warm(self) -> Mapping[str, int]:
        """Return how many spares idle for each image, by its digest."""
        ...

    def read_prepared(self) -> PreparedUse:
        """Return how often jobs could start in a prepared spare, and why not."""
        ...


class HostStatus:
    """Measures the host; cheap where no image has changed. Used in one thread."""

    def __init__(
        self, settings: WorkerSettings, runner: Measurable, slots: HostSlots, labels: Mapping[str, str]
    ) -> None:
        self._settings, self._runner, self._slots = settings, runner, slots
        self._images: tuple[ImageUse, ...] = ()
        self._read_at = 0.0
        self._identity: tuple[int, ...] | None = None
        queues = [settings.queue, *settings.queues]
        self._fixed: dict[str, object] = {
            "host": settings.host_name,
            "version": version("sandfleet-worker"),
            "runsc": find_runsc(settings.runsc.path).version,
            "platform": settings.runsc.platform,
            "started": round(time.time()),
            "unenforced": [name for name in LIMITS if name not in find_tree(settings.runsc.cgroup_parent).enforceable],
            "labels": dict(labels),
            **({"queues": queues} if len(queues) <= MAX_QUEUES else {}),
        }

    def measure(self) -> Measured:
        """Return the status and the images."""
        images = self._read_images()
        names = {digest: name for name, digest, *_ in reversed(images)}
        memory, (slots, busy) = self._slots.last_memory, self._slots.count()
        warm = sorted(((names.get(key, key), count) for key, count in self._runner.count_warm().items() if count))
        status = self._fixed | {
            "slots": slots,
            "busy": busy,
            "warm": dict(warm[:MAX_WARM]),
            **describe_prepared(self._runner.read_prepared()),
            "load": round(os.getloadavg()[0], 2),
            "memory_free": max(0, memory.free) if memory else 0,
            "memory_budget": memory.budget if memory else 0,
            "disk_free": self._read_disk(),
        }
        return Measured(status, images)

    def _read_images(self) -> tuple[ImageUse, ...]:
        """Return the images; the times of their last use are read each `USE_SECONDS`."""
        identity, now = self._runner.images.read_identity(), time.monotonic()
        if identity != self._identity or now - self._read_at >= USE_SECONDS:
            found = self._runner.images.list_with_damaged()[0]
            self._images = tuple((image.name, image.digest, image.size_bytes, read_use(image)) for image in found)
            self._identity, self._read_at = identity, now
        return self._images

    def _read_disk(self) -> int:
        root = self._settings.images.root
        facts = os.statvfs(root if root.exists() else "/")
        return facts.f_bavail * facts.f_frsize


def describe_prepared(use: PreparedUse) -> dict[str, object]:
    """Return what the status says of prepared spares; nothing where no job has asked for one.

    The reasons of a quarantine are texts of an image's code: only the worker's log has them.
    """
    if not (use.starts or use.misses or use.quarantined):
        return {}
    told = {"starts": use.starts, "misses": dict(use.misses), "quarantined": sorted(use.quarantined)[:MAX_QUARANTINED]}
    return {"prepared": told}
