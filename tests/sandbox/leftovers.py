"""Find what sandboxes have left on this host."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandfleet_config.settings import HostSettings


def left_behind(host: HostSettings) -> list[str]:
    """Return processes, cgroups, mounts and folders of sandboxes below this host's state folder."""
    root = host.runsc.root_dir
    left = [str(path) for path in root.glob("sandfleet-*")]
    left += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(root) in line]
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if str(root) in command and "runsc" in command:
                left.append(command)
    return left
