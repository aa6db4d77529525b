"""The sentences that stand before an act."""

from __future__ import annotations

from sandfleet.actions.results import QueuePreview


def test_a_count_of_expiring_jobs_that_is_cut_says_so() -> None:
    whole = QueuePreview(queue="rl", waiting=10_000, expire_in_hour=3, expire_in_day=5)
    assert whole.text == "10000 jobs wait in rl; 3 would expire within an hour of pause, 5 within a day"
    cut = QueuePreview(queue="rl", waiting=10_001, expire_in_hour=3, expire_in_day=5)
    assert cut.text.endswith("; of the next 10,000 jobs 3 would expire within an hour of pause, 5 within a day")
