"""``batch wait --exec``: run a command of the user's once a batch is done."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Final

from sandfleet_config.codes import ErrorCode

from sandfleet.cli.exits import SIGNAL_BASE, SOME_NOT_OK
from sandfleet.cli.show import note

if TYPE_CHECKING:
    from sandfleet.batch import Batch

SHELL: Final = "/bin/sh"


def run_done_command(command: str, batch: Batch, status: int) -> int:
    """Run `command` in a shell; return the exit code of ``batch wait``.

    That is `status` if the command ends with 0.

    It gets the batch's name and counts as variables, and as JSON on stdin.
    """
    codes = batch.codes
    total, ok = sum(codes.values()), codes.get(ErrorCode.OK.value, 0)
    facts = {"BATCH": batch.name, "TOTAL": total, "OK": ok, "NOT_OK": total - ok}
    env = os.environ | {f"SANDFLEET_{name}": str(value) for name, value in facts.items()}
    told = json.dumps({"batch": batch.name, "total": total, "codes": codes})
    ended = subprocess.run([SHELL, "-c", command], input=told.encode(), env=env, check=False).returncode
    if ended == 0:
        return status
    how = f"was killed by signal {-ended}" if ended < 0 else f"ended with exit code {ended}"
    note(f"the command of --exec {how}" + (": the shell did not find it" if ended == SIGNAL_BASE - 1 else ""))
    return status or SOME_NOT_OK
