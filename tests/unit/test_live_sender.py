"""The thread that sends live output: it outlives errors that can pass, and holds up no job."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING, Any, Self

import pytest
import redis
from sandfleet_worker.delivery import live_sender
from sandfleet_worker.delivery.claim import Claim, Flag
from sandfleet_worker.delivery.live_sender import LiveSender
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

CLAIM = Claim("claim", "job", Flag.START, b"")


class RedisOfTest:
    """Takes all output; raises `errors` first, one a call, in the call named `place`."""

    def __init__(self, place: str, errors: list[Exception]) -> None:
        self.place, self.errors = place, errors
        self.sent: list[bytes] = []

    def fail_at(self, place: str) -> None:
        if place == self.place and self.errors:
            raise self.errors.pop(0)

    def script_load(self, _: str) -> str:
        self.fail_at("script_load")
        return "sha"

    def pipeline(self, **_: object) -> RedisOfTest:
        self.fail_at("pipeline")
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def evalsha(self, *args: Any) -> None:
        self.sent += [part for part in args[-1:] if isinstance(part, bytes)]

    def execute(self, **_: object) -> list[object]:
        self.fail_at("execute")
        return [1]

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(live_sender, "GATHER_SECONDS", 0.001)
    yield
    wait_until(lambda: not [one for one in threading.enumerate() if one.name == "live"], 10, "its thread has ended")


def run(place: str, errors: list[Exception]) -> tuple[RedisOfTest, list[str]]:
    """Send output until Redis took some or the thread has failed; return what it told."""
    client, told = RedisOfTest(place, errors), list[str]()
    sender = LiveSender(client, "owner", told.append)  # type: ignore[arg-type]

    def read_claim() -> Claim:
        client.fail_at("claim")
        return CLAIM

    output = sender.open(read_claim)
    keep = output.keep("stdout")

    def print_more() -> bool:
        keep(b"more")
        return (bool(client.sent) and not client.errors) or bool(told)

    wait_until(print_more, 10, "it is sent")
    output.end()
    sender.stop()
    return client, told


def test_the_sender_goes_on_after_errors_that_can_pass() -> None:
    for error in (redis.ConnectionError("gone"), redis.ResponseError("WRONGTYPE"), OSError(errno.EMFILE, "none left")):
        for place in ("claim", "script_load", "pipeline", "execute"):
            client, told = run(place, [error] * 3)
            assert told == [], place
            assert not client.errors, place


def test_an_error_that_cannot_pass_ends_the_worker_and_no_job_waits_for_it() -> None:
    for place in ("claim", "script_load", "pipeline", "execute"):
        _, told = run(place, [KeyError("a bug")])
        assert told == ["the thread live has failed with KeyError"], place
