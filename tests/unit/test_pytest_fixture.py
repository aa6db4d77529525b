"""The pytest plugin of the producer's distribution."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from sandfleet import ErrorCode, Fleet, OutOfMemory

if TYPE_CHECKING:
    from pathlib import Path

    from sandfleet.testing import FakeFleet


def grade(seed: int) -> ErrorCode:
    """Stand for the code under test."""
    with Fleet() as fleet:
        return fleet.run({"image": "python", "command": ["solve", str(seed)]}).code


def test_code_that_makes_its_own_fleet_gets_the_fake(fake_fleet: FakeFleet) -> None:
    assert grade(7) is ErrorCode.OK
    assert fake_fleet.specs[0].command == ("solve", "7")


def test_a_handler_says_how_jobs_end(fake_fleet: FakeFleet) -> None:
    fake_fleet.handler = lambda _: OutOfMemory.of("too big")
    assert grade(7) is ErrorCode.OUT_OF_MEMORY


def test_pytest_finds_the_plugin_and_does_not_import_sandfleet_for_it(tmp_path: Path) -> None:
    (found,) = [entry for entry in entry_points(group="pytest11") if entry.name == "sandfleet"]
    assert found.value == "sandfleet_pytest"
    (tmp_path / "test_it.py").write_text(
        "import sys\n"
        "def test_nothing(): assert 'sandfleet' not in sys.modules\n"
        "def test_fake(fake_fleet): assert fake_fleet.run({'image': 'x'}).is_ok\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100, cwd=tmp_path)
    assert done.returncode == 0, done.stdout
