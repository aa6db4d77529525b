"""Which release of runsc the tests run on.

The one SANDFLEET_RUNSC__PATH names, else what the set-up built, else PATH's.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

GVISOR = Path("/usr/local/lib/sandfleet/gvisor")
"""Where scripts/setup.sh puts the releases."""


def choose_release() -> None:
    """Make `runsc` on PATH the release to test.

    Raises:
        SystemExit: the path that is set names no runsc; another release is never tested instead.
    """
    named = os.environ.pop("SANDFLEET_RUNSC__PATH", None)
    if named is not None and Path(named).name != "runsc":
        msg = f"SANDFLEET_RUNSC__PATH={named}: the tests need a file named runsc, for they find it on PATH"
        raise SystemExit(msg)
    if named is not None and not os.access(named, os.X_OK):
        msg = f"SANDFLEET_RUNSC__PATH={named}: there is no such program"
        raise SystemExit(msg)
    folder = Path(named).absolute().parent if named else GVISOR / "bin"
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"


def describe_release() -> str:
    """Return the line of pytest's header that names it."""
    found = shutil.which("runsc")
    return f"runsc: {Path(found).resolve()}" if found else "runsc: not found"
