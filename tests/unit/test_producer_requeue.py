"""Dead letters that are queued again: the store keeps their inputs."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

from sandfleet.channel.message import new_messages
from sandfleet.channel.overview import NextRun
from sandfleet.channel.records import RunState
from sandfleet.channel.redis_runs import RedisRuns
from sandfleet.submit.check import CheckedJob
from sandfleet.submit.encode import JobEncoder
from sandfleet_config.queues import dead_key
from sandfleet_config.spec import SandboxSpec

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from sandfleet.channel.connection import Connections

ONE, TWO = "1" * 64, "2" * 64


class FakeConnections:
    """Dead letters by key; each run that is asked for is queued, which `log` notes."""

    guard = staticmethod(nullcontext)

    def __init__(self, messages: Mapping[str, object], log: list[object]) -> None:
        self._messages, self._log, self._asked = messages, log, list[str]()

    def new_pipe(self) -> FakeConnections:
        self._asked = []
        return self

    def hget(self, key: str, field: str) -> None:
        assert field == "message"
        self._asked.append(key)

    def get(self, key: str) -> None:
        self._asked.append(key)

    def execute(self, *, raise_on_error: bool) -> list[object]:
        assert not raise_on_error
        return [self._messages.get(key) for key in self._asked]

    def script(self, _: str) -> Any:
        def start(args: list[object]) -> list[bytes]:
            self._log.append("queued")
            return [b"queued"] * ((len(args) - 1) // 4)

        return start


def new_message(**fields: Any) -> bytes:
    encoder = JobEncoder(None, 1 << 20)
    request = encoder.encode(CheckedJob(SandboxSpec(image="x", **fields), ""))
    return new_messages(encoder.name([request]), "q")[0]


def test_the_store_keeps_the_inputs_of_a_job_before_it_is_queued_again() -> None:
    messages = {
        dead_key("a"): new_message(files=[{"path": "a", "sha256": ONE}], stdin={"sha256": TWO}),
        dead_key("b"): new_message(files=[{"path": "a", "sha256": ONE}], queue_ttl=60.0),
        dead_key("c"): new_message(),
        dead_key("d"): b"no job",
        dead_key("e"): TypeError("a key of a wrong type"),
    }
    log: list[object] = []

    def keep(names: Collection[str], queue_ttl: float) -> None:
        log.append((queue_ttl, sorted(names)))

    runs = RedisRuns(cast("Connections", FakeConnections(messages, log)), keep)
    assert runs.start([NextRun(name, 1) for name in "abcdef"], "kept") == [RunState.QUEUED] * 6
    assert log == [(86400.0, [ONE, TWO]), (60.0, [ONE]), "queued"]
