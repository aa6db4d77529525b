"""The pytest plugin of sandfleet: pytest loads it wherever sandfleet is installed.

It is a package of its own, and imports sandfleet in its fixture only: tests that do not use it pay
nothing, and coverage sees the import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet.testing import FakeChannel, FakeFleet
    from sandfleet_config.settings import Settings


@pytest.fixture
def fake_fleet(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeFleet]:
    """A fleet in memory; each ``Fleet()`` that is made during the test has the same jobs.

    ``fake_fleet.handler = ...`` says how jobs end; by default each exits 0. ``fake_fleet.specs``
    are the specs that were submitted.
    """
    from sandfleet.testing import FakeFleet

    with FakeFleet() as fleet:

        def open_channel(settings: Settings) -> FakeChannel:  # noqa: ARG001  as `RedisChannel`
            return fleet.fake_channel

        monkeypatch.setattr("sandfleet.channel.redis_channel.RedisChannel", open_channel)
        yield fleet
