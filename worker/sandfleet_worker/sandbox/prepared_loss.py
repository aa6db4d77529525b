"""Why a prepared sandbox was lost before its job started, and whether the job is the reason. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandfleet_config.units import format_bytes

from sandfleet_worker.sandbox.process.init_reports import FileFailed, PreparationFailed

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.process.facts import Facts
    from sandfleet_worker.sandbox.process.measurement import Measurement

NO_FOLDER: Final = "the working folder cannot be entered"
"""How the reason of `prepared/bootstrap/main.py` begins if the job names a folder that it cannot enter."""


def may_be_of_job(measured: Measurement) -> bool:
    """Whether the job may be why its prepared sandbox was lost: its files, or its working folder.

    The image's code may say so, too.
    """
    end = measured.facts.end
    is_folder = isinstance(end, PreparationFailed) and end.reason.startswith(NO_FOLDER)
    return measured.is_lost and (is_folder or isinstance(end, FileFailed))


def explain_lost(facts: Facts) -> str:
    """Say why: our kill, no memory, or init's report, with the image's own reason if it gave one."""
    if facts.kill is not None:
        return facts.kill.message
    if facts.counts.oom_kills:
        return f"it ran out of {format_bytes(facts.memory_bytes)} of memory before it was the job"
    match facts.end:
        case None:
            return "it died before it was the job"
        case PreparationFailed(reason=reason):
            return reason or "the interpreter gave no reason"
        case end:
            return f"init could not hand the job over: {end}"
