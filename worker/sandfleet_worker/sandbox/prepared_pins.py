"""The preparations of images of which spares are always kept, as the operator lists them now."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandfleet_config.errors import SandboxError

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.image.image import Image
    from sandfleet_worker.sandbox.prepared_starts import PreparedStarts
    from sandfleet_worker.sandbox.process.plan import Plan


class PreparedPins:
    """The images of `SANDFLEET_WARM__IMAGES`, each with the plan of its plain spares; safe for threads."""

    def __init__(self, starts: PreparedStarts) -> None:
        self._starts = starts
        self._pinned: list[tuple[Plan, Image]] = []

    def add(self, plan: Plan, image: Image) -> None:
        """Keep spares of all preparations of `image`."""
        self._pinned.append((plan, image))

    def is_listed(self, plan: Plan) -> bool:
        """Whether nobody has changed or removed the preparation of `plan`."""
        return self._starts.is_listed(plan)

    def list_pinned(self) -> list[Plan]:
        """Return the prepared plans of the images, but those that are in quarantine."""
        found: list[Plan] = []
        for plan, image in list(self._pinned):
            try:
                found += [] if plan.is_stale else self._starts.list_plans(plan, image)
            except (SandboxError, OSError):  # as at the worker's start, which has logged it
                continue
        return [plan for plan in found if not self._starts.quarantine.holds(plan)]
