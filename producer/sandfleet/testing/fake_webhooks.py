"""The webhooks of a fleet in memory: kept in a list, and sent to nobody."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from sandfleet.channel.records import BatchState


class Webhook(NamedTuple):
    """The news that a batch is done: the name of the endpoint, and the number of jobs by code."""

    endpoint: str
    batch: str
    total: int
    codes: dict[str, int]


class FakeWebhooks:
    """Endpoints of batches by name, and the webhooks that were queued for them."""

    def __init__(self) -> None:
        self.endpoints: dict[str, str] = {}
        self.sent: list[Webhook] = []
        self._told: dict[str, str] = {}

    def add(self, batch: str, state: BatchState) -> None:
        """Add a webhook of a batch that is done, unless its newest end was told."""
        if self._told.get(batch) != state.cursor:
            self._told[batch] = state.cursor
            self.sent.append(Webhook(self.endpoints[batch], batch, state.total, dict(state.codes)))
