"""Why a prepared spare has died, for people."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prepared_plan import INTERPRETER
from sandfleet_worker.sandbox.process.init_reports import PreparationFailed
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
    cgroup: Any = SimpleNamespace(counters=SimpleNamespace(has_oom_kill=True, count_own_ooms=lambda: 1))
    supervision: Any = SimpleNamespace(kill=None, end=None)
    prepared = PreparedState(INTERPRETER, cgroup, supervision)
    prepared.memory_bytes, prepared.is_up = limit_mib << 20, is_up
    assert advice in explain_failure(supervision, prepared)


@pytest.mark.parametrize("is_up", [False, True])
def test_memory_of_a_parent_cgroup_or_of_the_host_is_not_the_preparations(*, is_up: bool) -> None:
    cgroup: Any = SimpleNamespace(counters=SimpleNamespace(has_oom_kill=True, count_own_ooms=lambda: 0))
    supervision: Any = SimpleNamespace(kill=None, end=PreparationFailed("the interpreter was ended by signal 9"))
    prepared = PreparedState(INTERPRETER, cgroup, supervision)
    prepared.is_up = is_up
    assert prepared.is_host_out_of_memory
    assert explain_failure(supervision, prepared) == "the host, or a cgroup above the sandbox's, ran out of memory"
