"""Sandboxes that are up before their job comes: booted to *ready*, stopped while idle, used for one job, destroyed.

Why nothing of one job can reach another: `take` gives a sandbox out once and keeps no way back; whoever takes it destroys it.
Until then it has run nothing but runsc and our init, from a `Plan` that says nothing of any job. All that is a job's (argv, env,
user, limits, disk, stdin) comes after that, through pipes and a cgroup that were made for this one sandbox.

A thread of its own keeps the stock: it alone boots ahead, since the kernel kills what a thread has spawned when that ends.
Invariant: a spare is touched only under the lock, and by whoever has taken it out of the stock from then on.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from sandfleet_config.errors import SandboxError

from sandfleet_worker.sandbox.demand import Demand, Spare

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_config.settings import WarmSettings

    from sandfleet_worker.sandbox.plan import Plan
    from sandfleet_worker.sandbox.sandbox import Sandbox
    from sandfleet_worker.sandbox.turns import BootTurns

log = logging.getLogger(__name__)

IDLE_MEMORY_BYTES = 48 << 20
"""What an idle sandbox may use; it uses 15 MB. A job with a smaller limit gets a sandbox that boots within that limit."""

LOOK_SECONDS = 0.05
"""How often to look for idle cores while something is missing."""
STOP_LOOK_SECONDS = 0.005
STALE_SECONDS = 5.0
WHY_CHARS = 500
FIRST_BACKOFF_SECONDS, MAX_BACKOFF_SECONDS = 1.0, 60.0


class WarmPool:
    """Keeps up to `settings.size` sandboxes, of what jobs ask for, and as many berths as may boot at once; safe for threads.

    With size 0 it keeps nothing, and no thread.

    `drain` empties it; `close` ends the thread, and with it, by the kernel, every sandbox that it has spawned.
    """

    def __init__(self, settings: WarmSettings, open_sandbox: Callable[[], Sandbox], turns: BootTurns) -> None:
        self._size, self._open, self._turns = settings.size, open_sandbox, turns
        self._lock = threading.Lock()
        self._demand = Demand(settings.size, settings.idle_seconds)
        self._stock: dict[Plan, deque[Sandbox]] = {}
        self._berths: deque[Sandbox] = deque()
        self._by_fd: dict[int, Sandbox] = {}
        self._spare = Spare()
        self._wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poller = select.epoll()
        self._poller.register(self._wake_fd, select.EPOLLIN)
        self._is_draining = self._is_closed = False
        self._thread: threading.Thread | None = None
        self._next_fill: float | None = None
        self._next_stale = 0.0
        self._backoff = 0.0
        self._not_before = 0.0

    def take(self, plan: Plan) -> Sandbox | None:
        """Take the sandbox of `plan` that is furthest, up or still booting, for one job; None where there is none.

        The caller destroys it. One that has died, or was built from a file that has been replaced, is never given out.
        """
        with self._lock:
            self._demand.note(plan)
            self._tell_thread()
            spares = list(self._stock.get(plan, ()))
            for sandbox in sorted(spares, key=lambda sandbox: not sandbox.is_warm):
                self._remove(sandbox)
                if sandbox.wake():
                    return sandbox
                sandbox.destroy()
        return None

    def berth(self) -> Sandbox | None:
        """Take a berth that is ready, for a job that boots a sandbox of its own; the caller destroys it."""
        with self._lock:
            self._tell_thread()
            while self._berths:
                sandbox = self._berths.popleft()
                if sandbox.wake():
                    return sandbox
                sandbox.destroy()
        return None

    def pin(self, plan: Plan) -> None:
        """Keep sandboxes of `plan` whether or not jobs ask for them."""
        with self._lock:
            self._demand.pin(plan)
            self._tell_thread()

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
            is_first, self._is_draining, self._is_closed = not self._is_closed, True, True
            if is_first:
                os.eventfd_write(self._wake_fd, 1)
        if self._thread is not None:
            self._thread.join()
        self.drain()
        if is_first:
            self._poller.close()
            os.close(self._wake_fd)

    def _tell_thread(self) -> None:
        """Let the thread look, which begins with the first job."""
        if self._is_closed or not self._size:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="warm", daemon=True)
            self._thread.start()
        os.eventfd_write(self._wake_fd, 1)

    def _remove(self, sandbox: Sandbox) -> None:
        if sandbox.plan is None:
            self._berths.remove(sandbox)
            return
        self._stock[sandbox.plan].remove(sandbox)
        fd = sandbox.supervision.fileno()
        self._poller.unregister(fd)
        del self._by_fd[fd]

    def _run(self) -> None:
        try:
            while not self._is_closed:
                self._look()
        except Exception:
            log.exception("nothing is booted ahead any more", extra={"action": "warm_pool_died"})
            self.drain()
            # Invariant: the thread stays for as long as what it has spawned may run.
            while not self._is_closed:
                time.sleep(LOOK_SECONDS)

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
        if now >= self._next_stale:
            self._next_stale = now + STALE_SECONDS
            self._drop_stale()
        self._fill_in_time(now)

    def _find_timeout(self) -> float:
        with self._lock:
            deadlines = [sandbox.supervision.next_deadline for sandbox in self._by_fd.values()]
            is_one_stopping = any(sandbox.is_stopping for sandbox in self._by_fd.values())
        due = [self._next_stale, *(deadline for deadline in deadlines if deadline is not None)]
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
        """See what has become of a spare: up, and then it is told to stop, and is warm once it has; or gone."""
        with self._lock:
            sandbox = self._by_fd.get(fd)
            if sandbox is None:  # taken meanwhile
                return
            watch = sandbox.supervision
            watch.poll()
            is_well = watch.clock.ready is None or sandbox.is_warm
            if not watch.is_gone and (is_well or (sandbox.note_stop() if sandbox.is_stopping else sandbox.stop())):
                self._backoff = 0.0 if sandbox.is_warm else self._backoff
                return
            self._remove(sandbox)
            why = watch.kill.message if watch.kill else watch.boot_stderr.to_output().text.strip()[-WHY_CHARS:]
        sandbox.destroy()
        self._note_failure(why or "it ended by itself")

    def _note_failure(self, why: str) -> None:
        """Boot nothing for a while; jobs boot theirs themselves meanwhile, and tell what is wrong by their outcomes."""
        self._backoff = min(MAX_BACKOFF_SECONDS, self._backoff * 2 or FIRST_BACKOFF_SECONDS)
        self._not_before = time.monotonic() + self._backoff
        text = "a sandbox that was booted ahead has failed, the next try follows in %g s: %s"
        log.warning(text, self._backoff, why, extra={"action": "warm_boot_failed"})

    def _drop_stale(self) -> None:
        """Destroy what was built from a file that has gone or been replaced."""
        with self._lock:
            stale = [plan for plan in self._demand.plans() if plan.is_stale]
            gone = [sandbox for plan in stale for sandbox in self._stock.get(plan, ())]
            for plan in stale:
                self._demand.forget(plan)
            for sandbox in gone:
                self._remove(sandbox)
        for sandbox in gone:
            sandbox.destroy()

    def _fill_in_time(self, now: float) -> None:
        """Fill up, at the earliest a moment after something began to be missing: the job that took it comes first."""
        with self._lock:
            is_missing = self._find_missing() is not None or len(self._berths) < self._turns.limit
        if self._is_draining or not is_missing:
            self._next_fill = None
        elif self._next_fill is None:
            self._spare.has_cores()  # from here on
            self._next_fill = max(now + LOOK_SECONDS, self._not_before)
        elif now >= self._next_fill:
            if self._spare.has_cores():
                self._fill()
            self._next_fill = max(time.monotonic() + LOOK_SECONDS, self._not_before)

    def _fill(self) -> None:
        """Boot what is missing, for as long as there are turns, and make berths."""
        for surplus in self._take_surplus():
            surplus.destroy()
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
        sandbox = self.berth() or self._new_berth()
        if sandbox is None:
            turn.end()
            return False
        sandbox.supervision.on_booted = turn.end
        try:
            sandbox.cgroup.limit_memory(IDLE_MEMORY_BYTES)
            sandbox.boot(plan)
        except SandboxError as error:
            sandbox.destroy()
            self._note_failure(error.message)
            return False
        return self._keep(sandbox)

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
        self._stock.setdefault(sandbox.plan, deque()).append(sandbox)
        self._by_fd[fd] = sandbox
        self._poller.register(fd, select.EPOLLIN)

    def _find_missing(self) -> Plan | None:
        """Return the plan that lacks most sandboxes, None where there are enough in all."""
        if self._is_draining or sum(map(len, self._stock.values())) >= self._size:
            return None
        lacks = {plan: target - len(self._stock.get(plan, ())) for plan, target in self._demand.targets().items()}
        worst = max(lacks, key=lambda plan: lacks[plan], default=None)
        return worst if worst is not None and lacks[worst] > 0 else None

    def _take_surplus(self) -> list[Sandbox]:
        """Take out what nobody wants any more, and one that stands in the way of an image that has none at all."""
        with self._lock:
            targets = self._demand.targets()
            unwanted = [sandbox for plan, spares in self._stock.items() if plan not in targets for sandbox in spares]
            is_full = sum(map(len, self._stock.values())) - len(unwanted) >= self._size
            if is_full and any(not self._stock.get(plan) for plan in targets):
                extra = {plan: len(self._stock.get(plan, ())) - target for plan, target in targets.items()}
                unwanted.append(self._stock[max(extra, key=lambda plan: extra[plan])][0])
            for sandbox in unwanted:
                self._remove(sandbox)
        return unwanted
