"""Tests never run on another runsc than the one that they were told to test."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import releases

if TYPE_CHECKING:
    from pathlib import Path


def test_a_path_that_names_no_runsc_ends_the_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no/runsc", "other"):
        monkeypatch.setenv("SANDFLEET_RUNSC__PATH", str(tmp_path / name))
        with pytest.raises(SystemExit, match="SANDFLEET_RUNSC__PATH="):
            releases.choose_release()


def test_a_runsc_that_is_there_comes_first_on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runsc = tmp_path / "runsc"
    runsc.touch(0o755)
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("SANDFLEET_RUNSC__PATH", str(runsc))
    releases.choose_release()
    assert releases.describe_release() == f"runsc: {runsc}"
