"""Hosts as people see them: the workers of one machine taken together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandfleet.overview.hosts import HostState
from sandfleet.overview.hosts import group_hosts as group_workers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sandfleet.channel.fleet_state import FleetSummary
    from sandfleet.overview.host_failures import HostFailures

STATE_WORDS: Final[Mapping[str, str]] = {
    "up": "takes jobs",
    "cordoned": "starts no more jobs; what runs goes on",
    "draining": "starts no more jobs; what runs at the deadline goes back to its queue",
    "drained": "drained: its workers live and do nothing",
    "stopping": "its worker ends",
    "late": "no sign of life: another worker takes its jobs over",
    "absent": "no worker lives here; the mark stays until somebody takes it away",
}


@dataclass(frozen=True, kw_only=True)
class Host(HostState):
    """A host with what its page shows of all its workers."""

    @property
    def unenforced(self) -> tuple[str, ...]:
        """The limits that it cannot enforce."""
        return tuple(sorted({limit for worker in self.workers for limit in worker.unenforced}))

    @property
    def seen(self) -> float:
        """When one of its workers was last heard."""
        return max((worker.seen for worker in self.workers), default=0.0)


def group_hosts(summary: FleetSummary, failures: Mapping[str, HostFailures] | None = None) -> list[Host]:
    """Return the hosts with workers or a mark: those that need a look first, then by name."""
    found = [
        Host(name=host.name, workers=host.workers, cordon=host.cordon, failures=host.failures)
        for host in group_workers(summary, failures)
    ]
    return sorted(found, key=lambda host: (host.state == "up" and not host.is_odd, host.name))


def count_states(hosts: Iterable[Host]) -> dict[str, int]:
    """Return the number of hosts by state, in the order in which they are told."""
    found = Counter(host.state for host in hosts)
    return {state: found[state] for state in STATE_WORDS if found[state]}
