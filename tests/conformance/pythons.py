"""The Pythons of this machine that can be prepared, and how a case is run by one of them."""

import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from comparing import ENVIRONMENT
from plain_runs import Prepared, Run, run_cold
from programs import Case

IS_WHOLE = os.environ.get("TEST_CONFORMANCE") == "all"
_SYSTEM = Path("/usr/bin/python3")
# What a job's environment shares with the preparation's: fit.py has the rule.
_SHARED = ("PYTHON", "LC_", "LANG", "TZ", "PATH", "HOME")


@dataclass(frozen=True)
class Python:
    """An interpreter and its version."""

    path: Path
    version: tuple[int, int]

    def begin_cold(self, case: Case, folder: Path) -> Callable[[], Run]:
        """Return what runs the case by a new process."""
        return lambda: run_cold(self.path, case.argv, folder, self._environment(case, folder), case.stdin)

    def begin_prepared(self, case: Case, folder: Path) -> Callable[[], Run]:
        """Start an interpreter, and return what lets it run the case."""
        env = self._environment(case, folder)
        shared = {name: value for name, value in env.items() if name.startswith(_SHARED)}
        prepared = Prepared(self.path, shared, case.modules)
        return lambda: prepared.become(case.argv, folder, env, case.stdin)

    def cold(self, case: Case, folder: Path) -> Run:
        """Run the case by a new process."""
        return self.begin_cold(case, folder)()

    def prepared(self, case: Case, folder: Path) -> Run:
        """Run the case by an interpreter that was up before."""
        return self.begin_prepared(case, folder)()

    def runs(self, case: Case) -> bool:
        """Tell whether the case is for this version."""
        return case.since <= self.version < case.before

    def _environment(self, case: Case, folder: Path) -> Mapping[str, str]:
        own = {name: value.replace("{folder}", str(folder)) for name, value in case.env.items()}
        return {**ENVIRONMENT, "PATH": f"{self.path.parent}:/usr/bin:/bin", **own}


@cache
def find_pythons() -> list[Python]:
    """Return the system's Python, and with TEST_CONFORMANCE=all one of each version that pyenv has."""
    paths = [_SYSTEM]
    if IS_WHOLE:
        paths += sorted(Path.home().glob(".pyenv/versions/*/bin/python3"))
    found: dict[tuple[int, int], Python] = {}
    for path in paths:
        answer = subprocess.run(
            [path, "-c", "import sys; print(*sys.version_info[:2])"],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
        major, minor = map(int, answer.stdout.split())
        if (3, 9) <= (major, minor) <= (3, 14):
            found.setdefault((major, minor), Python(path, (major, minor)))
    return list(found.values())
