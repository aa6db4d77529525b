"""How much memory the spares of a pool hold, and whether one more fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sandfleet_worker.sandbox.process.plan import Plan
    from sandfleet_worker.sandbox.process.sandbox import Sandbox

IDLE_MEMORY_BYTES: Final = 48 << 20
"""The memory limit of an idle sandbox, which uses 15 MB.

A job with a smaller limit gets a sandbox that boots within it.
"""
PREPARING_MARGIN_BYTES: Final = 16 << 20
"""How much more than the one before it a preparation may use, at its peak."""
MAX_KNOWN: Final = 256


class _Use(NamedTuple):
    """The memory of a prepared spare while it idles, and its peak during the preparation."""

    memory_bytes: int
    peak_bytes: int


class SpareMemory:
    """The memory of a pool's spares: 48 MiB for each place, and `extra_bytes` for prepared ones.

    Prepared spares hold `prepared_bytes` at most together. While a spare prepares, its limit counts;
    then what it uses, and a margin. Not safe for threads.
    """

    def __init__(self, extra_bytes: int, prepared_bytes: int) -> None:
        self.extra_bytes, self._prepared_bytes = extra_bytes, prepared_bytes
        self._known: dict[Plan, _Use] = {}
        self._first_tries: dict[Plan, int] = {}
        """Memory limit of each preparation that has had no spare yet; set by `trim`."""

    def need(self, plan: Plan, size: int) -> int:
        """Return how much a new spare of `plan` may use in a pool of `size` places."""
        if plan.interpreter is None:
            return IDLE_MEMORY_BYTES
        most = min(plan.interpreter.memory_bytes, self._prepared_bytes, size * IDLE_MEMORY_BYTES + self.extra_bytes)
        if (known := self._known.get(plan)) is not None:
            return min(most, known.peak_bytes + PREPARING_MARGIN_BYTES)
        return min(most, self._first_tries.get(plan, most))

    def note(self, plan: Plan, memory_bytes: int, peak_bytes: int) -> None:
        """Remember what a prepared spare of `plan` uses, and the largest peak of all."""
        known = self._known.get(plan)
        if len(self._known) >= MAX_KNOWN:
            self._known = {}
        self._known[plan] = _Use(memory_bytes, max(peak_bytes, known.peak_bytes if known else 0))

    def forget(self, plan: Plan) -> bool:
        """Let the next spare of `plan` use what the settings allow: one has failed.

        Return whether one had been known, so that the failed one may have been held to what it used.
        """
        return self._known.pop(plan, None) is not None

    def find_used(self, plan: Plan) -> int:
        """Return what a prepared spare of `plan` uses, as far as it is known."""
        known = self._known.get(plan)  # one look-up: another thread may forget it meanwhile
        return known.memory_bytes if known else 0

    def fits(self, plan: Plan, size: int, spares: Iterable[Sandbox]) -> bool:
        """Whether one more spare of `plan` fits beside `spares`."""
        costs = [(_cost(spare), spare.prepared is not None) for spare in spares]
        needed = self.need(plan, size)
        if sum(cost for cost, _ in costs) + needed > size * IDLE_MEMORY_BYTES + self.extra_bytes:
            return False
        prepared = sum(cost for cost, is_prepared in costs if is_prepared)
        return plan.interpreter is None or prepared + needed <= self._prepared_bytes

    def trim(self, targets: Mapping[Plan, int], size: int) -> dict[Plan, int]:
        """Return as many of `targets` as fit together, the first plans first.

        They leave room for any of them to be prepared again beside all others. A preparation of
        which no spare has been up is tried in what the first of each plan before it leaves.
        """
        self._first_tries = {}
        if all(plan.interpreter is None for plan in targets):
            return dict(targets)
        left = _Left(size * IDLE_MEMORY_BYTES + self.extra_bytes, self._prepared_bytes)
        kept = dict.fromkeys(targets, 0)
        for number in range(max(targets.values(), default=0)):
            for plan, wanted in targets.items():
                if number == 0 and plan.interpreter is not None and plan not in self._known:
                    self._first_tries[plan] = max(IDLE_MEMORY_BYTES, left.find_free_bytes())
                need = self.need(plan, size)
                cost = self.find_used(plan) or need
                if number < wanted and left.take(cost, need, is_prepared=plan.interpreter is not None):
                    kept[plan] += 1
        return {plan: count for plan, count in kept.items() if count}


@dataclass
class _Left:
    """The free part of two budgets: the memory of all spares, and that of prepared ones."""

    all_bytes: int
    prepared_bytes: int
    preparing_bytes: int = 0
    """The most that a spare which is taken into account needs beyond its cost while it prepares."""

    def find_free_bytes(self) -> int:
        """Return how much one more preparation could use."""
        return min(self.all_bytes, self.prepared_bytes) - self.preparing_bytes

    def take(self, cost: int, need: int, *, is_prepared: bool) -> bool:
        """Take `cost` for a spare which may use `need` at first; False if that does not fit."""
        preparing = max(self.preparing_bytes, need - cost)
        if cost + preparing > (min(self.all_bytes, self.prepared_bytes) if is_prepared else self.all_bytes):
            return False
        self.preparing_bytes = preparing
        self.all_bytes -= cost
        self.prepared_bytes -= cost if is_prepared else 0
        return True


def _cost(spare: Sandbox) -> int:
    return IDLE_MEMORY_BYTES if spare.prepared is None else spare.prepared.memory_bytes
