"""Fleets of one suite of tests: in memory, on Redis with a stand-in worker, with a real worker."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, assert_never
from uuid import uuid4

import redis
from lasting import lasting_keys
from pydantic import SecretStr
from sandfleet import Fleet, Settings
from sandfleet.testing.fake_fleet import FakeFleet
from stand_in import StandIn, play

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Literal, TypeAlias

    import pytest

    Kind: TypeAlias = Literal["fake_fleet", "redis_fleet", "sandbox_fleet"]

FLEETS = ("fake_fleet", "redis_fleet", "sandbox_fleet")
STAND_IN_FLEETS = FLEETS[:2]
"""Fleets whose host can be made to fail, and whose worker serves one queue only."""


@contextmanager
def open_fleet(kind: Kind, request: pytest.FixtureRequest) -> Iterator[Fleet]:
    """Return a fleet of that kind; its Redis and its worker come from fixtures of `request`."""
    match kind:
        case "fake_fleet":
            with FakeFleet(play) as fleet:
                yield fleet
        case "redis_fleet":
            with _open_redis_fleet(request.getfixturevalue("redis_server").url) as fleet:
                yield fleet
        case "sandbox_fleet":
            with Fleet(Settings(redis_url=SecretStr(request.getfixturevalue("module_stage").redis_url))) as fleet:
                yield fleet
        case _:
            assert_never(kind)


@contextmanager
def _open_redis_fleet(server_url: str) -> Iterator[Fleet]:
    """Use a database of its own: the real worker has the other."""
    url = server_url.replace("db=0", "db=1")
    with StandIn(url), Fleet(Settings(redis_url=SecretStr(url))) as fleet:
        yield fleet
    with redis.Redis.from_url(url, protocol=2) as client:
        keys = lasting_keys(client)
        client.flushdb()
    assert keys == []


def unique(name: str) -> str:
    """Return a name that no other test uses."""
    return f"{name}-{uuid4()}"
