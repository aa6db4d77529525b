"""An earlier release of sandfleet: a git worktree of its commit with its own environment."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

ROOT = Path(__file__).parents[2]
PARTS = ("config", "producer", "worker")
BUILD_TOOLS = ("hatchling", "editables")
"""The needs of `pip install --no-build-isolation`; isolation would download it three times."""


class OldReleaseMissing(Exception):
    """The commit is not in this clone, or cannot be installed; the message says what failed."""


@contextmanager
def old_release(commit: str, folder: Path) -> Iterator[Path]:
    """Yield the Python of `commit`, installed below `folder`; at the end git forgets all of it.

    Raises:
        OldReleaseMissing: a step failed.
    """
    tree, environment = folder / "tree", folder / "venv"
    _run(["git", "-C", str(ROOT), "worktree", "add", "--quiet", "--detach", str(tree), commit])
    try:
        _run([sys.executable, "-m", "venv", str(environment)])
        python = environment / "bin/python"
        install = [str(python), "-m", "pip", "install", "-qq", "-c", "constraints.txt"]
        _run([*install, *BUILD_TOOLS], tree)
        _run([*install, "--no-build-isolation", *(word for part in PARTS for word in ("-e", part))], tree)
        _run([str(python), "worker/hatch_build.py"], tree)
        yield python
    finally:
        subprocess.run(["git", "-C", str(ROOT), "worktree", "remove", "--force", str(tree)], check=False)


def _run(command: Sequence[str], folder: Path | None = None) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OldReleaseMissing(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.strip()[-2000:]}")
