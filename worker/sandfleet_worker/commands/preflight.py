"""Checks that must pass before a worker takes its first job."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from sandfleet_config.errors import SandboxError

from sandfleet_worker.commands.checks import (
    State,
    check_folder,
    check_memory,
    check_open_files,
    check_redis,
    check_sentry,
)
from sandfleet_worker.commands.failures import PreflightFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_config.settings import WorkerSettings

    from sandfleet_worker.commands.checks import Finding
    from sandfleet_worker.sandbox.runner import RunscRunner

log = logging.getLogger(__name__)


def run_preflight(settings: WorkerSettings, runner: RunscRunner) -> None:
    """Clear what dead workers left, then prove that jobs can run here and outcomes can be kept.

    Raises:
        PreflightFailed: with the first reason and its fix.
    """
    for finding in _facts(settings, runner):
        if finding.state is State.FAILED:
            msg = f"{finding.name}: {finding.detail}\n  fix: {finding.fix}"
            raise PreflightFailed(msg)
        _warn(finding)
    try:
        runner.sweep()
        report = runner.probe()
    except SandboxError as error:
        msg = f"no sandbox runs here: {error}\n  fix: sandfleet-worker doctor shows what this host can do"
        raise PreflightFailed(msg) from error
    _warn(check_sentry(settings, report))
    log.info(
        "a sandbox runs here: runsc %s, %s, up after %.0f ms",
        report.version,
        report.platform,
        report.boot_seconds * 1000,
        extra={"action": "preflight_passed"},
    )


def _warn(finding: Finding) -> None:
    if finding.state is State.WARNING:
        log.warning("%s: %s (%s)", finding.name, finding.detail, finding.fix, extra={"action": "preflight_warning"})


def _facts(settings: WorkerSettings, runner: RunscRunner) -> Iterator[Finding]:
    yield check_open_files(runner.descriptors, settings.warm.size)
    memory = check_memory(runner.memory, settings.policy.memory_bytes)
    log.info("%s: %s", memory.name, memory.detail, extra={"action": "memory_found"})
    yield memory
    yield check_folder("slots", settings.slots_dir, "SANDFLEET_SLOTS_DIR")
    yield from check_redis(settings)
