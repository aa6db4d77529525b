"""Outcomes that a reader drops are freed at once."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import TYPE_CHECKING

import pytest
from sandfleet import ErrorCode, Outcome, SandboxSpec, Settings
from sandfleet.channel.connection import Connections
from sandfleet.channel.outcome_reader import OutcomeReader
from sandfleet.testing.fake_channel import FakeChannel
from sandfleet.testing.fake_fleet import FakeFleet
from stored_outcomes import OK, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class FreshChannel(FakeChannel):
    """Makes outcomes as they are asked for, and notes how many earlier ones somebody still has."""

    most_held = 0

    def outcome_chunks(self, chunks: Iterable[Sequence[str]]) -> Iterator[tuple[Sequence[str], list[Outcome | None]]]:
        made: list[weakref.ref[Outcome]] = []
        for job_ids in chunks:
            self.most_held = max(self.most_held, sum(reference() is not None for reference in made))
            yield job_ids, self._make(job_ids, made)

    @staticmethod
    def _make(job_ids: Sequence[str], made: list[weakref.ref[Outcome]]) -> list[Outcome | None]:
        fresh: list[Outcome | None] = [Outcome.of(ErrorCode.OK, job_id, exit_code=0) for job_id in job_ids]
        made += [weakref.ref(outcome) for outcome in fresh if outcome is not None]
        return fresh


@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize("kind", ["jobs", "jobs of a batch", "batch"])
def test_dropped_outcomes_are_freed_before_more_are_parsed(kind: str, *, is_async: bool) -> None:
    channel = FreshChannel(lambda _: OK)
    fleet = FakeFleet(lambda _: OK)
    fleet._channel = channel
    jobs = fleet.submit_many([SandboxSpec(image="x")] * 450, batch=None if kind == "jobs" else "b")
    stream = fleet.batch("b").as_completed(timeout=20) if kind == "batch" else fleet.as_completed(jobs, timeout=20)

    async def count() -> int:
        return len([outcome.code async for outcome in stream])

    assert (asyncio.run(count()) if is_async else len([outcome.code for outcome in stream])) == 450
    assert channel.most_held <= 1, "the reader's own last one"


def test_the_garbage_collector_does_not_start_for_outcomes_that_are_dropped() -> None:
    reader, raw = OutcomeReader(Connections(Settings())), encode(OK)
    gc.collect()
    before = gc.get_stats()[0]["collections"]
    for _, outcomes in reader._parse(["j1"] * 2000, [raw] * 2000):
        assert len(outcomes) > 1
        del outcomes
    assert gc.get_stats()[0]["collections"] - before <= 1
