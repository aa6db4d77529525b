"""Each distribution's wheel holds all that it needs, and its README is what an index would show."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from email import message_from_bytes
from pathlib import Path
from zipfile import ZipFile

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
NAMES = {"config": "sandfleet-config", "producer": "sandfleet", "worker": "sandfleet-worker", "web": "sandfleet-web"}


def run(*command: object, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=200, check=False, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheel of each folder; nothing is downloaded."""
    folder = tmp_path_factory.mktemp("wheels")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", "-q", *options, *(ROOT / name for name in NAMES))
    return {name: next(folder.glob(f"{NAMES[name].replace('-', '_')}-*.whl")) for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_the_readme_of_a_wheel_renders(wheels: dict[str, Path], name: str) -> None:
    with ZipFile(wheels[name]) as wheel:
        (path,) = [path for path in wheel.namelist() if path.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(wheel.read(path))
    assert metadata["Description-Content-Type"] == "text/markdown"
    page = MarkdownIt("commonmark").render(str(metadata.get_payload()))
    assert f"<h1>{NAMES[name]}</h1>" in page
    assert "<pre><code" in page
    assert "```" not in page


def test_wheels_run_in_an_environment_of_their_own(wheels: dict[str, Path], tmp_path: Path) -> None:
    venv.create(tmp_path / "env")
    python = tmp_path / "env/bin/python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", *wheels.values())
    # What they need comes from here; on this path no .pth file counts, so the checkout itself is
    # not seen.
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": sysconfig.get_path("purelib")}
    assert run(tmp_path / "env/bin/sandfleet", "--version", env=env).startswith("sandfleet ")
    assert "notify" in run(tmp_path / "env/bin/sandfleet-web", "--help", env=env)
    assert "doctor" in run(tmp_path / "env/bin/sandfleet-worker", "--help", env=env)
    code = "from sandfleet_worker.sandbox.process.runsc import NATIVE; print(*(NATIVE / n for n in ('init', 'launch')))"
    for path in run(python, "-c", code, env=env).split():
        assert path.startswith(str(tmp_path))
        assert os.access(path, os.X_OK)
