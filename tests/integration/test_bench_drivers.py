"""The benchmark's drivers of other sandboxes, with stand-ins for those sandboxes."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sandbench.other_sandboxes import other_ways
from sandbench.programs import TRUE
from sandbench.queue_way import STAND_IN, queue_way
from sandbench.testbed import new_testbed
from sandbench.ways import TAKO

if TYPE_CHECKING:
    from collections.abc import Callable

    Start = Callable[[int, str | None], tuple[list[str], dict[str, str]]]


TAKO_VM = """
import types

class Sandbox:
    def __enter__(self):
        print("Building executor image")
        return self
    def __exit__(self, *_): pass
    def run(self, code):
        return types.SimpleNamespace(exit_code={code}, error={error!r}, stderr="")
"""


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Start:
    """Return a function that starts the driver over a Tako VM whose runs end so.

    It returns the driver's ways and why it has none.
    """

    def start(code: int, error: str | None) -> tuple[list[str], dict[str, str]]:
        (tmp_path / "tako_vm.py").write_text(TAKO_VM.format(code=code, error=error))
        docker = tmp_path / "docker"
        docker.write_text("#!/bin/sh\n")
        docker.chmod(0o755)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
        absent: dict[str, str] = {}
        with other_ways("tako", Path(sys.executable), tmp_path / "log", absent) as ways:
            return [way.name for way in ways], absent

    return start


def test_tako_is_measured_where_it_runs(told: Start) -> None:
    assert told(0, None) == ([TAKO], {})


@pytest.mark.parametrize(
    ("code", "error", "why"),
    [(125, "no such runtime: runsc\nand more", "no such runtime: runsc"), (3, None, "it ended with 3")],
)
def test_the_reason_is_given_if_tako_does_not_run(told: Start, code: int, error: str | None, why: str) -> None:
    assert told(code, error) == ([], {TAKO: why})


def test_the_worker_without_sandboxes_runs_jobs(images_root: Path) -> None:
    with new_testbed(images_root) as testbed, queue_way(testbed, "stand-in", 2, STAND_IN) as way:
        outcome = way.fleet.submit(TRUE.spec).outcome(20)
    assert (outcome.code, outcome.runtime.version) == ("OK", "stand-in")
