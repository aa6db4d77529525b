"""A shell that runs what a page shows, command by command, and compares what it prints."""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import signal
import subprocess
import time
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

PROMPT = "$ "
CONTINUED = "> "
END = "\x1e"
"""Printed after each command, with its exit code."""


class Terminal:
    """One bash for all commands of a page: its folder, variables and jobs stay."""

    def __init__(self, folder: Path, env: dict[str, str]) -> None:
        script, self._commands = os.pipe()
        # Not by stdin, which the commands would read.
        command = ["bash", "--noprofile", "--norc", f"/dev/fd/{script}"]
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            pass_fds=[script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        os.close(script)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._commands)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        with contextlib.suppress(ProcessLookupError):  # what a page left in the background is of its group
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def run(self, command: str, timeout_seconds: float = 60) -> tuple[str, int]:
        """Run one command, and return what it printed, and its exit code."""
        # `(exit N)` gives the next command the same `$?`.
        told = f"{command}\n__code=$?; printf '{END}%d{END}' $__code; (exit $__code)\n"
        os.write(self._commands, told.encode())
        output, code, _ = self._read(timeout_seconds).split(END)
        return output, int(code)

    def _read(self, timeout_seconds: float) -> str:
        """Return all that is printed up to the sign of the end."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + timeout_seconds
        found = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while found.count(END.encode()) < 2:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"no end after {timeout_seconds} s; so far: {found.decode(errors='replace')}")
                if not (more := os.read(self._process.stdout.fileno(), 65536)):
                    raise EOFError(f"the shell ended; it printed: {found.decode(errors='replace')}")
                found += more
        return found.decode(errors="replace")


def split_console(text: str) -> list[tuple[str, str]]:
    """Return each command of a console block with the output that the block shows.

    A command goes on in the lines that begin with `> `, and in all that a backslash, an open quote
    or a here-document needs.
    """
    steps: list[tuple[str, str]] = []
    for line in text.splitlines():
        if line.startswith(PROMPT):
            steps.append((line.removeprefix(PROMPT), ""))
            continue
        assert steps, f"a console block begins with a command after `{PROMPT}`: {line!r}"
        command, output = steps[-1]
        if not output and (line.startswith(CONTINUED) or not _is_whole(command)):
            steps[-1] = (f"{command}\n{line.removeprefix(CONTINUED)}", "")
        else:
            steps[-1] = (command, f"{output}{line}\n")
    return steps


def _is_whole(command: str) -> bool:
    """Whether bash waits for no more of it."""
    done = subprocess.run(["bash", "-n", "-c", command], capture_output=True, check=False)
    return done.returncode == 0 and not done.stderr and not command.endswith("\\")


def is_as_shown(shown: str, printed: str) -> bool:
    """Whether a command printed what a page shows; `...` stands for any text."""
    pattern = "(?s:.*?)".join(re.escape(part) for part in _plain(shown).split("..."))
    return re.fullmatch(pattern, _plain(printed)) is not None


def _plain(text: str) -> str:
    """Return text without blanks at the ends of lines, and without empty lines at its end."""
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip()
