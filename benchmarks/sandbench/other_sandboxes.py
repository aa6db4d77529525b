"""Other sandboxes, where they are installed: Tako VM and temenos, each in its own interpreter.

A driver (`benchmarks/drivers/`) runs under that interpreter and answers one JSON line for each line
it reads.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from sandbench.ways import TAKO, TEMENOS, TEMENOS_EXEC

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbench.programs import Program

DRIVERS = Path(__file__).parents[1] / "drivers"
MODULES = {"tako": "tako_vm", "temenos": "temenos"}
NAMES = {"tako": (TAKO,), "temenos": (TEMENOS, TEMENOS_EXEC)}
STOP_SECONDS = 10.0


class Unusable(Exception):
    """The sandbox cannot run on this machine; the message says why."""


@dataclass
class ForeignWay:
    """Run jobs through a driver, in its `mode`."""

    name: str
    mode: str
    process: subprocess.Popen[str]

    def run(self, program: Program) -> None:
        """Run the program; the driver answers when it and its sandbox, if its own, have ended."""
        answer = ask(self.process, {"mode": self.mode, "command": program.command})
        if answer.get("exit_code") != 0:
            raise RuntimeError(f"{self.name}: {program.name} did not end well: {answer}")


def ask(process: subprocess.Popen[str], question: dict[str, Any]) -> dict[str, Any]:
    """Send one question and return the answer.

    Raises:
        Unusable: the driver says that it cannot, or has ended.
    """
    stdin, stdout = _pipe(process.stdin), _pipe(process.stdout)
    try:
        stdin.write(f"{json.dumps(question)}\n")
        stdin.flush()
        line = stdout.readline()
    except BrokenPipeError:
        line = ""
    answer: dict[str, Any] = json.loads(line) if line else {"unusable": f"the driver ended with {process.wait()}"}
    if "unusable" in answer:
        raise Unusable(answer["unusable"])
    return answer


def _pipe(stream: IO[str] | None) -> IO[str]:
    assert stream is not None  # Popen made both
    return stream


@contextlib.contextmanager
def other_ways(kind: str, python: Path, log_path: Path, absent: dict[str, str]) -> Iterator[list[ForeignWay]]:
    """Start the driver of `kind` under `python`.

    Where it cannot run, `absent` gets the reason, and there are no ways.
    """
    if not _has_module(python, MODULES[kind]):
        absent.update(dict.fromkeys(NAMES[kind], f"not installed (pip install {MODULES[kind].replace('_', '-')})"))
        yield []
        return
    command = ["setpriv", "--pdeathsig", "KILL", "--", str(python), str(DRIVERS / f"{kind}_driver.py")]
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True
        )
    try:
        try:
            modes = ask(process, {"mode": "hello"})["modes"]
        except Unusable as error:
            absent.update(dict.fromkeys(NAMES[kind], str(error)))
            modes = []
        yield [ForeignWay(name, mode, process) for name, mode in zip(NAMES[kind], modes, strict=False)]
    finally:
        with contextlib.suppress(BrokenPipeError):  # what it has not read it never will
            _pipe(process.stdin).close()  # the driver's loop ends with its input
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _pipe(process.stdout).close()


def _has_module(python: Path, module: str) -> bool:
    code = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({module!r}) is None)"
    return subprocess.run([str(python), "-c", code], check=False).returncode == 0
