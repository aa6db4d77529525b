"""Marks and audit: the fake fleet, Redis with a stand-in worker, a real worker."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from fleets import STAND_IN_FLEETS, open_fleet
from sandfleet.actions import ActionRefused, Actor
from sandfleet.channel.fleet_state import Cordon

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet import Fleet


@pytest.fixture(params=STAND_IN_FLEETS)
def marked_fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with open_fleet(request.param, request) as fleet:
        yield fleet
        fleet.state.uncordon("contract-host")
        fleet.state.resume("contract-queue")


def test_marks_are_set_shown_and_taken_away(marked_fleet: Fleet) -> None:
    ann = marked_fleet.operator(Actor("ann", "operator", "cli"))
    ann.drain("contract-host", "a sick disk", 3600)
    ann.pause("contract-queue", "a bad release")

    summary = marked_fleet.state.read_summary()
    cordon = next(cordon for cordon in summary.cordons if cordon.host == "contract-host")
    assert isinstance(cordon, Cordon)
    assert (cordon.by, cordon.reason) == ("ann", "a sick disk")
    assert 3500 < (cordon.deadline or 0.0) - time.time() < 3700
    (queue,) = [queue for queue in summary.queues if queue.name == "contract-queue"]
    assert queue.pause is not None
    assert (queue.total, queue.pause.note) == (0, "a bad release")
    assert marked_fleet.state.queued_ids("contract-queue", 0, 10) == []
    assert marked_fleet.state.running_jobs("contract-host") == []

    assert ann.uncordon("contract-host").done == 1
    assert ann.resume("contract-queue").done == 1
    assert ann.resume("contract-queue").done == 0
    newest = marked_fleet.state.read_audit(3)
    assert [entry.action for entry in newest] == ["resume", "resume", "uncordon"]
    older = marked_fleet.state.read_audit(2, before=newest[-1].entry_id)
    assert [entry.action for entry in older] == ["pause", "drain"]
    with pytest.raises(ActionRefused):
        ann.cordon("contract-host", "")
