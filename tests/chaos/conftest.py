"""A fleet of its own for each test."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from havoc import Havoc, new_havoc
from sandfleet_worker.sandbox.image.store import ImageStore

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="session")
def images_root() -> Iterator[Path]:
    """A store with the image `busybox`."""
    for name in ("redis-server", "runsc", "mkfs.erofs", "busybox"):
        if shutil.which(name) is None:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(
                f"{name} is not installed: scripts/setup.sh installs it"
            )
    kept = os.environ.get("TEST_IMAGES_ROOT")
    with tempfile.TemporaryDirectory(prefix="sandfleet-images-") as folder:
        root = Path(kept or folder)
        ImageStore(root).add("busybox")
        yield root


@pytest.fixture
def havoc(images_root: Path) -> Iterator[Havoc]:
    """A fleet to break, workers not started."""
    with new_havoc(images_root) as havoc:
        yield havoc
