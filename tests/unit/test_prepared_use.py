"""The counts of prepared starts and misses."""

from __future__ import annotations

import threading

from sandfleet_worker.sandbox.prepared.use import MAX_QUARANTINED, Miss, PreparedCounts


def test_starts_and_misses_are_counted_by_reason() -> None:
    counts = PreparedCounts()
    counts.note_start()
    for reason in (Miss.NO_SPARE, Miss.NO_SPARE, Miss.COMMAND):
        counts.note_miss(reason)
    use = counts.read({"python-data:sci": "no module named x"})
    assert (use.starts, use.misses) == (1, {"no_spare": 2, "command": 1})
    assert use.quarantined == {"python-data:sci": "no module named x"}


def test_no_count_is_lost_among_threads() -> None:
    counts = PreparedCounts()

    def count() -> None:
        for _ in range(500):
            counts.note_miss(Miss.MEMORY)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts.read().misses == {"memory": 2000}


def test_few_of_many_in_quarantine_are_named() -> None:
    many = {f"image:{number}": "why" for number in range(MAX_QUARANTINED + 5)}
    assert len(PreparedCounts().read(many).quarantined) == MAX_QUARANTINED
