"""Which spares a pool is to boot and to destroy: what jobs ask for, within places and memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

    from sandfleet_worker.sandbox.process.plan import Plan
    from sandfleet_worker.sandbox.process.sandbox import Sandbox
    from sandfleet_worker.sandbox.warm.demand import Demand, HostLoad
    from sandfleet_worker.sandbox.warm.prepared_spares import PreparedSpares
    from sandfleet_worker.sandbox.warm.spares import Spares


class WantedSpares:
    """Compares the spares with the demand. Call it under the pool's lock."""

    def __init__(self, spares: Spares, demand: Demand, prepared: PreparedSpares) -> None:
        self._spares, self._demand, self._prepared = spares, demand, prepared

    def find_missing(self) -> Plan | None:
        """Return the plan that lacks most spares of those that can get one now."""
        if self._spares.count_all() >= self._demand.size:
            return None
        return self._spares.find_missing(self._find_targets(), self._may_boot)

    def lacks_spares(self) -> bool:
        """Whether a spare can be booted now, or once one of another plan has made place for it."""
        return self.find_missing() is not None or bool(self.find_surplus())

    def find_need(self, plan: Plan) -> int:
        """Return the memory limit of a new spare of `plan`, in bytes."""
        return self._prepared.memory.need(plan, self._demand.size)

    def find_unwanted(self) -> list[Sandbox]:
        """Return the spares of plans of which none is wanted."""
        return self._spares.find_unwanted(self._find_targets())

    def find_harmful(self, unwanted: Collection[Sandbox], load: HostLoad) -> dict[Sandbox, str]:
        """Return prepared spares beside `unwanted` that are to be destroyed, see `PreparedSpares`."""
        return self._prepared.find_unwanted([one for one in self._spares.list_booted() if one not in unwanted], load)

    def find_surplus(self) -> list[Sandbox]:
        """Return a spare that makes place, or memory, for a plan that has none."""
        return self._spares.find_surplus(self._demand.size, self._find_targets(), self._fits)

    def _find_targets(self) -> dict[Plan, int]:
        targets = self._demand.targets()
        kept = self._prepared.memory.trim(targets, self._demand.size)
        self._prepared.note_left_out(targets, kept)
        return kept

    def _may_boot(self, plan: Plan) -> bool:
        return self._prepared.may_boot(plan, self._demand.size, self._spares.list_booted())

    def _fits(self, plan: Plan) -> bool:
        return self._prepared.memory.fits(plan, self._demand.size, self._spares.list_booted())
