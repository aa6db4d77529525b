"""`run`, `map`, waits, tables: the fake fleet, Redis with a stand-in worker, a real worker."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
from fleets import STAND_IN_FLEETS, open_fleet, unique
from sandfleet import ErrorCode, Fleet, ResultTimeout, SandboxSpec
from stand_in import EXIT_3, HELLO, LONG

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(params=STAND_IN_FLEETS)
def stand_in_fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with open_fleet(request.param, request) as fleet:
        yield fleet


def spec_of(number: int) -> SandboxSpec:
    return (EXIT_3 if number % 2 else HELLO).model_copy(update={"labels": {"number": str(number)}})


def test_run_returns_the_outcome_and_cancels_when_its_time_is_up(fleet: Fleet) -> None:
    name = unique("run")
    assert fleet.run(HELLO, timeout=30).stdout.text == "hello\n"
    assert asyncio.run(fleet.run_async(EXIT_3, timeout=30)).exit_code == 3
    with pytest.raises(ResultTimeout):
        fleet.run(LONG, timeout=0.5, batch=name)
    assert fleet.batch(name).wait(30) == {"CANCELLED": 1}


@pytest.mark.parametrize("name", [None, "map"])
def test_map_yields_each_item_with_its_outcome(stand_in_fleet: Fleet, name: str | None) -> None:
    fleet, batch = stand_in_fleet, name and unique(name)
    found = dict(fleet.map(spec_of, range(700), batch=batch, ahead=100, timeout=60))
    assert set(found) == set(range(700))
    assert all(outcome.labels == {"number": str(number)} for number, outcome in found.items())
    assert all(outcome.exit_code == number % 2 * 3 for number, outcome in found.items())


def test_map_in_an_event_loop(fleet: Fleet) -> None:
    async def collect() -> dict[int, ErrorCode]:
        stream = fleet.map(spec_of, range(6), batch=unique("map"), ahead=3, timeout=60)
        return {number: outcome.code async for number, outcome in stream}

    codes = asyncio.run(collect())
    assert codes == {number: ErrorCode.EXIT_NONZERO if number % 2 else ErrorCode.OK for number in range(6)}


def test_a_batch_becomes_a_table_in_the_order_of_submit(fleet: Fleet, tmp_path: Path) -> None:
    name = unique("table")
    fleet.submit_many([spec_of(number) for number in range(5)], batch=name)
    batch = fleet.batch(name)
    assert asyncio.run(batch.wait_async(60)) == {"EXIT_NONZERO": 2, "OK": 3}
    assert batch.save_results(tmp_path / "r.jsonl").is_complete
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [row["labels"]["number"] for row in rows] == ["0", "1", "2", "3", "4"]
    assert [row["job_id"] for row in rows] == batch.job_ids
    frame = batch.to_pandas(["labels.number", "exit_code", "stdout"])
    assert list(frame.exit_code) == [0, 3, 0, 3, 0]
    assert frame.stdout[0] == "hello\n"
