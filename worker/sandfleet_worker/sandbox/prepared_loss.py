"""Why a prepared sandbox was lost before its job started, and who is to blame. Pure."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final

from sandfleet_config.units import format_bytes

from sandfleet_worker.sandbox.process.init_reports import FileFailed, PreparationFailed
from sandfleet_worker.sandbox.process.prepared_state import HOST_OUT_OF_MEMORY

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.process.facts import Facts

NO_FOLDER: Final = "the working folder cannot be entered"
"""How the reason of `prepared/bootstrap/main.py` begins if the job names a folder that it cannot enter."""


class Blame(Enum):
    """Who is to blame that a prepared sandbox was lost."""

    PREPARATION = auto()
    UNCLEAR = auto()
    """The job's files or its working folder, or the image's code, which may say so, too: another sandbox shows it."""
    HOST = auto()
    """The host's memory, or where the job's files come from."""


def find_blame(facts: Facts) -> Blame:
    """Return who is to blame."""
    if facts.kill is not None:
        return Blame.HOST if facts.kill.is_of_files else Blame.PREPARATION
    if facts.counts.oom_kills:
        return Blame.PREPARATION if facts.counts.own_ooms else Blame.HOST
    is_folder = isinstance(facts.end, PreparationFailed) and facts.end.reason.startswith(NO_FOLDER)
    return Blame.UNCLEAR if is_folder or isinstance(facts.end, FileFailed) else Blame.PREPARATION


def explain_lost(facts: Facts) -> str:
    """Say why: our kill, no memory, or init's report, with the image's own reason if it gave one."""
    if facts.kill is not None:
        return facts.kill.message
    if facts.counts.oom_kills and not facts.counts.own_ooms:
        return HOST_OUT_OF_MEMORY
    if facts.counts.oom_kills:
        return f"it ran out of {format_bytes(facts.memory_bytes)} of memory before it was the job"
    match facts.end:
        case None:
            return "it died before it was the job"
        case PreparationFailed(reason=reason):
            return reason or "the interpreter gave no reason"
        case end:
            return f"init could not hand the job over: {end}"
