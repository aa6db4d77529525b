"""The runsc that all ways of a benchmark use."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

VARIABLE = "SANDFLEET_RUNSC__PATH"


def put_runsc_first() -> None:
    """Put the runsc of SANDFLEET_RUNSC__PATH, if it is set, before others on PATH.

    Bare runsc and stock Celery look for it there, and workers of a benchmark get no settings of the
    caller: without this they would silently measure another release.

    Raises:
        SystemExit: that is no executable file with the name `runsc`.
    """
    named = os.environ.get(VARIABLE)
    if named is None:
        return
    found = shutil.which(named)
    if found is None or Path(found).name != "runsc":
        sys.exit(f"{VARIABLE}={named}: no executable file with the name runsc; a benchmark finds it by PATH")
    os.environ["PATH"] = f"{Path(found).absolute().parent}{os.pathsep}{os.environ['PATH']}"
