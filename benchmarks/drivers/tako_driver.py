"""Drive Tako VM (PyPI: tako-vm) for the benchmark, under an interpreter that has it.

Imports: stdlib and tako_vm. It runs Python code in containers of a Docker engine, with runsc as the
runtime, and brings its own image.
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
    """Return why it cannot run here."""
    done = subprocess.run(["docker", "info"], capture_output=True, text=True, check=False)
    if done.returncode:
        return f"it needs a Docker engine: {done.stderr.strip().splitlines()[-1]}"
    return None


def try_out(sandbox: Any) -> str | None:
    """Run once and return why it failed: only a run shows whether the engine's runsc works."""
    result = sandbox.run(CODE)
    if result.exit_code == 0:
        return None
    return str(result.error or result.stderr.strip() or f"it ended with {result.exit_code}").splitlines()[0]


def main() -> None:
    """Answer until the input ends."""
    with contextlib.ExitStack() as stack:
        # It prints about its image; our answers are all that may come here.
        answers = sys.stdout
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        sandbox: Any = None
        for line in sys.stdin:
            if json.loads(line)["mode"] == "hello":
                try:
                    obstacle = find_obstacle()
                    if not obstacle:
                        sandbox = stack.enter_context(Sandbox())
                        obstacle = try_out(sandbox)
                except (OSError, RuntimeError) as error:
                    obstacle = str(error).splitlines()[0]
                answer = {"unusable": obstacle} if obstacle else {"modes": ["run"]}
            else:
                answer = {"exit_code": sandbox.run(CODE).exit_code}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
