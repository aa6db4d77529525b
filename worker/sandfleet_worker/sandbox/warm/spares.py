"""The sandboxes that a pool keeps: spares that boot or idle, and unbooted sandboxes."""

from __future__ import annotations

import select
import time
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sandfleet_worker.sandbox.process.plan import Plan
    from sandfleet_worker.sandbox.process.sandbox import Sandbox

STOP_POLL_SECONDS = 0.005
"""How often to see whether a spare that was told to stop has stopped."""


class Spares:
    """Spares by their plans, and unbooted sandboxes. Not safe for threads.

    `poller` gets the descriptor of each spare: it is readable when the spare has something to do.
    """

    def __init__(self, poller: select.epoll) -> None:
        self._poller = poller
        self.by_plan: dict[Plan, deque[Sandbox]] = {}
        self.unbooted: deque[Sandbox] = deque()
        self._by_fd: dict[int, Sandbox] = {}

    def add(self, sandbox: Sandbox) -> None:
        """Keep a sandbox that boots or idles, or one that is not booted yet."""
        if sandbox.plan is None:
            self.unbooted.append(sandbox)
            return
        fd = sandbox.supervision.fileno()
        self._poller.register(fd, select.EPOLLIN)
        self.by_plan.setdefault(sandbox.plan, deque()).append(sandbox)
        self._by_fd[fd] = sandbox

    def remove(self, sandbox: Sandbox) -> None:
        """Keep it no more."""
        if sandbox.plan is None:
            self.unbooted.remove(sandbox)
            return
        fd = sandbox.supervision.fileno()
        self._poller.unregister(fd)
        self.by_plan[sandbox.plan].remove(sandbox)
        del self._by_fd[fd]

    def take(self, plan: Plan) -> Sandbox | None:
        """Remove and return a spare of `plan`: an idle one, else a booting one, else None.

        Never one that prepares: any other start is faster.
        """
        spares = self.by_plan.get(plan)
        if not spares:
            return None
        sandbox = next((spare for spare in spares if spare.is_warm), spares[0])
        if sandbox.prepared is not None and not sandbox.is_warm:
            return None
        self.remove(sandbox)
        return sandbox

    def take_unbooted(self) -> Sandbox | None:
        """Remove and return an unbooted sandbox, None where there is none."""
        return self.unbooted.popleft() if self.unbooted else None

    def take_all(self) -> list[Sandbox]:
        """Remove and return everything."""
        sandboxes = [*self.unbooted, *(sandbox for spares in self.by_plan.values() for sandbox in spares)]
        for sandbox in sandboxes:
            self.remove(sandbox)
        return sandboxes

    def find(self, fd: int) -> Sandbox | None:
        """Return the spare with the descriptor `fd`, None where it was taken meanwhile."""
        return self._by_fd.get(fd)

    def count(self, plan: Plan) -> int:
        """Return how many of `plan` boot or idle."""
        return len(self.by_plan.get(plan, ()))

    def list_booted(self) -> list[Sandbox]:
        """Return those that boot or idle."""
        return [*self._by_fd.values()]

    def count_all(self) -> int:
        """Return how many boot or idle."""
        return len(self._by_fd)

    def count_idle(self, plan: Plan | None = None) -> int:
        """Return how many are up and wait for a job, of `plan` or in all."""
        spares = self._by_fd.values() if plan is None else self.by_plan.get(plan, ())
        return sum(sandbox.is_warm for sandbox in spares)

    def count_by_image(self) -> dict[str, int]:
        """Return how many are up and wait for a job, by the digest of their image."""
        counts: dict[str, int] = {}
        for plan, spares in self.by_plan.items():
            counts[plan.digest] = counts.get(plan.digest, 0) + sum(sandbox.is_warm for sandbox in spares)
        return counts

    def find_deadlines(self) -> list[float]:
        """Return the `time.monotonic` instants at which spares are due without an event."""
        deadlines = [at for sandbox in self._by_fd.values() if (at := sandbox.supervision.next_deadline) is not None]
        if any(sandbox.is_stopping for sandbox in self._by_fd.values()):
            deadlines.append(time.monotonic() + STOP_POLL_SECONDS)
        return deadlines

    def find_due(self, now: float) -> list[int]:
        """Return the descriptors of spares whose deadline has passed, or that were told to stop."""
        return [fd for fd, sandbox in self._by_fd.items() if _is_due(sandbox, now)]

    def find_missing(
        self, targets: Mapping[Plan, int], may_boot: Callable[[Plan], bool] = lambda _: True
    ) -> Plan | None:
        """Return the plan that lacks most spares to its target, None if none can get one now."""
        lacks = {plan: target - self.count(plan) for plan, target in targets.items()}
        missing = (plan for plan, lack in lacks.items() if lack > 0 and may_boot(plan))
        return max(missing, key=lambda plan: lacks[plan], default=None)

    def find_surplus(
        self, size: int, targets: Mapping[Plan, int], fits: Callable[[Plan], bool] = lambda _: True
    ) -> list[Sandbox]:
        """Return one spare to destroy if a plan has none while all `size` places are taken.

        Also if there is no memory for a plan that has none, though its target fits.
        """
        lacking = [plan for plan in targets if not self.by_plan.get(plan)]
        if not lacking or (self.count_all() < size and all(fits(plan) for plan in lacking)):
            return []
        extra = {plan: self.count(plan) - target for plan, target in targets.items()}
        worst = max(extra, key=lambda plan: extra[plan])
        return [self.by_plan[worst][0]] if extra[worst] > 0 else []

    def find_unwanted(self, targets: Mapping[Plan, int]) -> list[Sandbox]:
        """Return the spares of plans that have no target."""
        return [sandbox for plan, spares in self.by_plan.items() if plan not in targets for sandbox in spares]

    def forget_empty_plans(self) -> None:
        """Free the memory of plans that have no spare."""
        self.by_plan = {plan: spares for plan, spares in self.by_plan.items() if spares}


def _is_due(sandbox: Sandbox, now: float) -> bool:
    deadline = sandbox.supervision.next_deadline
    return sandbox.is_stopping or (deadline is not None and deadline <= now)


def wake_spare(sandbox: Sandbox, reject: Callable[[Sandbox], None]) -> bool:
    """Wake a spare that was taken out; give one that cannot be used to `reject` and return False."""
    is_well = False
    try:
        is_well = sandbox.wake() and not sandbox.cgroup.counters.has_oom_kill
    finally:
        if not is_well:
            reject(sandbox)
    return is_well
