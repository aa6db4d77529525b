"""`HostState`: the workers of one host together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING

from sandfleet.channel.fleet_state import PreparedStarts
from sandfleet.overview.host_failures import HostFailures

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandfleet.channel.fleet_state import Cordon, FleetSummary, WorkerStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class HostState:
    """A host with its workers, or only a mark: ``absent`` is one that no worker is on.

    Slots, memory and disk are the host's, which its workers share; the newest report counts.
    """

    name: str
    workers: tuple[WorkerStatus, ...] = ()
    cordon: Cordon | None = None
    failures: HostFailures | None = None
    """None where there is no history to ask."""

    @property
    def is_odd(self) -> bool:
        """Whether attempts fail there far more often by our doing than elsewhere."""
        return self.failures is not None and self.failures.is_odd

    @property
    def live(self) -> tuple[WorkerStatus, ...]:
        """The workers whose leases run."""
        return tuple(worker for worker in self.workers if worker.state != "late")

    @property
    def newest(self) -> WorkerStatus | None:
        """The worker with the newest report; a live one, if there is one."""
        return max(self.live or self.workers, key=lambda worker: worker.seen, default=None)

    @property
    def state(self) -> str:
        """``up``, ``cordoned``, ``draining``, ``drained``, ``stopping``, ``late`` or ``absent``.

        ``drained`` once all workers are; ``stopping`` and ``late`` only if all are.
        """
        states = {worker.state for worker in self.live or self.workers}
        for state in ("draining", "cordoned", "drained", "up", "stopping", "late"):
            if state in states:
                return state
        return "absent"

    @property
    def slots(self) -> int:
        """How many jobs may run at once."""
        return max((worker.slots for worker in self.live), default=0)

    @property
    def busy(self) -> int:
        """How many slots are held."""
        newest = self.newest
        return min(newest.busy, self.slots) if newest is not None and self.live else 0

    @property
    def running(self) -> int:
        """How many jobs run."""
        return sum(worker.running for worker in self.live)

    @property
    def waiting(self) -> int:
        """How many jobs its workers have that have not started."""
        return sum(worker.waiting for worker in self.live)

    @property
    def warm(self) -> Mapping[str, int]:
        """Spares by image."""
        counts: dict[str, int] = {}
        for worker in self.live:
            for image, count in worker.warm.items():
                counts[image] = counts.get(image, 0) + count
        return counts

    @property
    def prepared(self) -> PreparedStarts:
        """How its jobs started that asked for a prepared spare."""
        told = [worker.prepared for worker in self.live]
        misses: Counter[str] = Counter()
        for one in told:
            misses.update(one.misses)
        names = dict.fromkeys(name for one in told for name in one.quarantined)
        return PreparedStarts(sum(one.starts for one in told), dict(misses), tuple(names))

    @property
    def queues(self) -> tuple[str, ...]:
        """The queues that its workers take jobs from."""
        return tuple(dict.fromkeys(queue for worker in self.live for queue in worker.queues))


def group_hosts(summary: FleetSummary, failures: Mapping[str, HostFailures] | None = None) -> list[HostState]:
    """Return the hosts by name: those with workers, and those that only have a mark.

    `failures` are the history's, None if there is none.
    """
    marks = {cordon.host: cordon for cordon in summary.cordons}
    workers = sorted(summary.workers, key=lambda worker: worker.host)
    found = [
        HostState(name=name, workers=tuple(group), cordon=marks.pop(name, None))
        for name, group in groupby(workers, key=lambda worker: worker.host)
    ]
    found += [HostState(name=name, cordon=cordon) for name, cordon in marks.items()]
    if failures is not None:
        found = [replace(host, failures=failures.get(host.name, HostFailures())) for host in found]
    return sorted(found, key=lambda host: host.name)
