"""How many descriptors a worker needs, and what becomes of a limit that is too low."""

from __future__ import annotations

from pathlib import Path

import pytest
from sandfleet_worker.files.spool import Spool
from sandfleet_worker.system.descriptors import PER_FILES, DescriptorNeed

CONNECTIONS = 2
"""To Redis and to the store."""


@pytest.mark.parametrize("cores", [1, 2, 24, 64])
def test_spares_go_first_where_the_limit_is_low(cores: int) -> None:
    wanted = DescriptorNeed(jobs=cores, boots=2 * cores, spares=2 * cores)
    least = DescriptorNeed(jobs=cores, boots=2 * cores, spares=0).total
    seen = set()
    for limit in range(wanted.total + 50):
        fitting = wanted.fit(limit)
        assert (fitting.jobs, fitting.boots) == (wanted.jobs, wanted.boots)
        assert fitting.total <= limit or (fitting.spares == 0 and limit < least)
        if fitting.spares < wanted.spares:
            assert DescriptorNeed(cores, 2 * cores, fitting.spares + 1).total > limit, "more spares would have fitted"
        seen.add(fitting.spares)
    assert {0, wanted.spares} <= seen


def test_no_spares_are_wanted_where_there_are_none() -> None:
    assert DescriptorNeed(4, 8, 0).fit(10_000).spares == 0
    assert DescriptorNeed(4, 8, 0).fit(10).spares == 0


def test_the_files_that_a_job_has_open_at_once_are_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path, 1 << 20)
    before = count_open()
    with spool.new_job() as job:
        job.open_stream(10)
        job.open_stream(10)
        job.begin("artifact", 10, 0o644)
        assert count_open() - before == PER_FILES - CONNECTIONS
    assert count_open() == before
    spool.close()


def count_open() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())
