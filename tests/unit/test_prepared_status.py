"""How a worker's prepared starts come from its status to people."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from rows import each_row
from sandfleet.channel.fleet_state import PreparedStarts
from sandfleet.channel.state_values import parse_worker
from sandfleet.overview.fields import host_fields
from sandfleet.overview.hosts import HostState
from sandfleet_worker.host_status import MAX_QUARANTINED, describe_prepared
from sandfleet_worker.sandbox.prepared.use import PreparedUse

if TYPE_CHECKING:
    from sandfleet.channel.fleet_state import WorkerStatus


def parse(status: object) -> WorkerStatus:
    return parse_worker(b"h:1:a", b"99000", json.dumps(status).encode(), b"", 1.0)


def test_a_worker_tells_names_and_never_the_reasons_of_a_quarantine() -> None:
    use = PreparedUse(3, {"command": 1}, {"python:b": "s3cret", "python:a": "s3cret"})
    told = describe_prepared(use)
    assert told == {"prepared": {"starts": 3, "misses": {"command": 1}, "quarantined": ["python:a", "python:b"]}}
    assert parse(told).prepared == PreparedStarts(3, {"command": 1}, ("python:a", "python:b"))
    many = {f"image:{number}": "why" for number in range(50)}
    found: Any = describe_prepared(PreparedUse(0, {}, many))["prepared"]
    assert len(found["quarantined"]) == MAX_QUARANTINED


def test_a_worker_that_nobody_asked_tells_nothing() -> None:
    assert describe_prepared(PreparedUse()) == {}
    assert parse({}).prepared == PreparedStarts()
    assert not str(PreparedStarts())


@each_row(
    "lie",
    [5, [], {"starts": "x"}, {"starts": -1, "misses": [1]}, {"starts": 1e99, "misses": {"a": "b"}, "quarantined": {}}],
)
def test_a_forged_status_counts_as_nothing(lie: object) -> None:
    found = parse({"prepared": lie}).prepared
    assert (found.starts, sum(found.misses.values()), found.quarantined) == (0, 0, ())


def test_a_host_adds_up_its_workers() -> None:
    one = parse({"prepared": {"starts": 3, "misses": {"command": 1}, "quarantined": ["a:b"]}})
    two = parse({"prepared": {"starts": 2, "misses": {"no_spare": 4, "command": 1}, "quarantined": ["a:b"]}})
    host = HostState(name="h", workers=(one, two))
    assert str(host.prepared) == ("5 of 11 jobs that asked; not the others: no_spare 4, command 2; in quarantine: a:b")
    assert host_fields(host)["prepared"] == {
        "starts": 5,
        "misses": {"command": 2, "no_spare": 4},
        "quarantined": ["a:b"],
    }
