"""Give each job a sandbox of its own: a spare if there is one, else one that boots for this job."""

from __future__ import annotations

import itertools
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandfleet_config.errors import HostResources

from sandfleet_worker.sandbox.cgroup.cgroup import SandboxCgroup
from sandfleet_worker.sandbox.prepared.use import Miss
from sandfleet_worker.sandbox.prepared_fit import MARGIN_BYTES
from sandfleet_worker.sandbox.prepared_loss import Blame, explain_lost, find_blame
from sandfleet_worker.sandbox.prepared_pins import PreparedPins
from sandfleet_worker.sandbox.process.prepared_state import BOUNDS, UNBOUNDED
from sandfleet_worker.sandbox.process.remover import Remover
from sandfleet_worker.sandbox.process.runsc import SandboxPaths
from sandfleet_worker.sandbox.process.sandbox import Sandbox
from sandfleet_worker.sandbox.start_hooks import NoHooks
from sandfleet_worker.sandbox.warm.pool import WarmPool
from sandfleet_worker.sandbox.warm.prepared_spares import PreparedSpares
from sandfleet_worker.sandbox.warm.spare_memory import IDLE_MEMORY_BYTES, SpareMemory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandfleet_config.settings import HostSettings

    from sandfleet_worker.sandbox.cgroup.tree import CgroupTree
    from sandfleet_worker.sandbox.image.image import Image
    from sandfleet_worker.sandbox.memory_budget import MemoryBudget
    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.prepared_starts import PreparedStarts
    from sandfleet_worker.sandbox.process.cancellation import Cancellation
    from sandfleet_worker.sandbox.process.facts import Facts
    from sandfleet_worker.sandbox.process.measurement import Measurement
    from sandfleet_worker.sandbox.process.packed_job import PackedJob
    from sandfleet_worker.sandbox.process.plan import Plan
    from sandfleet_worker.sandbox.start_hooks import OneStart, StartHooks
    from sandfleet_worker.sandbox.warm.boot_limit import BootLimit

log = logging.getLogger(__name__)

_NO_HOOKS: Final = NoHooks()


@dataclass(frozen=True, slots=True)
class SandboxRequest:
    """A job that is to run in a sandbox; `deadline` is a `time.monotonic` instant."""

    job: PackedJob
    limits: Admitted
    cancel: Cancellation
    deadline: float | None
    hooks: OneStart
    is_ok: Callable[[Facts], bool]

    def run_in(self, sandbox: Sandbox) -> Measurement:
        """Run the job in `sandbox`, which is destroyed at its end."""
        return sandbox.run(self.job, self.limits, self.cancel, self.deadline, self.hooks.start, is_ok=self.is_ok)


def _assign(sandbox: Sandbox, limits: Admitted) -> Sandbox:
    try:
        sandbox.assign(limits)
    except BaseException:
        sandbox.destroy()
        raise
    return sandbox


