"""The history file that a process writes or reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandfleet_config.web_settings import DEFAULT_HISTORY, WebSettings

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


def test_the_local_stack_has_a_history_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, local = tmp_path / "state", tmp_path / "local"
    state.mkdir()
    local.mkdir()
    (local / "history.db").symlink_to(state / "history.db")
    monkeypatch.setenv("SANDFLEET_LOCAL_DIR", str(local))
    assert WebSettings().history_file == DEFAULT_HISTORY

    (local / "redis.sock").touch()
    assert WebSettings().history_file == state / "history.db"

    monkeypatch.setenv("SANDFLEET_WEB__HISTORY__FILE", str(tmp_path / "mine.db"))
    assert WebSettings().history_file == tmp_path / "mine.db"

    monkeypatch.delenv("SANDFLEET_WEB__HISTORY__FILE")
    monkeypatch.setenv("SANDFLEET_REDIS_URL", "redis://elsewhere:6379/0")
    assert WebSettings().history_file == DEFAULT_HISTORY
