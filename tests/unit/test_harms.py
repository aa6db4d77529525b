"""The rules by which the soak judges its findings."""

from __future__ import annotations

import math
from typing import Any

import growth
from growth import KEYS, RSS, Growth
from harms import Harm, explain


def test_an_attempt_is_explained_by_what_was_done_to_its_worker_meanwhile() -> None:
    killed, frozen = Harm("kill", 7, 10.0), Harm("freeze", 8, 10.0, 12.0)
    attempts = [
        (7, 9.0, 11.0),
        (7, 1.0, 2.0),
        (9, 9.0, 11.0),
        (8, 11.0, 30.0),
        (8, 14.0, 15.0),
        (7, -math.inf, math.inf),
    ]
    assert explain(attempts, [killed, frozen], slack_seconds=1.0) == [1, 2, 4]
    assert explain(attempts, [Harm("disk", None, 0.0, 40.0)], slack_seconds=1.0) == []
    assert explain(attempts, [], slack_seconds=1.0) == list(range(6))


def test_one_fault_explains_no_more_attempts_than_it_can_have_hit() -> None:
    sentry, other = (Harm("sentry", None, at, at, jobs=1) for at in (10.0, 20.0))
    assert explain([(1, 9.0, 11.0), (2, 9.0, 11.0)], [sentry, other], slack_seconds=0) == [1]
    # The first fits both: it moves, so that the second, which fits one, has its own.
    assert explain([(1, 9.0, 21.0), (2, 9.0, 11.0)], [sentry, other], slack_seconds=0) == []
    assert explain([(1, 9.0, 11.0)], [Harm("cut", None, 0.0, 99.0, jobs=0)], slack_seconds=0) == [0]


def test_growth_is_a_late_median_above_the_early_one_by_more_than_a_tenth_and_the_slack() -> None:
    stage: Any = None
    found = Growth(stage)
    found.samples[RSS] = [100.0 * growth.MIB] * 30 + [5.0] * 30 + [123.0 * growth.MIB] * 30
    found.samples[KEYS] = [10.0] * 30 + [9000.0] * 30 + [70.0] * 30
    assert [grown for *_, grown in found.compare()] == [True, False]
    found.samples[KEYS][-30:] = [72.0] * 30
    assert [grown for *_, grown in found.compare()] == [True, True]
    found.samples = {KEYS: [1.0] * 30 + [500.0] * 59}
    assert found.compare() == [], "too few samples tell nothing"
