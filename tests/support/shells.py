"""Completion of a command line by a real shell: bash, zsh or fish."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

BIN = Path(sys.executable).parent
SECONDS = 60.0
GOT = "completed:"
_FOUND = re.compile(rf"^{GOT}(.*)\.\r?$", re.MULTILINE)
STARTS = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(sandfleet --show-completion)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -Uz compinit; compinit -u -D; eval "$(sandfleet --show-completion)"'),
}
"""How each shell starts without a person's settings, and how it learns to complete."""
SHELLS = (*STARTS, "fish")


def complete(shell: str, line: str, env: dict[str, str]) -> list[str]:
    """Return the words of `line` once a person has pressed TAB at its end; for fish, all that it offers."""
    known = {**env, "PATH": f"{BIN}:{env['PATH']}", "TERM": "dumb"}
    if shell == "fish":
        script = f"sandfleet --show-completion | source; complete -C '{line}'"
        command = ["fish", "--no-config", "-c", script]
        done = subprocess.run(command, env=known, capture_output=True, text=True, check=True, timeout=SECONDS)
        return [offered.partition("\t")[0] for offered in done.stdout.splitlines()]
    command, learn = STARTS[shell]
    # The line runs this function; the completion itself runs the program.
    shown = f"sandfleet() {{ printf '%s' '{GOT}'; printf ' %s' \"$@\"; echo .; }}"
    return _type(command, f"{learn}\n{shown}\n{line}\t\n", known)


def _type(command: list[str], keys: str, env: dict[str, str]) -> list[str]:
    """Type into a shell on a terminal; return the words that the last line got."""
    screen, keyboard = pty.openpty()
    process = subprocess.Popen(
        command, env=env, stdin=keyboard, stdout=keyboard, stderr=keyboard, start_new_session=True
    )
    os.close(keyboard)
    try:
        os.write(screen, keys.encode())
        printed = ""
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            if select.select([screen], [], [], 0.1)[0]:
                printed += os.read(screen, 65536).decode(errors="replace")
            if (found := _FOUND.search(printed)) is not None:
                return found[1].split()
        raise TimeoutError(f"{command[0]} printed {printed!r}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(screen)
