"""Tools that make images die with the worker that started them."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

from sandfleet_worker.sandbox.image import tools

if TYPE_CHECKING:
    from pathlib import Path


def test_a_tool_whose_worker_died_before_it_could_ask_for_a_signal_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    command = [*tools._die_with_parent(), "touch", str(marker)]
    orphan = subprocess.run(["sh", "-c", '"$@"; echo $?', "sh", *command], capture_output=True, text=True, check=True)
    assert (orphan.stdout, marker.exists()) == ("1\n", False), "its parent is not this process any more"
    subprocess.run(command, check=True)
    assert marker.exists()
