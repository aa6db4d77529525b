"""Sandboxes that are up before their job comes: booted to *ready*, perhaps stopped while idle, used for one job, destroyed.

Why nothing of one job can reach another: `take` gives a sandbox out once and keeps no way back; whoever takes it destroys it.
Until then it has run nothing but runsc and our init, from a `Plan` that says nothing of any job. All that is a job's (argv, env,
user, limits, disk, stdin) comes after that, through pipes and a cgroup that were made for this one sandbox.

A thread of its own keeps the stock: it alone boots ahead, since the kernel kills what a thread has spawned when that ends. It
recovers from every error: a pool that can do nothing costs time, since each job then boots a sandbox itself.
Invariant: what is in the stock is touched only under the lock; whoever has taken a sandbox out has it alone. Nothing slow is done
under the lock: starting jobs wait for it.
"""

from __future__ import annotations

import logging
import math
import os
import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from sandfleet_config.errors import SandboxError

from sandfleet_worker.sandbox.warm.demand import Demand, Spare
from sandfleet_worker.system.supervised_thread import SupervisedThread

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_config.settings import WarmSettings

    from sandfleet_worker.sandbox.process.plan import Plan
    from sandfleet_worker.sandbox.process.remover import Remover
    from sandfleet_worker.sandbox.process.sandbox import Sandbox
    from sandfleet_worker.sandbox.warm.boot_limit import BootTurns

log = logging.getLogger(__name__)

IDLE_MEMORY_BYTES = 48 << 20
"""What an idle sandbox may use; it uses 15 MB. A job with a smaller limit gets a sandbox that boots within that limit."""

LOOK_SECONDS = 0.05
"""How often to look for idle cores while something is missing."""
STOP_LOOK_SECONDS = 0.005
TIDY_SECONDS = 5.0
"""How often to look for spares that nobody wants any more."""
WHY_CHARS = 500
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 1.0, 60.0


