"""Names of batches for a shell's TAB, from a real Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bare_redis import SPEC
from sandfleet.cli import completion

if TYPE_CHECKING:
    import pytest
    from sandfleet import Fleet


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
