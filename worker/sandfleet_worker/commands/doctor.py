"""``sandfleet-worker doctor``: what this host can and cannot do, with the fix."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Column, Table
from sandfleet_config.errors import SandboxError

from sandfleet_worker.commands.checks import (
    Finding,
    State,
    check_disk,
    check_folder,
    check_limits,
    check_memory,
    check_open_files,
    check_platform,
    check_redis,
    check_runsc,
    check_tools,
)
from sandfleet_worker.commands.image_checks import check_datasets, check_images, check_registries, check_shared
from sandfleet_worker.commands.prepared_checks import check_prepared
from sandfleet_worker.commands.store_checks import check_files
from sandfleet_worker.commands.tuning import check_tuning
from sandfleet_worker.sandbox.runner import RunscRunner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console
    from sandfleet_config.settings import WorkerSettings

PLATFORMS = ("systrap", "ptrace", "kvm")
MARKS = {
    State.OK: "[green]ok[/]",
    State.TIP: "[cyan]tip[/]",
    State.WARNING: "[yellow]warning[/]",
    State.FAILED: "[red]failed[/]",
}


def examine(settings: WorkerSettings) -> Iterator[Finding]:
    """Yield the findings as they are made.

    Booting the platforms takes up to a boot deadline each.
    """
    yield from check_runsc(settings)
    yield from _check_sandboxes(settings)
    yield check_limits(settings)
    yield from check_tools()
    yield check_folder("slots", settings.slots_dir, "SANDFLEET_SLOTS_DIR")
    yield from check_redis(settings)
    yield from check_files(settings)
    yield check_registries(settings.images)
    yield check_shared(settings)
    yield check_disk(settings)
    yield from check_tuning(settings)


def _check_sandboxes(settings: WorkerSettings) -> Iterator[Finding]:
    try:
        runner = RunscRunner(settings)
    except SandboxError as error:
        yield Finding(
            "sandboxes", State.FAILED, error.message, "run as a user who may, or set SANDFLEET_RUNSC__ROOT_DIR"
        )
        return
    try:
        for platform in sorted({*PLATFORMS, settings.runsc.platform}, key=lambda name: name != settings.runsc.platform):
            yield from check_platform(settings, runner, platform)
        yield check_open_files(runner.descriptors, settings.warm.size)
        yield check_memory(runner.memory, settings.policy.memory_bytes)
        yield check_images(runner.images)
        yield from check_prepared(settings, runner.images)
        yield check_datasets(runner)
    finally:
        runner.close()


def report(settings: WorkerSettings, console: Console, *, as_json: bool) -> bool:
    """Print the findings; return whether jobs can run here."""
    findings = list(examine(settings))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2))  # noqa: T201  the command's output
    else:
        # Folded and not cut: people copy it.
        table = Table("what", "state", Column("found", overflow="fold"), Column("fix", overflow="fold"))
        for finding in findings:
            table.add_row(finding.name, MARKS[finding.state], escape(finding.detail), escape(finding.fix))
        console.print(table)
    return all(finding.state is not State.FAILED for finding in findings)
