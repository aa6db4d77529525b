"""Hosts as people see them: the workers of one machine taken together."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sandfleet.overview.hosts import HostState
from sandfleet.overview.hosts import group_hosts as group_workers

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from sandfleet.channel.fleet_state import FleetSummary
    from sandfleet.history.questions import FailureGroup, RollupPoint

STATE_WORDS: Final[Mapping[str, str]] = {
    "up": "takes jobs",
    "cordoned": "starts no more jobs; what runs goes on",
    "draining": "starts no more jobs; what runs at the deadline goes back to its queue",
    "drained": "drained: its workers live and do nothing",
    "stopping": "its worker ends",
    "late": "no sign of life: another worker takes its jobs over",
    "absent": "no worker lives here; the mark stays until somebody takes it away",
}
ODD_SHARE: Final = 0.05
ODD_FACTOR: Final = 5.0
LEAST_RUNS: Final = 20
"""A host is odd when at least this many runs ended there in the hour, and more than `ODD_SHARE` of
them failed by our doing, `ODD_FACTOR` times the share of the other hosts."""


@dataclass(frozen=True)
class Failures:
    """How many runs ended on a host lately, and how many of them by our doing."""

    runs: int = 0
    failed: int = 0
    others_runs: int = 0
    others_failed: int = 0

    @property
    def share(self) -> float:
        """The share of the host's runs."""
        return self.failed / self.runs if self.runs else 0.0

    @property
    def others_share(self) -> float:
        """The share of all other hosts' runs."""
        return self.others_failed / self.others_runs if self.others_runs else 0.0

    @property
    def is_odd(self) -> bool:
        """Whether the host fails far more often than the others."""
        is_much = self.share > ODD_SHARE and self.share > ODD_FACTOR * self.others_share
        return self.runs >= LEAST_RUNS and is_much


@dataclass(frozen=True, kw_only=True)
class Host(HostState):
    """A host with its failures of late."""

    failures: Failures = field(default_factory=Failures)

    @property
    def unenforced(self) -> tuple[str, ...]:
        """The limits that it cannot enforce."""
        return tuple(sorted({limit for worker in self.workers for limit in worker.unenforced}))

    @property
    def seen(self) -> float:
        """When one of its workers was last heard."""
        return max((worker.seen for worker in self.workers), default=0.0)


def group_hosts(summary: FleetSummary, failures: Mapping[str, Failures] | None = None) -> list[Host]:
    """Return the hosts with workers or a mark: those that need a look first, then by name."""
    known = failures or {}
    found = [
        Host(name=host.name, workers=host.workers, cordon=host.cordon, failures=known.get(host.name, Failures()))
        for host in group_workers(summary)
    ]
    return sorted(found, key=lambda host: (host.state == "up" and not host.failures.is_odd, host.name))


def count_states(hosts: Iterable[Host]) -> dict[str, int]:
    """Return the number of hosts by state, in the order in which they are told."""
    found = Counter(host.state for host in hosts)
    return {state: found[state] for state in STATE_WORDS if found[state]}


def count_failures(points: Sequence[RollupPoint], groups: Sequence[FailureGroup]) -> dict[str, Failures]:
    """Compare each host's failures by our doing with those of the others.

    `points` count runs by host, `groups` the failures of the category host by host.
    """
    runs: Counter[str] = Counter()
    for point in points:
        runs[point.key] += point.count
    failed: Counter[str] = Counter()
    for group in groups:
        failed[group.top_host] += group.count
    all_runs, all_failed = runs.total(), failed.total()
    return {
        host: Failures(runs[host], failed[host], all_runs - runs[host], all_failed - failed[host])
        for host in {*runs, *failed}
        if host
    }
