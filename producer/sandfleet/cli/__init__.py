"""The ``sandfleet`` command."""

from __future__ import annotations

import gc
import sys

from sandfleet_config.collector import skip_last_collection
from sandfleet_config.telemetry import skip_redis_telemetry

COLLECTED_OBJECTS = 200_000
"""New objects between two garbage collections: imports make up to 110,000, and none is garbage."""


def main(argv: list[str] | None = None) -> int:
    """Run the command with `argv`, else with the process's own; return its exit code."""
    words = sys.argv[1:] if argv is None else argv
    if words == ["--version"]:
        from importlib.metadata import version

        print(f"sandfleet {version('sandfleet')}")
        return 0
    if argv is not None:
        return _run(words)
    gc.set_threshold(COLLECTED_OBJECTS)
    skip_redis_telemetry()
    try:
        return _run(words)
    finally:
        # The process ends. Python would look for garbage in all that was imported, several times:
        # an eighth of the CPU of `run`. Files are closed and exit handlers are called all the same.
        skip_last_collection()


def _run(words: list[str]) -> int:
    from sandfleet.cli.commands import run_command

    return run_command(words)
