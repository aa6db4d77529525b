"""The units of deploy/systemd, as systemd itself reads them; tests/vm starts them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from binaries import find_binary
from sandfleet_config.settings import WorkerSettings

FOLDER = Path(__file__).parents[2] / "deploy" / "systemd"
UNITS = {"sandfleet-worker.service": 5.0, "sandfleet-web.service": 1.5}
"""Each unit, and the exposure (0 to 10) that systemd-analyze may find at most."""
NEWER = "Unknown key 'DelegateSubgroup'"
"""A message of systemd before 254."""


def read(name: str) -> dict[str, list[str]]:
    """Return the values of each key, in their order."""
    found: dict[str, list[str]] = {}
    for line in (FOLDER / name).read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_no_fault(name: str, tmp_path: Path) -> None:
    analyze = find_binary("systemd-analyze")
    program = tmp_path / read(name)["ExecStart"][0].split()[0].lstrip("/")
    program.parent.mkdir(parents=True)
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / name
    unit.write_text((FOLDER / name).read_text().replace("ExecStart=/", f"ExecStart={tmp_path}/"))
    done = subprocess.run([analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if NEWER not in line] == []
    assert done.returncode == 0


@pytest.mark.parametrize(("name", "exposure"), UNITS.items())
def test_a_unit_is_as_closed_as_it_was(name: str, exposure: float) -> None:
    command = [find_binary("systemd-analyze"), "security", "--offline=yes", "--no-pager", str(FOLDER / name)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"exposure level for \S+: (\d+\.\d)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) <= exposure


def test_a_stop_leaves_time_to_drain() -> None:
    unit = read("sandfleet-worker.service")
    assert float(unit["TimeoutStopSec"][0]) >= WorkerSettings.model_fields["drain_seconds"].default + 60
    assert unit["KillMode"] == ["mixed"]


@pytest.mark.parametrize("name", UNITS)
def test_passwords_come_from_a_file_and_not_from_the_unit(name: str) -> None:
    unit = read(name)
    assert len(unit["EnvironmentFile"]) == 1
    assert "redis" not in " ".join(unit.get("Environment", [])).lower()


def test_the_history_is_where_the_pages_may_write() -> None:
    unit = read("sandfleet-web.service")
    assert unit["ProtectSystem"] == ["strict"]
    files = [word for word in unit.get("Environment", []) if word.startswith("SANDFLEET_WEB__HISTORY__FILE=")]
    assert files == [f"SANDFLEET_WEB__HISTORY__FILE=/var/lib/{unit['StateDirectory'][0]}/history.sqlite"]