class WarmPool:
    """Keeps up to `settings.size` sandboxes, of what jobs ask for, and as many berths as may boot at once; safe for threads.

    With size 0 it keeps nothing, and no thread.

    `drain` empties it; `close` ends the thread, and with it, by the kernel, every sandbox that it has spawned. `on_failure` hears
    of an error that the thread cannot recover from.
    """

    def __init__(
        self,
        settings: WarmSettings,
        open_sandbox: Callable[[], Sandbox],
        turns: BootTurns,
        remover: Remover,
        on_failure: Callable[[str], None],
    ) -> None:
        self._size, self._open, self._turns, self._remover = settings.size, open_sandbox, turns, remover
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._demand = Demand(settings.size, settings.idle_seconds)
        self._stock: dict[Plan, deque[Sandbox]] = {}
        self._berths: deque[Sandbox] = deque()
        self._by_fd: dict[int, Sandbox] = {}
        self._spare = Spare()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller = select.epoll()
        self._poller.register(self._wake_fd, select.EPOLLIN)
        self._is_draining = False
        self._is_closed = threading.Event()
        # Errors may last for any time: without a pool each job boots its own sandbox.
        self._thread = SupervisedThread(
            "warm", self._look, self._fail, can_pass=lambda _: True, patience_seconds=math.inf
        )
        self._next_fill: float | None = None
        self._next_tidy = 0.0
        self._backoff = 0.0
        self._not_before = 0.0

    def take(self, plan: Plan) -> Sandbox | None:
        """Take the sandbox of `plan` that is furthest, up or still booting, for one job; None where there is none.

        The caller destroys it. One that has died, in which the kernel has killed for memory, or that was built from a file that
        has been replaced, is never given out.
        """
        with self._lock:
            self._demand.note(plan)
            self._tell_thread()
        while (sandbox := self._take_out(plan)) is not None:
            if self._wake(sandbox):
                return sandbox
        return None

    def _wake(self, sandbox: Sandbox) -> bool:
        """Wake a sandbox that was taken out; one that cannot be used is given to the remover."""
        is_well = False
        try:
            is_well = sandbox.wake() and not sandbox.cgroup.counters.has_oom_kill
        finally:
            if not is_well:
                self._remover.add(sandbox)
        return is_well

    def _take_out(self, plan: Plan) -> Sandbox | None:
        with self._lock:
            spares = self._stock.get(plan)
            if not spares:
                return None
            sandbox = next((spare for spare in spares if spare.is_warm), spares[0])
            self._remove(sandbox)
            return sandbox

    def berth(self) -> Sandbox | None:
        """Take a berth that is ready, for a job that boots a sandbox of its own; the caller destroys it."""
        while True:
            with self._lock:
                self._tell_thread()
                sandbox = self._berths.popleft() if self._berths else None
            if sandbox is None or self._wake(sandbox):
                return sandbox

    def pin(self, plan: Plan) -> None:
        """Keep sandboxes of `plan` whether or not jobs ask for them."""
        with self._lock:
            self._demand.pin(plan)
            self._tell_thread()

    def resize(self, size: int) -> None:
        """Keep up to `size` sandboxes from now on; what there is more is used up first."""
        with self._lock:
            self._size = size
            self._demand.resize(size)

    def count_idle(self, plan: Plan | None = None) -> int:
        """Return how many sandboxes are up and wait for a job, of `plan` or in all."""
        with self._lock:
            stocks = self._stock.values() if plan is None else [self._stock.get(plan, deque())]
            return sum(sandbox.is_warm for spares in stocks for sandbox in spares)

    def drain(self) -> None:
        """Boot nothing ahead any more, and destroy what idles; what was taken goes on. Idempotent."""
        with self._lock:
            self._is_draining = True
            idle = [*self._berths, *(sandbox for spares in self._stock.values() for sandbox in spares)]
            for sandbox in idle:
                self._remove(sandbox)
        for sandbox in idle:
            sandbox.destroy()

    def close(self) -> None:
        """Drain, and end the thread. Idempotent."""
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

    def _tell_thread(self) -> None:
        """Let the thread look, which begins with the first job."""
        if self._is_closed.is_set() or not self._size:
            return
        os.eventfd_write(self._wake_fd, 1)
        if not self._thread.is_started:
            try:
                self._thread.start()
            except RuntimeError as error:  # the host has no thread left: the next job tries again
                log.warning("nothing is booted ahead yet: %s", error, extra={"action": "warm_pool_not_started"})

    def _fail(self, reason: str) -> None:
        """Tell that the thread is to end, and keep it: it must stay for as long as what it has spawned may run."""
        try:
            self.drain()
        finally:
            self._on_failure(reason)
            self._is_closed.wait()

    def _remove(self, sandbox: Sandbox) -> None:
        if sandbox.plan is None:
            self._berths.remove(sandbox)
            return
        fd = sandbox.supervision.fileno()
        self._poller.unregister(fd)
        self._stock[sandbox.plan].remove(sandbox)
        del self._by_fd[fd]

    def _look(self) -> None:
        """Wait for something to happen, and bring the stock to what it should be."""
        for fd, _ in self._poller.poll(self._find_timeout()):
            if fd == self._wake_fd:
                os.eventfd_read(fd)
            else:
                self._attend(fd)
        now = time.monotonic()
        for fd in self._find_overdue(now):
            self._attend(fd)
        if now >= self._next_tidy:
            self._next_tidy = now + TIDY_SECONDS
            self._tidy()
        self._fill_in_time(now)

    def _find_timeout(self) -> float:
        with self._lock:
            deadlines = [sandbox.supervision.next_deadline for sandbox in self._by_fd.values()]
            is_one_stopping = any(sandbox.is_stopping for sandbox in self._by_fd.values())
        due = [self._next_tidy, *(deadline for deadline in deadlines if deadline is not None)]
        if is_one_stopping:
            due.append(time.monotonic() + STOP_LOOK_SECONDS)
        if self._next_fill is not None:
            due.append(self._next_fill)
        return max(0.0, min(due) - time.monotonic())

    def _find_overdue(self, now: float) -> list[int]:
        def is_due(sandbox: Sandbox) -> bool:
            deadline = sandbox.supervision.next_deadline
            return sandbox.is_stopping or (deadline is not None and deadline <= now)

        with self._lock:
            return [fd for fd, sandbox in self._by_fd.items() if is_due(sandbox)]

    def _attend(self, fd: int) -> None:
        """See what has become of a spare, which nobody can take meanwhile."""
        with self._lock:
            sandbox = self._by_fd.get(fd)
            if sandbox is None:  # taken meanwhile
                return
            self._remove(sandbox)
        try:
            if self._advance(sandbox):
                self._backoff = 0.0 if sandbox.is_warm else self._backoff
                self._keep(sandbox)
                return
        except BaseException:
            self._remover.add(sandbox)
            raise
        watch = sandbox.supervision
        why = watch.kill.message if watch.kill else watch.boot_stderr.to_output().text.strip()[-WHY_CHARS:]
        self._remover.add(sandbox)
        self._note_failure(why or "it ended by itself")

    def _advance(self, sandbox: Sandbox) -> bool:
        """Bring a spare one step on: it boots, it is up, it is told to stop, it has stopped. False where it has died."""
        watch, plan = sandbox.supervision, sandbox.plan
        watch.poll()
        if watch.is_gone:
            return False
        if watch.clock.ready is None or sandbox.is_warm:
            return True
        if plan is not None and plan.binary.abilities.is_quiet:
            return sandbox.hold()
        return sandbox.note_stop() if sandbox.is_stopping else sandbox.stop()

    def _note_failure(self, why: str) -> None:
        """Boot nothing for a while; jobs boot theirs themselves meanwhile, and tell what is wrong by their outcomes."""
        self._backoff = min(MAX_BACKOFF_SECONDS, self._backoff * 2 or FIRST_BACKOFF_SECONDS)
        self._not_before = time.monotonic() + self._backoff
        text = "a sandbox that was booted ahead has failed, the next try follows in %g s: %s"
        log.warning(text, self._backoff, why, extra={"action": "warm_boot_failed"})

    def _tidy(self) -> None:
        """Give back what nobody wants any more, and what was built from a file that has gone or been replaced."""
        with self._lock:
            plans = self._demand.plans()
        stale = [plan for plan in plans if plan.is_stale]
        with self._lock:
            for plan in stale:
                self._demand.forget(plan)
            self._give_up_unwanted()
            self._stock = {plan: spares for plan, spares in self._stock.items() if spares}

    def _give_up_unwanted(self) -> None:
        targets = self._demand.targets()
        unwanted = [sandbox for plan, spares in self._stock.items() if plan not in targets for sandbox in spares]
        for sandbox in unwanted:
            self._give_up(sandbox)

    def _give_up(self, sandbox: Sandbox) -> None:
        """Take a spare out of the stock to be destroyed; by somebody else, since this is under the lock."""
        self._remove(sandbox)
        self._remover.add(sandbox)

    def _fill_in_time(self, now: float) -> None:
        """Fill up, at the earliest a moment after something began to be missing: the job that took it comes first."""
        with self._lock:
            is_missing = self._find_missing() is not None or len(self._berths) < self._turns.limit
        if self._is_draining or not is_missing:
            self._next_fill = None
        elif self._next_fill is None:
            self._next_fill = max(now + LOOK_SECONDS, self._not_before)
            self._spare.has_cores()  # from here on
        elif now >= self._next_fill:
            self._next_fill = max(now + LOOK_SECONDS, self._not_before)
            if self._spare.has_cores():
                self._fill()
            self._next_fill = max(time.monotonic() + LOOK_SECONDS, self._not_before)

    def _fill(self) -> None:
        """Boot what is missing, for as long as there are turns, and make berths."""
        self._make_room()
        while self._boot_one():
            pass
        while len(self._berths) < self._turns.limit and (berth := self._new_berth()) and self._keep(berth):
            pass

    def _boot_one(self) -> bool:
        """Boot a sandbox of what is missing most; False where there is nothing to do, or no way to do it now."""
        with self._lock:
            plan = self._find_missing()
        if plan is None or not self._spare.has_memory() or (turn := self._turns.take()) is None:
            return False
        sandbox: Sandbox | None = None
        try:
            sandbox = self.berth() or self._open()
            sandbox.supervision.on_booted = turn.end
            sandbox.cgroup.limit_memory(IDLE_MEMORY_BYTES)
            sandbox.boot(plan)
            return self._keep(sandbox)
        except BaseException as error:
            turn.end()
            if sandbox is not None:
                self._remover.add(sandbox)
            if not isinstance(error, SandboxError):
                raise
            self._note_failure(error.message)
            return False

    def _new_berth(self) -> Sandbox | None:
        try:
            return self._open()
        except SandboxError as error:
            self._note_failure(error.message)
            return None

    def _keep(self, sandbox: Sandbox) -> bool:
        """Put a berth, or a sandbox that boots, into the stock; destroy it and return False where that was emptied meanwhile."""
        with self._lock:
            if not self._is_draining:
                self._put(sandbox)
                return True
        sandbox.destroy()
        return False

    def _put(self, sandbox: Sandbox) -> None:
        if sandbox.plan is None:
            self._berths.append(sandbox)
            return
        fd = sandbox.supervision.fileno()
        self._poller.register(fd, select.EPOLLIN)
        self._stock.setdefault(sandbox.plan, deque()).append(sandbox)
        self._by_fd[fd] = sandbox

    def _find_missing(self) -> Plan | None:
        """Return the plan that lacks most sandboxes, None where there are enough in all."""
        if self._is_draining or sum(map(len, self._stock.values())) >= self._size:
            return None
        lacks = {plan: target - len(self._stock.get(plan, ())) for plan, target in self._demand.targets().items()}
        worst = max(lacks, key=lambda plan: lacks[plan], default=None)
        return worst if worst is not None and lacks[worst] > 0 else None

    def _make_room(self) -> None:
        """Give back what nobody wants any more, and one that stands in the way of an image that has none at all."""
        with self._lock:
            self._give_up_unwanted()
            targets = self._demand.targets()
            is_full = sum(map(len, self._stock.values())) >= self._size
            if is_full and any(not self._stock.get(plan) for plan in targets):
                extra = {plan: len(self._stock.get(plan, ())) - target for plan, target in targets.items()}
                self._give_up(self._stock[max(extra, key=lambda plan: extra[plan])][0])
