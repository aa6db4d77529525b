"""The rules of a pool for prepared spares: their bounds, their failures, and when they go."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from sandfleet_worker.sandbox.warm.spare_memory import MAX_KNOWN

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from sandfleet_worker.sandbox.process.plan import Plan
    from sandfleet_worker.sandbox.process.sandbox import Sandbox
    from sandfleet_worker.sandbox.warm.demand import HostLoad
    from sandfleet_worker.sandbox.warm.quarantine import Quarantine
    from sandfleet_worker.sandbox.warm.spare_memory import SpareMemory

log = logging.getLogger(__name__)

LEFT_OUT = (
    "no spare of the preparation %s is kept, because the others leave too little memory: raise"
    " SANDFLEET_WARM__SIZE or SANDFLEET_PREPARED__BUDGET_BYTES, and restart the worker, which keeps"
    " memory for the preparations that it knows at its start"
)
GREW = (
    "a spare of the preparation %s needs more memory than those before it: the next one may use all that"
    " the settings allow"
)
BOOTS_PER_PREPARATION = 4
"""Two sandboxes a core may boot at once, and half of the cores may prepare; processes of a host share both."""
UNFIT: tuple[str, ...] = ("the interpreter cannot be executed", "unfit:")
"""How the reason begins where another try would end the same."""


class Listing(Protocol):
    """Which preparations this host is to keep spares of; safe for threads, and never raises."""

    def is_listed(self, plan: Plan) -> bool:
        """Whether nobody has changed or removed the preparation of `plan`."""
        ...

    def list_pinned(self) -> Sequence[Plan]:
        """Return the plans of which spares are kept whether or not jobs ask for them."""
        ...


class PreparedSpares:
    """The rules of a pool for its prepared spares. Call it under the pool's lock, but for `listing`."""

    def __init__(self, memory: SpareMemory, quarantine: Quarantine, listing: Listing, boots: int) -> None:
        """Let a fourth of the `boots` that the pool may begin at once prepare: each takes a core."""
        self.memory, self._quarantine, self.listing = memory, quarantine, listing
        self._most_preparing = max(1, boots // BOOTS_PER_PREPARATION)
        self._left_out: set[Plan] = set()

    def may_boot(self, plan: Plan, size: int, spares: Sequence[Sandbox]) -> bool:
        """Whether a spare of `plan` may be booted now: its memory fits, and few others prepare."""
        if plan.interpreter is not None:
            preparing = sum(spare.prepared is not None and not spare.prepared.is_up for spare in spares)
            if preparing >= self._most_preparing or self._quarantine.holds(plan):
                return False
        return self.memory.fits(plan, size, spares)

    def note_up(self, sandbox: Sandbox) -> None:
        """Remember how much memory a spare uses that is prepared."""
        if sandbox.prepared is not None and sandbox.prepared.is_up and sandbox.plan is not None:
            self.memory.note(sandbox.plan, sandbox.prepared.memory_bytes, sandbox.prepared.peak_bytes)

    def note_left_out(self, targets: Collection[Plan], kept: Collection[Plan]) -> None:
        """Log, once, each preparation for which the other spares leave no memory."""
        if any(plan.interpreter is not None and not self.memory.find_used(plan) for plan in kept):
            return  # how much that one leaves is known when it is up
        for plan in targets:
            if plan.interpreter is None or plan in kept or plan in self._left_out:
                continue
            if len(self._left_out) >= MAX_KNOWN:
                self._left_out.clear()
            self._left_out.add(plan)
            log.warning(LEFT_OUT, plan.interpreter.name, extra={"action": "preparation_without_memory"})

    def note_failure(self, sandbox: Sandbox, why: str) -> bool:
        """Count a spare that failed after *ready*; return whether its plan is held now."""
        assert sandbox.plan is not None
        interpreter = sandbox.plan.interpreter
        assert interpreter is not None
        prepared = sandbox.prepared
        is_held = self.memory.forget(sandbox.plan)
        if is_held and prepared is not None and not prepared.is_up and prepared.is_out_of_memory:
            log.info(GREW, interpreter.name, extra={"action": "preparation_grew"})
            return False
        text = "the preparation %s has failed: %s"
        log.warning(text, interpreter.name, why, extra={"action": "preparation_failed"})
        return self._quarantine.note_failure(sandbox.plan, why, is_unfit=why.startswith(UNFIT))

    def find_unwanted(self, spares: Iterable[Sandbox], load: HostLoad) -> dict[Sandbox, str]:
        """Return the prepared spares to destroy, with why one has failed ("": it has not).

        Those that have grown, and all if the host is short of memory.
        """
        found = {spare: spare.prepared.find_growth() for spare in spares if spare.prepared is not None}
        is_short = bool(found) and not load.has_free_memory()
        return {spare: why for spare, why in found.items() if why or is_short}
