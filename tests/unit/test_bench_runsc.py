from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest
from sandbench.chosen_runsc import VARIABLE, put_runsc_first

if TYPE_CHECKING:
    from pathlib import Path


def new_binary(folder: Path, name: str) -> Path:
    folder.mkdir()
    binary = folder / name
    binary.write_text("#!/bin/sh\n")
    binary.chmod(0o755)
    return binary


@pytest.fixture(autouse=True)
def two_releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two binaries, of which PATH finds the first; the second one is returned."""
    first = new_binary(tmp_path / "first", "runsc")
    monkeypatch.setenv("PATH", f"{first.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv(VARIABLE, raising=False)
    return new_binary(tmp_path / "second", "runsc")


def test_a_benchmark_uses_the_runsc_of_the_setting(two_releases: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_runsc_first()
    assert shutil.which("runsc") != str(two_releases)
    monkeypatch.setenv(VARIABLE, str(two_releases))
    put_runsc_first()
    assert shutil.which("runsc") == str(two_releases)


def test_a_benchmark_refuses_a_setting_that_it_cannot_follow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tmp_path / "none" / "runsc", new_binary(tmp_path / "third", "other")):
        monkeypatch.setenv(VARIABLE, str(path))
        with pytest.raises(SystemExit, match=f"{VARIABLE}=.*no executable file with the name runsc"):
            put_runsc_first()
