"""Whose failure it is that a spare has died, or cannot be used, and its removal."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from sandfleet_worker.sandbox.process.prepared_state import HOST_OUT_OF_MEMORY

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_worker.sandbox.process.plan import Plan
    from sandfleet_worker.sandbox.process.remover import Remover
    from sandfleet_worker.sandbox.process.sandbox import Sandbox
    from sandfleet_worker.sandbox.warm.booter import SpareBooter
    from sandfleet_worker.sandbox.warm.prepared_spares import PreparedSpares

WROTE_AHEAD = "it wrote to the output of the job that was to come"


class Failure(NamedTuple):
    """Why a spare has failed, and whether its preparation is to blame: else the host is."""

    why: str
    is_of_preparation: bool = True


class SpareFailures:
    """Removes spares that have failed, and counts each against its preparation or the host.

    `forget` is called with a plan of which no spare is to be made for a while.
    """

    def __init__(
        self, booter: SpareBooter, prepared: PreparedSpares, remover: Remover, forget: Callable[[Plan], None]
    ) -> None:
        self._booter, self._prepared, self._remover, self._forget = booter, prepared, remover, forget

    def remove_dead(self, sandbox: Sandbox) -> None:
        """Remove a spare that has died."""
        self._remove(sandbox, find_failure)

    def reject(self, sandbox: Sandbox) -> None:
        """Remove a spare that was taken for a job and cannot be used."""
        self._remove(sandbox, find_fault)

    def note(self, sandbox: Sandbox, failure: Failure) -> None:
        """Count a failure."""
        if not failure.is_of_preparation:
            self._booter.note_failure(failure.why)
        elif self._prepared.note_failure(sandbox, failure.why) and sandbox.plan is not None:
            self._forget(sandbox.plan)

    def _remove(self, sandbox: Sandbox, find: Callable[[Sandbox], Failure | None]) -> None:
        try:
            failure = find(sandbox)  # before its cgroup goes, which has the counters
        finally:
            self._remover.add(sandbox)
        if failure is not None:
            self.note(sandbox, failure)


def find_failure(sandbox: Sandbox) -> Failure:
    """Say why a spare has died; its preparation is to blame from *ready* on, unless the host had no memory."""
    prepared = sandbox.prepared
    has_prepared = prepared is not None and sandbox.supervision.clock.ready is not None
    is_of_host = prepared is not None and prepared.is_host_out_of_memory
    return Failure(sandbox.read_boot_failure(), has_prepared and not is_of_host)


def find_fault(sandbox: Sandbox) -> Failure | None:
    """Say why a prepared spare that is up cannot be used; None: nobody is to blame, as for a plain one."""
    prepared = sandbox.prepared
    if prepared is None:
        return None
    if prepared.wrote_ahead:
        return Failure(WROTE_AHEAD)
    if prepared.is_host_out_of_memory:
        return Failure(HOST_OUT_OF_MEMORY, is_of_preparation=False)
    return Failure(prepared.explain_growth()) if prepared.is_up and prepared.is_out_of_memory else None
