"""Waiting for a batch whose jobs are run again meanwhile."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandfleet import ErrorCode, Outcome
from sandfleet.channel.records import BatchState, NewEntries
from sandfleet.collect.stream import BatchStream
from sandfleet.testing.fake_channel import FakeChannel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


class RetriedMeanwhileChannel(FakeChannel):
    """Job j0 is run again while its batch is read: run 2 has ended when run 1 is asked for."""

    def __init__(self) -> None:
        super().__init__(lambda _: None)
        self._states = [
            BatchState(200, 200, entries=[(f"j{number}", 1) for number in range(200)], cursor="1-0"),
            BatchState(200, 200, cursor="2-0"),
        ]

    def read_batch(self, name: str, cursor: str = "", limit: int = 0) -> BatchState:  # noqa: ARG002  the channel's
        return self._states.pop(0)

    def ended_chunks(self, name: str, cursor: str) -> Iterator[NewEntries]:  # noqa: ARG002  the channel's
        yield NewEntries([("j0", 2)], "2-0")

    def outcome_chunks(self, chunks: Iterable[Sequence[str]]) -> Iterator[tuple[Sequence[str], list[Outcome | None]]]:
        """Read the next chunk before the last one is returned, as the channel on Redis does."""
        for job_ids in list(chunks):
            yield job_ids, [Outcome.of(ErrorCode.OK, job_id, run=2 if job_id == "j0" else 1) for job_id in job_ids]


def test_a_run_that_is_found_before_the_list_has_it_comes_once() -> None:
    outcomes = list(BatchStream(RetriedMeanwhileChannel(), "b", 5))
    assert len(outcomes) == len({outcome.job_id for outcome in outcomes}) == 200
