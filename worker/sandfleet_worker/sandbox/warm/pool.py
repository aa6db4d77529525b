"""Spares: sandboxes booted before their job comes, used for one job, and destroyed.

Why nothing of one job can reach another: `take` gives a sandbox out once and keeps no reference to
it; its taker destroys it. Until then it has run only runsc and our init, from a `Plan` that says
nothing of any job. All that is a job's (argv, env, user, limits, disk, stdin) comes after that,
through pipes and a cgroup that were made for this one sandbox.

One thread of the pool boots all spares, since the kernel kills a thread's children when the thread
ends. It recovers from every error: without a pool each job boots a sandbox itself, which costs only
time. Invariant: the lock guards `_spares`; a sandbox that was taken out of it has one user. Nothing
slow is done under the lock: starting jobs wait for it.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from math import inf
from typing import TYPE_CHECKING

from sandfleet_worker.sandbox.warm.booter import SpareBooter
from sandfleet_worker.sandbox.warm.demand import Demand
from sandfleet_worker.sandbox.warm.spare_failures import Failure, SpareFailures
from sandfleet_worker.sandbox.warm.spares import Spares, wake_spare
from sandfleet_worker.sandbox.warm.wanted import WantedSpares
from sandfleet_worker.system.supervised_thread import SupervisedThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_config.settings import WarmSettings

    from sandfleet_worker.sandbox.process.plan import Plan
    from sandfleet_worker.sandbox.process.remover import Remover
    from sandfleet_worker.sandbox.process.sandbox import Sandbox
    from sandfleet_worker.sandbox.warm.boot_limit import BootLimit
    from sandfleet_worker.sandbox.warm.prepared_spares import PreparedSpares

log = logging.getLogger(__name__)

STALE_POLL_SECONDS = 5.0  # how often to look for spares that no job wants any more


class WarmPool:
    """Keeps up to `settings.size` spares of the plans that jobs ask for; safe for threads.

    It also keeps as many unbooted sandboxes as may boot at once. With size 0 it keeps nothing, and
    has no thread. `on_failure` gets the reason when the thread cannot go on.
    """

    def __init__(
        self,
        settings: WarmSettings,
        open_sandbox: Callable[[], Sandbox],
        boot_limit: BootLimit,
        remover: Remover,
        on_failure: Callable[[str], None],
        *,
        prepared: PreparedSpares,
    ) -> None:
        self._remover, self._on_failure, self._prepared = remover, on_failure, prepared
        self.booter = SpareBooter(open_sandbox, boot_limit, remover)
        self._failures = SpareFailures(self.booter, prepared, remover, self.forget)
        self._lock = threading.Lock()
        self._demand = Demand(settings.size, settings.idle_seconds)
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller = select.epoll()
        self._poller.register(self._wake_fd, select.EPOLLIN)
        self._spares = Spares(self._poller)
        self._wanted = WantedSpares(self._spares, self._demand, prepared)
        self._is_draining, self._is_closed = False, threading.Event()
        self._thread = SupervisedThread("warm", self._step, self._fail, can_pass=lambda _: True, timeout_seconds=inf)
        self._next_stale_check = 0.0

    def take(self, plan: Plan, *, is_asked_for: bool = True) -> Sandbox | None:
        """Take a spare of `plan` for one job: an idle one, else one that still boots, else None.

        The caller destroys it. None is given out that has died, in which the kernel has killed for
        memory, or whose files were replaced. `is_asked_for`: keep spares of `plan` for such jobs.
        """
        with self._lock:
            if is_asked_for:
                self._demand.note(plan)
        return self._take(lambda: self._spares.take(plan))

    def forget(self, plan: Plan) -> None:
        """Destroy the spares of `plan`; make no more until a job asks for one, or it is pinned again."""
        with self._lock:
            self._demand.forget(plan)
            self._discard([*self._spares.by_plan.get(plan, ())])

    def take_unbooted(self) -> Sandbox | None:
        """Take an open sandbox that is not booted, which the caller destroys."""
        return self._take(self._spares.take_unbooted)

    def _take(self, take_out: Callable[[], Sandbox | None]) -> Sandbox | None:
        while True:
            with self._lock:
                self._notify_thread()
                sandbox = take_out()
            if sandbox is None or wake_spare(sandbox, self._failures.reject):
                return sandbox

    def pin(self, plan: Plan) -> None:
        """Keep spares of `plan` whether or not jobs ask for them."""
        with self._lock:
            self._demand.pin(plan)
            self._notify_thread()

    def resize(self, size: int, prepared_bytes: int) -> None:
        """Keep up to `size` spares from now on; jobs use up what there is more."""
        with self._lock:
            self._demand.size, self._prepared.memory.extra_bytes = size, prepared_bytes

    def count_idle(self, plan: Plan | None = None) -> int:
        """Return how many spares wait for a job, of `plan` or in all."""
        with self._lock:
            return self._spares.count_idle(plan)

    def count_by_image(self) -> dict[str, int]:
        """Return how many spares wait for a job, by the digest of their image."""
        with self._lock:
            return self._spares.count_by_image()

    def drain(self) -> None:
        """Destroy the spares and boot no more; a sandbox that was taken goes on. Idempotent."""
        with self._lock:
            self._is_draining = True
            sandboxes = self._spares.take_all()
        for sandbox in sandboxes:
            sandbox.destroy()

    def close(self) -> None:
        """Drain, and end the thread, whose sandboxes the kernel kills then. Idempotent."""
        with self._lock:
            is_first, self._is_draining = not self._is_closed.is_set(), True
            self._is_closed.set()
            self._thread.tell_to_stop()
            if is_first:
                os.eventfd_write(self._wake_fd, 1)
        self._thread.stop()
        self.drain()
        if is_first:
            self._poller.close()
            os.close(self._wake_fd)

    def _notify_thread(self) -> None:
        """Wake the thread unless it soon looks for missing spares; start it at the first job."""
        is_awaited = self.booter.schedule.next_at is not None and self._thread.is_started
        if self._is_closed.is_set() or not self._demand.size or is_awaited:
            return
        os.eventfd_write(self._wake_fd, 1)
        if not self._thread.is_started:
            try:
                self._thread.start()
            except RuntimeError as error:  # the host has no thread left: the next job tries again
                log.warning("no spare is booted yet: %s", error, extra={"action": "warm_pool_not_started"})

    def _fail(self, reason: str) -> None:
        """Report that the thread has failed, and keep it: its sandboxes die with it."""
        try:
            self.drain()
        finally:
            self._on_failure(reason)
            self._is_closed.wait()

    def _step(self) -> None:
        """Wait for the next event, and bring the spares to what they should be."""
        for fd, _ in self._poller.poll(self._find_timeout()):
            if fd == self._wake_fd:
                os.eventfd_read(fd)
            else:
                self._check(fd)
        now = time.monotonic()
        with self._lock:
            due = self._spares.find_due(now)
        for fd in due:
            self._check(fd)
        if now >= self._next_stale_check:
            self._next_stale_check = now + STALE_POLL_SECONDS
            self._remove_stale()
        self._fill_if_due(now)

    def _find_timeout(self) -> float:
        with self._lock:
            due = [self._next_stale_check, *self._spares.find_deadlines()]
        if self.booter.schedule.next_at is not None:
            due.append(self.booter.schedule.next_at)
        return max(0.0, min(due) - time.monotonic())

    def _check(self, fd: int) -> None:
        """Bring the spare with the descriptor `fd` one step on; no job can take it meanwhile."""
        with self._lock:
            sandbox = self._spares.find(fd)
            if sandbox is None:  # taken meanwhile
                return
            self._spares.remove(sandbox)
        try:
            is_alive = sandbox.advance()
        except BaseException:
            self._remover.add(sandbox)
            raise
        if is_alive:
            self._prepared.note_up(sandbox)
            self.booter.schedule.note_success(is_up=sandbox.is_warm)
            self._keep(sandbox)
        else:
            self._failures.remove_dead(sandbox)

    def _remove_stale(self) -> None:
        """Destroy spares that no job wants any more, or whose image or preparation was removed or replaced.

        Pinned ones whose preparation has come, or whose quarantine is over, are wanted again.
        """
        with self._lock:
            plans = self._demand.plans()
        listing = self._prepared.listing
        stale = [plan for plan in plans if plan.is_stale or not listing.is_listed(plan)]
        pinned = listing.list_pinned()
        with self._lock:
            for plan in stale:
                self._demand.forget(plan)
            for plan in pinned:
                self._demand.pin(plan)
            unwanted = self._wanted.find_unwanted()
            harmful = self._wanted.find_harmful(unwanted, self.booter.load)
            self._discard([*unwanted, *harmful])
            self._spares.forget_empty_plans()
        for sandbox, why in harmful.items():
            if why:
                self._failures.note(sandbox, Failure(why))

    def _discard(self, sandboxes: list[Sandbox]) -> None:
        """Take spares out; the remover's thread destroys them, since this is under the lock."""
        for sandbox in sandboxes:
            self._spares.remove(sandbox)
            self._remover.add(sandbox)

    def _fill_if_due(self, now: float) -> None:
        """Boot missing spares, a moment after one was taken: the job that took it comes first."""
        if not self.booter.schedule.is_due(now):
            return
        with self._lock:
            is_missing = len(self._spares.unbooted) < self.booter.limit or self._wanted.lacks_spares()
            if self._is_draining or not is_missing:  # under the lock: `_notify_thread` trusts the schedule
                self.booter.schedule.clear()
                return
        is_first = self.booter.schedule.next_at is None
        self.booter.schedule.postpone()
        is_idle = self.booter.load.has_idle_cores()
        if is_first:
            return  # the first call begins to measure
        if is_idle:
            self._fill()
        self.booter.schedule.postpone(is_busy=not is_idle)

    def _find_missing(self) -> Plan | None:
        return None if self._is_draining else self._wanted.find_missing()

    def _fill(self) -> None:
        """Boot missing spares, for as long as there are boot slots, and open sandboxes."""
        with self._lock:
            self._discard(self._wanted.find_unwanted())
            self._discard(self._wanted.find_surplus())
        while self._boot_one():
            pass
        while self._open_one():
            pass

    def _boot_one(self) -> bool:
        """Boot a spare of the plan that lacks most; False if none is missing or can be booted now."""
        with self._lock:
            plan = self._find_missing()
        sandbox = None if plan is None else self.booter.boot(plan, self.take_unbooted, self._wanted.find_need(plan))
        return sandbox is not None and self._keep(sandbox)

    def _open_one(self) -> bool:
        """Open an unbooted sandbox; False if enough are open, or the host cannot now."""
        is_full = len(self._spares.unbooted) >= self.booter.limit
        sandbox = None if is_full else self.booter.open()
        return sandbox is not None and self._keep(sandbox)

    def _keep(self, sandbox: Sandbox) -> bool:
        """Add a sandbox to the spares; if the pool was drained, destroy it and return False."""
        try:
            with self._lock:
                if not self._is_draining:
                    self._spares.add(sandbox)
                    return True
        except BaseException:
            self._remover.add(sandbox)
            raise
        sandbox.destroy()
        return False
