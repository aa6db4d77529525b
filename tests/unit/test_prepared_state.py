"""Why a prepared spare has died, for people."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prepared_plan import INTERPRETER
from sandfleet_worker.sandbox.process.prepared_state import PreparedState, explain_failure


@pytest.mark.parametrize(
    ("limit_mib", "is_up", "advice"),
    [
        (256, False, "more memory than 256 MiB: raise SANDFLEET_PREPARED__SPARE_BYTES"),
        (48, False, "more memory than 48 MiB: restart the worker"),
        (48, True, "it grew past 48 MiB of memory while it idled"),
    ],
)
def test_a_preparation_without_enough_memory_names_what_limits_it(limit_mib: int, advice: str, *, is_up: bool) -> None:
    cgroup: Any = SimpleNamespace(counters=SimpleNamespace(has_oom_kill=True))
    supervision: Any = SimpleNamespace(kill=None, end=None)
    prepared = PreparedState(INTERPRETER, cgroup, supervision)
    prepared.memory_bytes, prepared.is_up = limit_mib << 20, is_up
    assert advice in explain_failure(supervision, prepared)
