"""Programs of the system that tests need."""

from __future__ import annotations

import os
import shutil

import pytest


def find_binary(name: str) -> str:
    """Return where `name` is; without it the test is skipped at home and fails where CI is set."""
    found = shutil.which(name)
    if found is None:
        missing = f"{name} is not installed: scripts/setup.sh installs it"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found
