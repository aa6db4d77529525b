"""The batch of ``sandfleet-worker local --demo``: jobs of several kinds, to have something to look at."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any, Final

from sandfleet_worker.sandbox.image.store import ImageStore

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BATCH: Final = "demo"
PRODUCER_PACKAGE: Final = "sandfleet"
IMAGES: Final = ("python", "busybox")
"""Starter images with a shell: the first one that is here is taken."""
SUBMIT_SECONDS: Final = 60
GOOD_JOBS: Final = 60
PROGRAMS: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    ("fails", "echo the input has no header >&2; exit 2", {}),
    ("fails", "echo the input has no header >&2; exit 2", {}),
    ("too slow", "sleep 30", {"timeout": 2}),
    ("killed", "kill -9 $$", {}),
    ("hungry", "tail /dev/zero", {"resources": {"memory_bytes": 33_554_432}}),
    ("patient", "sleep 20; echo done", {}),
)
"""Name, shell code and other fields of the jobs among the good ones."""


def new_lines(image: str) -> list[str]:
    """Return the jobs, one JSON spec a line."""
    good: list[tuple[str, str, dict[str, Any]]] = [
        (f"case {number}", f"sleep 0.{number % 10}; echo {number * number}", {}) for number in range(1, GOOD_JOBS + 1)
    ]
    for place, program in enumerate(PROGRAMS):
        good.insert((place + 1) * 9, program)
    return [
        json.dumps(
            {"image": image, "command": ["sh", "-c", code], "timeout": 60, "labels": {"name": name}} | more,
            separators=(",", ":"),
        )
        for name, code, more in good
    ]


def submit_demo(images_root: Path, environment: Mapping[str, str]) -> str:
    """Submit the batch by the `sandfleet` command, if it is installed; return a sentence about it."""
    if importlib.util.find_spec(PRODUCER_PACKAGE) is None:
        return "no demo batch: the package sandfleet, which submits, is not installed"
    present = {image.name for image in ImageStore(images_root).list()}
    image = next((name for name in IMAGES if name in present), None)
    if image is None:
        return f"no demo batch: this host has no image; add one: sandfleet-worker images add {IMAGES[0]}"
    command = [sys.executable, "-m", f"{PRODUCER_PACKAGE}.cli", "submit", "-", "--batch", BATCH]
    text = "".join(f"{line}\n" for line in new_lines(image))
    done = subprocess.run(
        command, input=text, env=dict(environment), capture_output=True, text=True, timeout=SUBMIT_SECONDS, check=False
    )
    if done.returncode:
        return f"no demo batch: {done.stderr.strip()[-300:]}"
    return f"the batch {BATCH} runs: {len(PROGRAMS) + GOOD_JOBS} jobs, some of which fail on purpose"
