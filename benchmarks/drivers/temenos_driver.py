"""Drive temenos (PyPI) for the benchmark, under an interpreter that has it.

Imports: stdlib and temenos. It reads one JSON object a line, and answers with one. Its boxes see
the host's /usr, read-only: they run the host's programs.
"""

from __future__ import annotations

import itertools
import json
import os
from typing import Any, TextIO

from temenos import Box, Policy
from temenos.backends.gvisor import GVisorBackend

# It tries kvm first, which hangs for 30 s where kvm does not work; and both sides shall use the
# same platform.
GVisorBackend._platform_cache = "systrap"  # noqa: SLF001  there is no public way to choose
# No network and no checkpoints, as our jobs have none.
POLICY = Policy(network="none", checkpoint="off")
numbers = itertools.count(1)


def run_in_new_box(command: list[str]) -> dict[str, Any]:
    """Run the command in a new box, as each of our jobs has a new sandbox."""
    with Box(f"bench{next(numbers)}", POLICY) as box:
        return {"exit_code": box.exec(command).exit_code}


def take_stdin() -> TextIO:
    """Return our input, and leave an empty one to the boxes.

    gVisor makes what it inherits non-blocking, for us as well.
    """
    ours = os.fdopen(os.dup(0))
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    return ours


def main() -> None:
    """Answer until the input ends."""
    with take_stdin() as questions, Box("bench-shared", POLICY) as shared:
        for line in questions:
            question = json.loads(line)
            match question["mode"]:
                case "hello":
                    answer: dict[str, Any] = {"modes": ["box", "exec"]}
                case "box":
                    answer = run_in_new_box(question["command"])
                case mode:
                    assert mode == "exec"
                    answer = {"exit_code": shared.exec(question["command"]).exit_code}
            print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