class SandboxProvider:
    """Makes the sandboxes of one runner in `folder`, and keeps up to `spares` of them booted.

    Safe for threads. `on_failure` gets the reason why a thread of the provider has ended. Jobs
    still get sandboxes then.
    """

    def __init__(
        self,
        config: HostSettings,
        tree: CgroupTree,
        folder: Path,
        boot_limit: BootLimit,
        *,
        memory: MemoryBudget,
        starts: PreparedStarts,
        on_failure: Callable[[str], None],
    ) -> None:
        self._config, self._tree, self._folder, self._boot_limit = config, tree, folder, boot_limit
        self._numbers = itertools.count(1)
        self.is_quiet = False
        """Of the host's runsc, see `Abilities`; False until a runsc is known."""
        self.remover = Remover(on_failure)
        self.starts = starts
        self._bounds_preparations = tree.enforceable >= BOUNDS
        """Without these, no spare is prepared: each try would fail, and hold up the other spares."""
        self._memory = SpareMemory(memory.prepared_bytes, config.prepared.budget_bytes)
        self._pins = PreparedPins(self.starts)
        prepared = PreparedSpares(self._memory, self.starts.quarantine, self._pins, boot_limit.limit)
        warm = config.warm.model_copy(update={"size": memory.spares})
        self.pool = WarmPool(warm, self._open, boot_limit, self.remover, on_failure, prepared=prepared)

    def pin(self, plan: Plan, image: Image) -> None:
        """Keep spares of `plan`, and of the image's preparations, whether or not jobs ask for them.

        Raises:
            SandboxError: the image cannot be prepared.
            OSError: runsc is gone.
        """
        self.pool.pin(plan)
        prepared = self.starts.list_plans(plan, image)
        if not self._bounds_preparations:
            if prepared:
                log.warning("nothing is prepared: %s", UNBOUNDED, extra={"action": "preparations_unbounded"})
            return
        self._pins.add(plan, image)
        for one in prepared:
            self.pool.pin(one)

    def resize(self, memory: MemoryBudget) -> None:
        """Keep no more spares from now on than `memory` has room for."""
        self.pool.resize(memory.spares, memory.prepared_bytes)

    def close(self) -> None:
        """Destroy the spares and end the threads.

        Sandboxes that run a job are their callers' to end first.
        """
        self.pool.close()
        self.remover.close()

    def run(self, request: SandboxRequest, plan: Plan, image: Image) -> Measurement:
        """Run a job in a sandbox of `plan`: a prepared spare if it fits one, else a spare, else a new one.

        If a prepared interpreter is lost before it becomes the job, the job gets another sandbox.
        Where the job itself may be the reason, that one shows it: it does not start there either.

        Raises:
            SandboxError: as `boot`.
        """
        prepared = self._choose(request, plan, image)
        measured = None if prepared is None else self._run_prepared(request, prepared)
        if measured is not None and not measured.is_lost:
            return measured
        ended = request.run_in(self._take(request, plan, is_asked_for=prepared is None))
        if prepared is not None and measured is not None and ended.facts.is_started:
            self._note_lost(prepared, measured.facts, Blame.UNCLEAR)
        return ended

    def _choose(self, request: SandboxRequest, plan: Plan, image: Image) -> Plan | None:
        """Return the plan of the prepared spares for the job; None: it asks for plain ones."""
        prepared = self.starts.choose(plan, image, request.limits, request.job)
        if prepared is None:
            return None
        if not self._bounds_preparations:
            self.starts.counts.note_miss(Miss.HOST)
            return None
        files = sum(file.size for file in request.job.transfer.files)
        if request.limits.memory_bytes < self._memory.find_used(prepared) + MARGIN_BYTES + files:
            self.starts.counts.note_miss(Miss.MEMORY)
            return None
        return prepared

    def _run_prepared(self, request: SandboxRequest, plan: Plan) -> Measurement | None:
        """Run the job in a prepared spare; None if there is none that it can be given to."""
        sandbox = self.pool.take(plan)
        if sandbox is None:
            self.starts.counts.note_miss(Miss.NO_SPARE)
            return None
        try:
            _assign(sandbox, request.limits)
        except HostResources as error:  # as on cgroup v1, if it uses more memory than the job may
            self.starts.counts.note_miss(Miss.LOST)
            self._count_lost(plan, error.message)
            return None
        measured = request.run_in(sandbox)
        if measured.is_lost:
            self.starts.counts.note_miss(Miss.LOST)
            self._note_lost(plan, measured.facts, Blame.PREPARATION, Blame.HOST)
        elif measured.facts.is_started and self.starts.note_end(plan, measured):
            self.pool.forget(plan)
        return measured

    def _note_lost(self, plan: Plan, facts: Facts, *told: Blame) -> None:
        """Log a prepared sandbox that was lost, if one of `told` is to blame; count it unless the host is."""
        if (blame := find_blame(facts)) in told:
            self._count_lost(plan, explain_lost(facts), is_counted=blame is not Blame.HOST)

    def _count_lost(self, plan: Plan, why: str, *, is_counted: bool = True) -> None:
        if self.starts.note_lost(plan, why, is_counted=is_counted):
            self.pool.forget(plan)

    def _take(self, request: SandboxRequest, plan: Plan, *, is_asked_for: bool) -> Sandbox:
        """Return a sandbox of `plan` under the job's limits: a spare, else a new one."""
        limits = request.limits
        is_large = limits.memory_bytes >= IDLE_MEMORY_BYTES
        sandbox = self.pool.take(plan, is_asked_for=is_asked_for) if is_large else None
        if sandbox is None:
            return self.boot(plan, limits, request.cancel, request.deadline, request.hooks)
        return _assign(sandbox, limits)

    def boot(
        self,
        plan: Plan,
        limits: Admitted,
        cancel: Cancellation,
        deadline: float | None = None,
        hooks: StartHooks = _NO_HOOKS,
    ) -> Sandbox:
        """Boot a sandbox that is under the job's own limits from the start.

        Return while it still boots.

        Raises:
            SandboxError: the job was ended, or its deadline came, while it waited to boot; the
                sandbox cannot be built.
        """
        slot = self._boot_limit.acquire(cancel, deadline, hooks)
        sandbox: Sandbox | None = None
        try:
            sandbox = self.pool.take_unbooted() or self._open()
            sandbox.supervision.on_booted = slot.release
            sandbox.assign(limits)
            sandbox.boot(plan)
        except BaseException:
            slot.release()
            if sandbox is not None:
                sandbox.destroy()
            raise
        return sandbox

    def boot_spare(self, plan: Plan) -> Sandbox:
        """Boot a prepared spare for nobody, with the bounds of its preparation; return at once.

        Raises:
            HostResources: the host has no room for it.
        """
        assert plan.interpreter is not None
        sandbox = self._open()
        try:
            sandbox.boot_spare(plan, plan.interpreter.memory_bytes)
        except BaseException:
            sandbox.destroy()
            raise
        return sandbox

    def _open(self) -> Sandbox:
        name = f"{self._folder.name}.{next(self._numbers)}"
        paths, cgroup = SandboxPaths(self._folder / name), SandboxCgroup(self._tree, name)
        settings, allowed = self._config.runsc, self._config.allow_unenforced
        return Sandbox(
            settings, paths, cgroup, allowed, is_quiet=self.is_quiet, on_not_removed=self.remover.retry
        ).open()
