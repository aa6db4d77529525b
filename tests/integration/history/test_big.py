"""A large history: each question of the pages is answered at once, and counts agree with outcomes.

`make test-big` has a million runs and a batch of 100,000 jobs; else there are fewer, and no clock.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from typing import TYPE_CHECKING, Final

import pytest
from past_questions import QUESTIONS, wanted
from past_rows import new_runs, store_runs
from sandfleet import SandboxSpec
from sandfleet.history.file_history import FileHistory
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Outcome
from sandfleet_config.queues import DEFAULT_QUEUE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from past import Past

ROWS: Final = int(os.environ.get("TEST_HISTORY_ROWS", "5000"))
JOBS: Final = int(os.environ.get("TEST_HISTORY_JOBS", "1000"))
MOST_SECONDS: Final = 0.3
IS_TIMED: Final = ROWS >= 1_000_000


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileHistory]:
    path = tmp_path_factory.mktemp("big") / "history.db"
    store_runs(path, new_runs(ROWS))
    found = FileHistory(path)
    yield found
    found.close()


@pytest.mark.parametrize("name", QUESTIONS)
def test_each_question_of_the_pages_is_answered_at_once(history: FileHistory, name: str) -> None:
    best = float("inf")
    for _ in range(3):
        began = time.perf_counter()
        QUESTIONS[name](history)
        best = min(best, time.perf_counter() - began)
    if IS_TIMED:
        print(f"{name}: {best * 1000:.1f} ms")  # noqa: T201  for `pytest -s`
        assert best < MOST_SECONDS


def test_the_counts_of_a_large_batch_agree_with_its_outcomes(past: Past) -> None:
    chance = random.Random(5)  # noqa: S311  no secret
    codes = (ErrorCode.OK, ErrorCode.OK, ErrorCode.EXIT_NONZERO, ErrorCode.TIMEOUT, ErrorCode.WORKER_LOST)
    handles = past.fleet.submit_many([SandboxSpec(image="python", command=["true"])] * JOBS, batch="large")
    with past.writing():
        for number in range(JOBS):
            claim, _ = past.ledger.claim(f"large-{number}", [DEFAULT_QUEUE])
            assert claim is not None
            assert past.ledger.finish(claim, Outcome.of(chance.choice(codes), claim.job_id, batch="large"))
        past.wait_stored()

    outcomes = Counter(outcome.code.value for outcome in past.fleet.as_completed(handles, timeout=120))
    counts = {group.code: group.count for group in past.history.find_failures(wanted(batch="large"), by="code")}
    (use,) = past.history.find_usage("batch", wanted(batch="large"))
    assert counts | {"OK": use.ok} == outcomes
    assert {"OK": use.ok, **use.failures} == outcomes
    assert past.fleet.batch("large").summary().codes == outcomes
    points = past.history.roll_up("code", since=0, until=time.time() + 60, step_seconds=86400 * 366)
    assert sum((Counter({point.key: point.count}) for point in points), Counter()) == outcomes
    assert past.history.status().lost == 0
