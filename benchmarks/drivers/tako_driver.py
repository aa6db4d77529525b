"""Drives Tako VM (PyPI: tako-vm) for the benchmark, under an interpreter that has it; stdlib and tako_vm only.

It runs Python code in containers of a Docker engine, with runsc as the runtime, and brings its own image.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from typing import Any

from tako_vm import Sandbox

# What our programs amount to as Python code: its sandboxes take nothing else.
CODE = "pass"


def find_obstacle() -> str | None:
    """Say why it cannot run here."""
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"it needs a Docker engine: {done.stderr.strip().splitlines()[-1]}"
    return None


def main() -> None:
    """Answer until the input ends."""
    with contextlib.ExitStack() as stack:
        sandbox: Any = None
        for line in sys.stdin:
            if json.loads(line)["mode"] == "hello":
                try:
                    obstacle = find_obstacle()
                    sandbox = None if obstacle else stack.enter_context(Sandbox())
                except (OSError, RuntimeError) as error:
                    obstacle = str(error).splitlines()[0]
                print(json.dumps({"unusable": obstacle} if obstacle else {"modes": ["run"]}), flush=True)
            else:
                print(json.dumps({"exit_code": sandbox.run(CODE).exit_code}), flush=True)


if __name__ == "__main__":
    main()
