"""How much memory the spares of a pool hold, and whether one more fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sandfleet_worker.sandbox.process.plan import Plan
    from sandfleet_worker.sandbox.process.sandbox import Sandbox

IDLE_MEMORY_BYTES: Final = 48 << 20
"""The memory limit of an idle sandbox, which uses 15 MB.

A job with a smaller limit gets a sandbox that boots within it.
"""
MAX_KNOWN: Final = 256


class SpareMemory:
    """The memory of a pool's spares: 48 MiB for each place, and `extra_bytes` for prepared ones.

    Prepared spares hold `prepared_bytes` at most together. While a spare prepares, its limit counts;
    then what it uses, and a margin. Not safe for threads.
    """

    def __init__(self, extra_bytes: int, prepared_bytes: int) -> None:
        self.extra_bytes, self._prepared_bytes = extra_bytes, prepared_bytes
        self._known: dict[Plan, int] = {}

    def need(self, plan: Plan, size: int) -> int:
        """Return how much a new spare of `plan` may use in a pool of `size` places."""
        if plan.interpreter is None:
            return IDLE_MEMORY_BYTES
        return min(plan.interpreter.memory_bytes, self._prepared_bytes, size * IDLE_MEMORY_BYTES + self.extra_bytes)

    def note(self, plan: Plan, memory_bytes: int) -> None:
        """Remember what a prepared spare of `plan` uses."""
        if len(self._known) >= MAX_KNOWN:
            self._known = {}
        self._known[plan] = memory_bytes

    def find_used(self, plan: Plan) -> int:
        """Return what a prepared spare of `plan` uses, as far as it is known."""
        return self._known.get(plan, 0)

    def fits(self, plan: Plan, size: int, spares: Iterable[Sandbox]) -> bool:
        """Whether one more spare of `plan` fits beside `spares`."""
        costs = [(_cost(spare), spare.prepared is not None) for spare in spares]
        needed = self.need(plan, size)
        if sum(cost for cost, _ in costs) + needed > size * IDLE_MEMORY_BYTES + self.extra_bytes:
            return False
        prepared = sum(cost for cost, is_prepared in costs if is_prepared)
        return plan.interpreter is None or prepared + needed <= self._prepared_bytes

    def trim(self, targets: Mapping[Plan, int], size: int) -> dict[Plan, int]:
        """Return as many of `targets` as fit together, the first plans first."""
        if all(plan.interpreter is None for plan in targets):
            return dict(targets)
        left, prepared = size * IDLE_MEMORY_BYTES + self.extra_bytes, self._prepared_bytes
        kept = dict.fromkeys(targets, 0)
        for number in range(max(targets.values(), default=0)):
            for plan, wanted in targets.items():
                cost = self._known.get(plan) or self.need(plan, size)
                is_prepared = plan.interpreter is not None
                if number >= wanted or cost > left or (is_prepared and cost > prepared):
                    continue
                kept[plan] += 1
                left -= cost
                prepared -= cost if is_prepared else 0
        return {plan: count for plan, count in kept.items() if count}


def _cost(spare: Sandbox) -> int:
    return IDLE_MEMORY_BYTES if spare.prepared is None else spare.prepared.memory_bytes
