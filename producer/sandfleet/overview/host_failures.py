"""`HostFailures`: how often attempts fail by our doing on a host, against the others.

Attempts are counted, not only how runs ended: a host whose jobs are all tried again elsewhere with
success is sick.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandfleet.history.questions import History, RollupPoint

HOUR: Final = 3600.0
ODD_SHARE: Final = 0.05
ODD_FACTOR: Final = 5.0
LEAST_TRIES: Final = 20
"""Mark a host as odd if it had this many attempts in the hour, more than `ODD_SHARE` of them failed
with the category `host`, and that is more than `ODD_FACTOR` times the share of the other hosts."""


@dataclass(frozen=True)
class HostFailures:
    """How many attempts ended on a host lately, and how many of them by our doing.

    An attempt counts when its run has ended; one that was not charged, such as one that a drain cut, does
    not.
    """

    tries: int = 0
    failed: int = 0
    others_tries: int = 0
    others_failed: int = 0

    @property
    def share(self) -> float:
        """The share of the host's attempts."""
        return self.failed / self.tries if self.tries else 0.0

    @property
    def others_share(self) -> float:
        """The share of all other hosts' attempts."""
        return self.others_failed / self.others_tries if self.others_tries else 0.0

    @property
    def is_odd(self) -> bool:
        """Whether the host fails far more often than the others."""
        is_much = self.share > ODD_SHARE and self.share > ODD_FACTOR * self.others_share
        return self.tries >= LEAST_TRIES and is_much


def read_host_failures(history: History, since: float, until: float) -> dict[str, HostFailures]:
    """Ask the history about the attempts of each host, of runs that ended in a time of about an hour.

    Raises:
        FleetError or ValueError: as `History` says.
    """
    tries = history.roll_up("tries", since=since, until=until, step_seconds=int(HOUR))
    failed = history.roll_up("failed_tries", since=since, until=until, step_seconds=int(HOUR))
    return count_failures(tries, failed)


def count_failures(tries: Sequence[RollupPoint], failed: Sequence[RollupPoint]) -> dict[str, HostFailures]:
    """Compare each host's failures by our doing with those of the others."""
    all_of, failed_of = _sum_hosts(tries), _sum_hosts(failed)
    number, number_failed = sum(all_of.values()), sum(failed_of.values())
    return {
        host: HostFailures(
            all_of[host], failed_of.get(host, 0), number - all_of[host], number_failed - failed_of.get(host, 0)
        )
        for host in all_of
        if host
    }


def _sum_hosts(points: Sequence[RollupPoint]) -> Mapping[str, int]:
    found: Counter[str] = Counter()
    for point in points:
        found[point.key] += point.count
    return found
