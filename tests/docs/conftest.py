"""A running fleet for what the pages show."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from docs_fleet import DocsFleet, run_docs_fleet

if TYPE_CHECKING:
    from collections.abc import Iterator

BINARIES = ("redis-server", "runsc", "mkfs.erofs", "mmdebstrap", "busybox")


@pytest.fixture(scope="module")
def docs_fleet() -> Iterator[DocsFleet]:
    """One Redis and one worker for a module's pages.

    They are gone before tests that look for what is left on the host.
    """
    missing = [name for name in BINARIES if shutil.which(name) is None]
    if missing:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(f"not installed: {', '.join(missing)}")
    # A short path: sockets live below it (unix(7): 107 characters).
    with tempfile.TemporaryDirectory(prefix="sfd-") as folder, run_docs_fleet(Path(folder)) as fleet:
        yield fleet
