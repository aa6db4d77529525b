"""The contracts of the imports hold, and an import that crosses a boundary breaks one."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packages_page import FOLDERS

ROOT = Path(__file__).parents[2]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the contracts of a folder's `pyproject.toml`, as ``make check`` does."""
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache", "--no-logo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A folder with the sources of all packages; what is imported there is found before what is installed."""
    for package, folder in FOLDERS.items():
        shutil.copytree(ROOT / folder / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_no_import_crosses_a_boundary(copy: Path) -> None:
    for folder in (ROOT, copy):
        done = lint_imports(folder)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        (
            "sandfleet/fleet.py",
            "import sandfleet_worker.host_status",
            "Producer and worker meet only in the contract",
        ),
        ("sandfleet_config/units.py", "import sandfleet.errors", "The contract knows neither side"),
        ("sandfleet_worker/host.py", "import sandfleet_web.cli", "Producer and worker do not know the web"),
        ("sandfleet_worker/sandbox/verdict.py", "import redis", "Sandboxes work alone on one machine"),
        ("sandfleet_worker/delivery/lease.py", "import sandfleet_worker.sandbox", "Delivery knows jobs, not sandboxes"),
        ("sandfleet/channel/live.py", "import sandfleet.cli.run", "Layers of the producer"),
        ("sandfleet/files/local.py", "import sandfleet.submit.check", "No import circles"),
        ("sandfleet/newcomer.py", "", "Layers of the producer"),
    ],
)
def test_an_import_that_crosses_a_boundary_is_found(copy: Path, file: str, line: str, contract: str) -> None:
    path = copy / file
    # In a function: such an import counts, too.
    path.write_text(f"{path.read_text() if path.exists() else ''}\n\ndef added() -> None:\n    {line or 'return'}\n")
    done = lint_imports(copy)
    assert done.returncode == 1
    broken = [row for row in done.stdout.splitlines() if row.endswith(" BROKEN") and row.startswith(contract)]
    assert broken, done.stdout + done.stderr
    assert file.removesuffix(".py").replace("/", ".") in done.stdout
