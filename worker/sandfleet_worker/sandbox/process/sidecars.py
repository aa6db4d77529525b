"""The helper binaries of a runsc: files in `gvisor-bin/` beside it.

Releases since 20260721 start them. They must be of runsc's own release. An incomplete set, or one
of another release, makes every boot fail with a text that names no cause (runsc/gvisorbinaries and
runsc/sandbox/sandbox.go of gVisor 20260905).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet_worker.sandbox.process.runsc import QUIET_FLAG, VERSION_DEADLINE_SECONDS, parse_version

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.process.runsc import RunscBinary

FOLDER = "gvisor-bin"
SENTRY, PREWARMER = "gvisor_sentry", "gvisor-sentry-prewarmer"
OPAQUE_FAILURE = "client sync file"
"""Part of runsc's message when the sandbox process has died before it was up."""


def sidecar_folder(binary: RunscBinary) -> Path:
    """Return the folder of `binary`'s helpers: beside the file itself, not beside a link to it."""
    return Path(binary.path).resolve().parent / FOLDER


def find_sidecar_fault(binary: RunscBinary) -> str:
    """Say why no sandbox can boot with the helpers beside `binary`.

    Empty if they are right, absent, or not used.
    """
    folder = sidecar_folder(binary)
    sentry, prewarmer = folder / SENTRY, folder / PREWARMER
    if QUIET_FLAG not in binary.flags or not folder.is_dir():
        return ""
    if not os.access(sentry, os.X_OK):
        if not prewarmer.exists():
            return ""
        state = "cannot be executed" if sentry.exists() else "is missing"
        return (
            f"{sentry} {state}, but {PREWARMER} beside it needs it: install runsc and {FOLDER} of one release together"
        )
    version = _ask_version(sentry)
    if version != binary.version:
        state = f"is of version {version}" if version else "does not tell its version"
        return f"{sentry} {state}, runsc is {binary.version}: install runsc and {FOLDER} of one release together"
    return ""


def find_closed_path(binary: RunscBinary) -> Path | None:
    """Return the file or folder that is closed to the user nobody; None if there is none.

    With ``--directfs=false`` that user has to execute runsc and its helpers, and read them, too:
    systrap attaches to no process of a file that its user may not read (tried).
    """
    path = Path(binary.path).resolve()
    sentry = sidecar_folder(binary) / SENTRY
    # runsc starts itself as /proc/self/exe, whatever folder it is in, and a helper by its path
    # (tried).
    files, folders = ([path, sentry], list(sentry.parents)) if sentry.exists() else ([path], [])
    closed = [file for file in files if file.stat().st_mode & 0o005 != 0o005]  # noqa: PLR2004  r-x of others
    return next(iter(closed + [folder for folder in folders if not folder.stat().st_mode & 0o001]), None)


def _ask_version(sentry: Path) -> str:
    """Return the version of a helper, empty if it does not say one."""
    try:
        done = subprocess.run(
            [str(sentry), "--version"], capture_output=True, text=True, timeout=VERSION_DEADLINE_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return parse_version(done.stdout)
