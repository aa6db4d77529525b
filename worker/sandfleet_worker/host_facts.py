"""Labels, ceilings, memory, images and datasets of this host.

They are announced to the fleet, and checked by its own worker.
"""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Protocol

from sandfleet_config.bounds import MIN_MEMORY_BYTES
from sandfleet_config.contract import CONTRACT_VERSIONS
from sandfleet_config.files import DATA_FOLDER
from sandfleet_config.image_names import split_pattern

from sandfleet_worker.delivery.announcer import HostFacts
from sandfleet_worker.sandbox.policy import find_ceilings
from sandfleet_worker.sandbox.process.runsc import find_runsc, release_date

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_config.settings import WorkerSettings
    from sandfleet_config.spec import SandboxSpec

    from sandfleet_worker.delivery.host_slots import HostSlots
    from sandfleet_worker.sandbox.image.datasets import DatasetStore
    from sandfleet_worker.sandbox.image.store import ImageStore

MAX_IMAGES = 1000
"""Most names and digests that are announced of images, and of datasets.

With more, none are, and a job that does not find its image or dataset here is put back then.
"""


class Contents(Protocol):
    """The images and datasets of a runner: `sandfleet_worker.sandbox.runner.RunscRunner`."""

    images: ImageStore
    datasets: DatasetStore

    def mounts_datasets(self) -> bool:
        """Whether the host's runsc can mount datasets; True if that is not known yet."""
        ...


class HostAbilities:
    """Reads what the host has; cheap where nothing has changed."""

    def __init__(
        self,
        settings: WorkerSettings,
        contents: Contents,
        slots: HostSlots,
        list_takeable: Callable[[], frozenset[str]] = frozenset,
    ) -> None:
        """Keep the sources of the facts.

        `list_takeable` returns names and digests of images that the host takes from the store when
        a job needs them.
        """
        self._settings, self._contents, self._slots, self._list_takeable = settings, contents, slots, list_takeable
        self._identity: tuple[tuple[int, ...], tuple[int, ...], frozenset[str]] | None = None
        self._image_names: set[str] = set()
        self._dataset_names: set[str] = set()
        binary = find_runsc(settings.runsc.path)
        release = str(release_date(binary.version) or binary.version)
        self.labels = settings.host_labels | {"arch": platform.machine(), "runsc": release}

    def find_settings(self) -> WorkerSettings:
        """Return the host's settings, with the memory ceiling at most the budget of all jobs."""
        settings, memory = self._settings, self._slots.last_memory
        if memory is None or memory.budget >= settings.policy.memory_bytes:
            return settings
        policy = settings.policy.model_copy(update={"memory_bytes": max(memory.budget, MIN_MEMORY_BYTES)})
        return settings.model_copy(update={"policy": policy})

    def find_missing_label(self, spec: SandboxSpec) -> str:
        """Return a label that `spec` requires and this host does not have, as text.

        Empty where it has all.
        """
        return next((f"{key}={value}" for key, value in spec.requires.items() if self.labels.get(key) != value), "")

    def read(self) -> HostFacts:
        """Return the facts to announce to the fleet."""
        memory = self._slots.read_memory()
        images, datasets = self._contents.images, self._contents.datasets
        identity = images.read_identity(), datasets.read_identity(), self._list_takeable()
        if identity != self._identity:
            self._image_names = images.list_references() | identity[2]
            self._dataset_names = {f"{DATA_FOLDER}/{name}" for name in datasets.list_references()}
            self._identity = identity
        has_images, has_datasets = (len(found) <= MAX_IMAGES for found in (self._image_names, self._dataset_names))
        facts = {
            "queues": [self._settings.queue, *self._settings.queues],
            "contract": CONTRACT_VERSIONS[-1],
            "budget": memory.budget if memory else 0,
            "ceilings": find_ceilings(self.find_settings().policy),
            "labels": self.labels,
            "has_all_images": has_images,
            "has_all_datasets": has_datasets,
            "mounts_datasets": self._contents.mounts_datasets(),
            "pull_from": [split_pattern(pattern) for pattern in self._settings.images.pull_from],
        }
        names = (self._image_names if has_images else set()) | (self._dataset_names if has_datasets else set())
        return HostFacts(json.dumps(facts, separators=(",", ":")), tuple(sorted(names)))
