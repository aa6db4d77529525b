"""Find and remove the cgroups of workers in tests, below a parent cgroup that only tests use."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path("/sys/fs/cgroup")
CGROUP_PARENT = f"sandfleet-test-{os.getpid()}"
"""Of this process's workers; several hosts in one machine add the host's name."""


def find_parents(name: str) -> Iterator[Path]:
    """Yield the folders called `name` of a v2 tree, or of each controller of a v1 tree.

    No walk over the whole tree: what others make and remove there meanwhile would break it.
    """
    yield from ROOT.glob(name)
    yield from ROOT.glob(f"*/{name}")


def find_cgroups(name: str) -> list[str]:
    """Return the cgroups below the parents `name`."""
    return [str(path) for parent in find_parents(name) for path in parent.glob("*") if path.is_dir()]


def remove_parents(name: str) -> None:
    """Remove the parents `name`.

    A parent that has a cgroup below stays; a test has failed for it.
    """
    for parent in find_parents(name):
        with contextlib.suppress(OSError):
            parent.rmdir()
