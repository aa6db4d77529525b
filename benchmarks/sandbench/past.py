"""Store a history of many ended runs, and ask what the pages ask."""

from __future__ import annotations

import sys
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet.history.file_history import FileHistory

from sandbench.figures import History

if TYPE_CHECKING:
    from sandbench.testbed import Testbed

SUPPORT = Path(__file__).parents[2] / "tests" / "support"
ROUNDS = 3


def measure_history(testbed: Testbed, rows: int) -> History:
    """Make the history, ask each question some times, and return the best times."""
    sys.path.insert(0, str(SUPPORT))
    from past_questions import QUESTIONS
    from past_rows import new_runs, store_runs

    folder = testbed.disk / testbed.new_name("history")
    folder.mkdir()
    path, began = folder / "history.db", time.monotonic()
    store_runs(path, new_runs(rows))
    took, found = time.monotonic() - began, dict[str, float]()
    with closing(FileHistory(path)) as history:
        size = history.status().size_bytes
        for name, ask in QUESTIONS.items():
            times = []
            for _ in range(ROUNDS):
                began = time.perf_counter()
                ask(history)
                times.append(time.perf_counter() - began)
            found[name] = min(times) * 1000
    return History(rows=rows, store_seconds=took, size_bytes=size, ms=found)
