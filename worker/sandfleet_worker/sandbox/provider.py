"""Give each job a sandbox of its own: a spare if there is one, else one that boots for this job."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Final

from sandfleet_worker.sandbox.cgroup.cgroup import SandboxCgroup
from sandfleet_worker.sandbox.process.remover import Remover
from sandfleet_worker.sandbox.process.runsc import SandboxPaths
from sandfleet_worker.sandbox.process.sandbox import Sandbox
from sandfleet_worker.sandbox.start_hooks import NoHooks
from sandfleet_worker.sandbox.warm.booter import IDLE_MEMORY_BYTES
from sandfleet_worker.sandbox.warm.pool import WarmPool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandfleet_config.settings import HostSettings

    from sandfleet_worker.sandbox.cgroup.tree import CgroupTree
    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.process.cancellation import Cancellation
    from sandfleet_worker.sandbox.process.plan import Plan
    from sandfleet_worker.sandbox.start_hooks import StartHooks
    from sandfleet_worker.sandbox.warm.boot_limit import BootLimit

_NO_HOOKS: Final = NoHooks()


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
        spares: int,
        on_failure: Callable[[str], None],
    ) -> None:
        self._config, self._tree, self._folder, self._boot_limit = config, tree, folder, boot_limit
        self._numbers = itertools.count(1)
        self.is_quiet = False
        """Of the host's runsc, see `Abilities`; False until a runsc is known."""
        self.remover = Remover(on_failure)
        warm = config.warm.model_copy(update={"size": spares})
        self.pool = WarmPool(warm, self._open, boot_limit, self.remover, on_failure)

    def close(self) -> None:
        """Destroy the spares and end the threads.

        Sandboxes that run a job are their callers' to end first.
        """
        self.pool.close()
        self.remover.close()

    def take(
        self, plan: Plan, limits: Admitted, cancel: Cancellation, deadline: float | None, hooks: StartHooks
    ) -> Sandbox:
        """Return a sandbox of `plan` under the job's limits: a spare, else a new one.

        Raises:
            SandboxError: as `boot`.
        """
        sandbox = self.pool.take(plan) if limits.memory_bytes >= IDLE_MEMORY_BYTES else None
        if sandbox is None:
            return self.boot(plan, limits, cancel, deadline, hooks)
        try:
            sandbox.assign(limits)
        except BaseException:
            sandbox.destroy()
            raise
        return sandbox

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

    def _open(self) -> Sandbox:
        name = f"{self._folder.name}.{next(self._numbers)}"
        paths, cgroup = SandboxPaths(self._folder / name), SandboxCgroup(self._tree, name)
        settings, allowed = self._config.runsc, self._config.allow_unenforced
        return Sandbox(
            settings, paths, cgroup, allowed, is_quiet=self.is_quiet, on_not_removed=self.remover.retry
        ).open()
