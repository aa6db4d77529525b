"""`on_done` on the fake fleet: who would be told, and when again."""

from __future__ import annotations

from collections.abc import Iterator

from sandfleet.testing import Ending, FakeFleet
from sandfleet_config.errors import GVisorNotAvailable
from sandfleet_config.outcome import SandboxResult
from stand_in import HELLO

LOST = GVisorNotAvailable("no runsc")
WELL = SandboxResult(exit_code=0, stdout="", stderr="", duration=0.0)


def test_the_fake_fleet_keeps_the_webhooks_that_a_sender_would_send() -> None:
    endings: Iterator[Ending] = iter([WELL, LOST, LOST, LOST])
    with FakeFleet(lambda _: next(endings, WELL)) as fleet:
        _, failed = fleet.submit_many([HELLO] * 2, batch="b", on_done="ci")
        assert [(told.endpoint, told.batch, told.total) for told in fleet.webhooks] == [("ci", "b", 2)]
        assert fleet.webhooks[0].codes == {"OK": 1, "GVISOR_NOT_AVAILABLE": 1}
        fleet.batch("b").seal()
        assert len(fleet.webhooks) == 1
        fleet.dead.requeue(failed.id)
        assert [told.codes for told in fleet.webhooks[1:]] == [{"OK": 2}]
        fleet.submit_many([HELLO], batch="other")
        assert len(fleet.webhooks) == 2
