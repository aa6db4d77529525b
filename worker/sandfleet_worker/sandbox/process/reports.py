"""Collect the facts of a sandbox that is gone: init's report, the kernel's counters, runsc's messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandfleet_worker.sandbox.process.facts import PANIC_CHARS, Facts
from sandfleet_worker.sandbox.process.init_protocol import Exited
from sandfleet_worker.sandbox.process.runsc import read_head, read_log_errors
from sandfleet_worker.sandbox.process.sidecars import OPAQUE_FAILURE, find_sidecar_fault

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.process.bundle import PackedJob
    from sandfleet_worker.sandbox.process.sandbox import Sandbox

LOG_CHARS = 2000


def collect_facts(sandbox: Sandbox, limits: Admitted, runsc_exit: int | None, job: PackedJob) -> Facts:
    """Return what is known of a sandbox that is gone, for `verdict.decide`."""
    watch = sandbox.supervision
    # Where init has told the end nobody asks runsc: two files less to read.
    runsc_log, panic = ("", "") if watch.end is not None else _read_logs(sandbox)
    return Facts(
        kill=watch.kill,
        timed_out=watch.timed_out,
        is_ready=watch.clock.ready is not None,
        is_started=watch.clock.started is not None,
        end=watch.end,
        counts=sandbox.cgroup.counters.read(),
        is_image_overwritten=_is_image_overwritten(sandbox),
        is_output_over=watch.is_output_over,
        runsc_exit=runsc_exit,
        runsc_log=runsc_log,
        panic=panic,
        platform=sandbox.plan.platform if sandbox.plan else "",
        command=job.command,
        longest_argument_bytes=job.longest_argument_bytes,
        memory_bytes=limits.memory_bytes,
    )


def _is_image_overwritten(sandbox: Sandbox) -> bool:
    """Whether the file that the sandbox runs from was written to; asked only where the job did not end well."""
    end, plan = sandbox.supervision.end, sandbox.plan
    has_ended_well = isinstance(end, Exited) and end.code == 0
    return plan is not None and not has_ended_well and plan.is_overwritten


def _read_logs(sandbox: Sandbox) -> tuple[str, str]:
    """Return what runsc said, in its log or before the program started on stderr, and the start of a panic."""
    watch = sandbox.supervision
    told = watch.boot_stderr.to_output().text
    if watch.clock.started is None and watch.stderr is not watch.boot_stderr:
        told += watch.stderr.to_output().text
    text, panic = read_log_errors(sandbox.paths.log) or told.strip()[-LOG_CHARS:], read_head(sandbox.paths.panic_log)
    if OPAQUE_FAILURE in text and sandbox.plan is not None:
        cause = find_sidecar_fault(sandbox.plan.binary) or panic.strip()[:PANIC_CHARS]
        text = f"{text}; {cause}" if cause else text
    return text, panic
