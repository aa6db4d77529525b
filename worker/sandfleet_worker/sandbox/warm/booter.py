"""Open and boot spares for a pool, within the boot limit and with back-off after failures."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sandfleet_config.errors import SandboxError

from sandfleet_worker.sandbox.warm.demand import HostLoad
from sandfleet_worker.sandbox.warm.fill_schedule import FillSchedule
from sandfleet_worker.sandbox.warm.spare_memory import IDLE_MEMORY_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_worker.sandbox.process.plan import Plan
    from sandfleet_worker.sandbox.process.remover import Remover
    from sandfleet_worker.sandbox.process.sandbox import Sandbox
    from sandfleet_worker.sandbox.warm.boot_limit import BootLimit

log = logging.getLogger(__name__)


class SpareBooter:
    """Boots spares, each under the memory limit of an idle sandbox."""

    def __init__(self, open_sandbox: Callable[[], Sandbox], boot_limit: BootLimit, remover: Remover) -> None:
        self._open, self._boot_limit, self._remover = open_sandbox, boot_limit, remover
        self.load = HostLoad()
        self.schedule = FillSchedule()
        self.failures = 0
        """How many spares have failed to open or to boot."""

    @property
    def limit(self) -> int:
        """How many sandboxes may boot at once."""
        return self._boot_limit.limit

    def open(self) -> Sandbox | None:
        """Open a sandbox without booting it; None if the host cannot open one now."""
        try:
            return self._open()
        except SandboxError as error:
            self.note_failure(error.message)
            return None

    def boot(
        self, plan: Plan, take_unbooted: Callable[[], Sandbox | None], memory_bytes: int = IDLE_MEMORY_BYTES
    ) -> Sandbox | None:
        """Begin to boot a spare; None if memory or a boot slot is missing, or if it fails.

        `take_unbooted` returns a sandbox that is open already, if there is one.
        """
        if not self.load.has_free_memory() or (slot := self._boot_limit.try_acquire()) is None:
            return None
        sandbox: Sandbox | None = None
        try:
            sandbox = take_unbooted() or self._open()
            sandbox.supervision.on_booted = slot.release
            sandbox.boot_spare(plan, memory_bytes)
        except BaseException as error:
            slot.release()
            if sandbox is not None:
                self._remover.add(sandbox)
            if not isinstance(error, SandboxError):
                raise
            self.note_failure(error.message)
            return None
        return sandbox

    def note_failure(self, why: str) -> None:
        """Boot nothing for a while. The outcomes of jobs that boot sandboxes say why that fails."""
        self.failures += 1
        seconds = self.schedule.note_failure()
        text = "a sandbox that was booted ahead has failed, the next try follows in %g s: %s"
        log.warning(text, seconds, why, extra={"action": "warm_boot_failed"})
