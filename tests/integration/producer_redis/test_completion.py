"""A shell's TAB: commands, and names of batches from a real Redis."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from bare_redis import SPEC
from sandfleet.cli import completion
from shells import SHELLS, complete

if TYPE_CHECKING:
    from sandfleet import Fleet


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes_commands_and_names_of_batches(shell: str, fleet: Fleet) -> None:
    if shutil.which(shell) is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"{shell} is not installed")
    for name in ("nightly", "day"):
        fleet.submit_many([SPEC], batch=name)
    env = {**os.environ, "SANDFLEET_REDIS_URL": fleet.settings.redis_dsn}
    assert complete(shell, "sandfleet batch wat", env)[-1] == "watch"
    assert complete(shell, "sandfleet batch show ni", env)[-1] == "nightly"


def test_names_of_batches_are_offered_by_their_beginning(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nightly", "night-1.2", "day"):
        fleet.submit_many([SPEC], batch=name)
    monkeypatch.setenv("SANDFLEET_REDIS_URL", fleet.settings.redis_dsn)
    assert completion.complete_batch("") == ["day", "night-1.2", "nightly"]
    assert completion.complete_batch("night") == ["night-1.2", "nightly"]
    assert completion.complete_batch("night*") == []
    assert completion.complete_batch("x") == []
    monkeypatch.setattr(completion, "MAX_NAMES", 0)
    assert completion.complete_batch("") == []


def test_no_name_is_offered_that_a_shell_would_run_or_split(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDFLEET_REDIS_URL", fleet.settings.redis_dsn)
    for name in (
        "a$(touch x)",
        "a`touch x`",
        "a;ls",
        "a b",
        "a*",
        "a'b",
        'a"b',
        "a\\b",
        "a>b",
        "a|b",
        "a&",
        "~a",
        "-a",
        "ä",
    ):
        fleet.submit_many([SPEC], batch=name)
        assert completion.complete_batch(name[:1]) == []
