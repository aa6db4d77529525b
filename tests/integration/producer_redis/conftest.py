"""A fleet on a Redis without workers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from bare_redis import open_bare_fleet

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis
    from sandfleet import Fleet


@pytest.fixture
def client(redis_server: Any) -> redis.Redis:
    """A client of the fleet's Redis."""
    found: redis.Redis = redis_server.client
    return found


@pytest.fixture
def fleet(redis_server: Any) -> Iterator[Fleet]:
    """A fleet whose jobs wait; they are deleted afterwards."""
    with open_bare_fleet(redis_server) as fleet:
        yield fleet
