"""Each kind of fleet in turn: in memory, on Redis with a stand-in worker, with a real worker."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fleets import FLEETS, open_fleet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet import Fleet


@pytest.fixture(params=FLEETS)
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """One fleet; its jobs are gone afterwards."""
    with open_fleet(request.param, request) as fleet:
        yield fleet
