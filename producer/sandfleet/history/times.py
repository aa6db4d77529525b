"""How long the runs that match ran and waited: median and 95th percentile, by code."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from sandfleet.history.questions import MAX_TIMED, RunTimes
from sandfleet.history.statements import MILLI, choose_way, list_where

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from sandfleet.history.questions import HistoryFilter

MEDIAN: Final = 0.5
P95: Final = 0.95


def read_times(connection: sqlite3.Connection, wanted: HistoryFilter) -> list[RunTimes]:
    """Return the times of all, then by code, of the newest `MAX_TIMED` runs that match."""
    way = choose_way(connection, wanted)
    terms, values = list_where(connection, wanted, way.seq)
    statement = way.select("r.code, r.run_ms, r.submitted, r.started", terms)
    found = connection.execute(f"{statement} LIMIT ?", (*way.values, *values, MAX_TIMED))
    runs: dict[str, list[int]] = {"": []}
    waits: dict[str, list[int]] = {"": []}
    counts: dict[str, int] = {"": 0}
    for code, run_ms, submitted, started in found:
        for key in ("", code):
            counts[key] = counts.get(key, 0) + 1
            if started:
                runs.setdefault(key, []).append(run_ms)
                if submitted:
                    waits.setdefault(key, []).append(max(0, started - submitted))
    return [new_times(code, count, runs.get(code, []), waits.get(code, [])) for code, count in counts.items()]


def new_times(code: str, count: int, runs: Sequence[int], waits: Sequence[int]) -> RunTimes:
    """Return the times of `count` runs, of which some have started; ms."""
    run, wait = sorted(runs), sorted(waits)
    return RunTimes(
        code=code,
        count=count,
        run_median=find_percentile(run, MEDIAN),
        run_p95=find_percentile(run, P95),
        wait_median=find_percentile(wait, MEDIAN),
        wait_p95=find_percentile(wait, P95),
    )


def find_percentile(ordered: Sequence[int], part: float) -> float | None:
    """Return the least value (s) that at least `part` of the values (ms) do not exceed."""
    return ordered[max(0, math.ceil(part * len(ordered)) - 1)] / MILLI if ordered else None
