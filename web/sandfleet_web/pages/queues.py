"""Queues as people see them: how old the oldest job is, and who takes their jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet.channel.fleet_state import FleetSummary, QueueState


@dataclass(frozen=True)
class QueueRow:
    """A queue with the age of its oldest job and the age that is fine."""

    queue: QueueState
    age: float
    target: float
    most: int
    """The largest number of jobs that wait in any queue: the length of a full bar."""

    @property
    def state(self) -> str:
        """``paused``, ``not served``, ``slow``, ``served`` or ``empty``."""
        if self.queue.pause is not None:
            return "paused"
        if not self.queue.total:
            return "empty" if self.queue.is_served else "no worker"
        if not self.queue.is_served:
            return "not served"
        return "slow" if self.age > self.target else "served"


def new_rows(summary: FleetSummary, age_target: Callable[[str], float]) -> list[QueueRow]:
    """Return the queues, those whose oldest job has waited longest first."""
    most = max((queue.total for queue in summary.queues), default=0)
    rows = [
        QueueRow(
            queue,
            max(0.0, summary.at - queue.oldest) if queue.oldest and queue.total else 0.0,
            age_target(queue.name),
            most,
        )
        for queue in summary.queues
    ]
    return sorted(rows, key=lambda row: (-row.age, -row.queue.total, row.queue.name))
