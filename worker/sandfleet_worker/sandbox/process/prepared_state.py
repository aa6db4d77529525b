"""The use and the bounds of a prepared sandbox before its job, and why a preparation failed."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from sandfleet_config.errors import HostResources
from sandfleet_config.units import format_bytes

from sandfleet_worker.sandbox.process.init_reports import ExecFailed, PreparationFailed

if TYPE_CHECKING:
    from sandfleet_config.outcome import Usage

    from sandfleet_worker.sandbox.cgroup.cgroup import SandboxCgroup
    from sandfleet_worker.sandbox.process.init_reports import End
    from sandfleet_worker.sandbox.process.interpreter import Interpreter
    from sandfleet_worker.sandbox.process.supervision import Supervision

BOOT_FAILURE_CHARS: Final = 500
PREPARING_CPU: Final = 100_000
"""A preparation gets one core: microseconds per 100 ms."""
BOUNDS: Final = frozenset({"cpu", "memory"})
"""The limits that a host must be able to enforce, so that image code may run ahead."""
UNBOUNDED: Final = (
    "this host cannot limit the CPU and memory of a preparation: give the worker a writable cgroup for both"
)
HOST_OUT_OF_MEMORY: Final = "the host, or a cgroup above the sandbox's, ran out of memory"
IDLE_CPU: Final = 1_000
"""A prepared spare gets a hundredth of a core, should the image's threads not sleep."""
IDLE_MARGIN_BYTES: Final = 16 << 20
"""How much a prepared spare may grow while it idles."""


class PreparedState:
    """The use of a sandbox with an interpreter before its job came, and its bounds until then."""

    def __init__(self, interpreter: Interpreter, cgroup: SandboxCgroup, supervision: Supervision) -> None:
        self._interpreter, self._cgroup, self._supervision = interpreter, cgroup, supervision
        self._cpu_at_ready: float | None = None
        self._spent_seconds = 0.0
        self.is_up = False
        """Whether the preparation is done and its bounds are those of an idle spare."""
        self.memory_bytes = interpreter.memory_bytes
        """The most memory that counts for it now: of a preparation, then of the idle spare."""
        self.peak_bytes = interpreter.memory_bytes
        """The most memory that the preparation has used, as far as the kernel tells."""
        self.wrote_ahead = False
        """Whether `has_written` has found that."""
        self.seconds = 0.0
        """How long the preparation took."""

    def advance(self) -> bool:
        """Go on after *ready*; return whether it is prepared, and bounded as an idle spare."""
        clock = self._supervision.clock
        if self._cpu_at_ready is None:
            self._cpu_at_ready = self._cgroup.counters.read_cpu_seconds()
        if clock.prepared is None:
            return False
        if not self.is_up:
            self.seconds = clock.prepared - (clock.ready or clock.prepared)
            self._bound()
            self.is_up = True  # last: without a descriptor the bounds are tried again
        return True

    def _bound(self) -> None:
        self._cgroup.slow_down(IDLE_CPU)
        self.peak_bytes = self._cgroup.counters.usage().memory_peak_bytes or self.peak_bytes
        found = self._cgroup.counters.read_memory_bytes()
        if found is not None:
            used, without_files = found
            self._cgroup.limit_memory(min(used + IDLE_MARGIN_BYTES, self._interpreter.memory_bytes))
            self.memory_bytes = without_files + IDLE_MARGIN_BYTES

    def find_growth(self) -> str:
        """Say past which bound the memory of an idle spare has grown; "" if it has not."""
        found = self._cgroup.counters.read_memory_bytes() if self.is_up else None
        return self.explain_growth() if found is not None and found[1] > self.memory_bytes else ""

    def explain_growth(self) -> str:
        """Say that an idle spare has grown past its bound."""
        return f"it grew past {format_bytes(self.memory_bytes)} of memory while it idled"

    @property
    def is_out_of_memory(self) -> bool:
        """Whether the kernel has killed in it because it was at its own limit of memory."""
        counters = self._cgroup.counters
        return counters.has_oom_kill and counters.count_own_ooms() > 0

    @property
    def is_host_out_of_memory(self) -> bool:
        """Whether the kernel has killed in it for the memory of the host, or of a cgroup above."""
        counters = self._cgroup.counters
        return counters.has_oom_kill and not counters.count_own_ooms()

    def find_memory_advice(self) -> str:
        """Say what gives the preparation more memory than it had."""
        if self.memory_bytes < self._interpreter.memory_bytes:
            return (
                "restart the worker, which keeps memory for the preparations that it knows at its start,"
                " or raise SANDFLEET_PREPARED__BUDGET_BYTES"
            )
        return "raise SANDFLEET_PREPARED__SPARE_BYTES, and SANDFLEET_PREPARED__BUDGET_BYTES if that is less"

    def has_written(self) -> bool:
        """Whether the image's code has written to the job's output ahead of the job."""
        assert self._supervision.preparing is not None
        self.wrote_ahead = self._supervision.preparing.has_written()
        return self.wrote_ahead

    def end(self) -> None:
        """Leave out of the job's usage what was used so far; the job's limits are in force."""
        now = self._cgroup.counters.read_cpu_seconds()
        if now is not None and self._cpu_at_ready is not None:
            self._spent_seconds = now - self._cpu_at_ready
        self._cgroup.counters.restart_peak()

    def leave_out(self, usage: Usage) -> Usage:
        """Return `usage` without the CPU of the preparation and of the idle time."""
        if usage.cpu_seconds is None:
            return usage
        return replace(usage, cpu_seconds=max(0.0, usage.cpu_seconds - self._spent_seconds))


def bound_preparation(cgroup: SandboxCgroup, memory_bytes: int) -> None:
    """Give a preparation `memory_bytes` and one core at most.

    Raises:
        HostResources: the host cannot bound that, so no image code may run ahead.
    """
    cgroup.counters.start(memory_bytes, is_fresh=True)  # whose limit was hit, if the kernel kills in it
    is_bounded = cgroup.limit_memory(memory_bytes)
    if not cgroup.slow_down(PREPARING_CPU) or not is_bounded:
        raise HostResources.of(UNBOUNDED)


def explain_end(end: End | None) -> str:
    """Say why a preparation failed: init's report, with the image's own reason if it gave one."""
    match end:
        case PreparationFailed(reason=reason):
            return reason or "the interpreter gave no reason"
        case ExecFailed(errno=number):
            return f"the interpreter cannot be executed: {os.strerror(number)}"
        case _:
            return f"init could not start the interpreter: {end}"


def explain_failure(supervision: Supervision, prepared: PreparedState | None) -> str:
    """Say why a spare has died: our kill, no memory, init's report, or runsc's last messages.

    Call it while its cgroup exists.
    """
    if supervision.kill is not None:
        return supervision.kill.message
    if prepared is not None and prepared.is_host_out_of_memory:
        return HOST_OUT_OF_MEMORY
    if prepared is not None and prepared.is_out_of_memory:
        if prepared.is_up:
            return prepared.explain_growth()
        limit = format_bytes(prepared.memory_bytes)
        return f"it needs more memory than {limit}: {prepared.find_memory_advice()}, or import less"
    if supervision.end is not None:
        return explain_end(supervision.end)
    return supervision.outputs.boot_stderr.to_output().text.strip()[-BOOT_FAILURE_CHARS:] or "it ended by itself"
