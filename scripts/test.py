"""Run all tests in two streams side by side, since a test waits for most of its time.

    scripts/test.py [--old RUNSC] TEST...

One stream runs the named tests, which depend on runsc, on the chosen release and then on RUNSC. The other runs all the rest, and
is seen as it goes; the first one's output follows. The exit code is that of the first run of pytest that failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import IO, NoReturn

PYTEST = (sys.executable, "-m", "pytest")
END_SECONDS = 60
"""How long tests that are interrupted may take to clean up."""


class ReleaseTests(threading.Thread):
    """The tests that depend on runsc, on one release after the other, out of the terminal's reach; `codes` are pytest's."""

    def __init__(self, tests: list[str], releases: list[str], output: IO[bytes]) -> None:
        super().__init__(name="releases", daemon=True)
        self._command = [*PYTEST, "-o", "cache_dir=.pytest_cache/releases", *tests]
        self._releases, self._output = releases, output
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._must_stop = False
        self.codes: list[int] = []

    def run(self) -> None:
        """Run pytest once for each release; "" is the one that the tests choose."""
        for runsc in self._releases:
            env = os.environ | ({"SANDFLEET_RUNSC__PATH": runsc} if runsc else {})
            with self._lock:
                if self._must_stop:
                    return
                self._process = subprocess.Popen(
                    self._command,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=self._output,
                    stderr=self._output,
                    start_new_session=True,
                )
            self.codes.append(self._process.wait())

    def stop(self) -> None:
        """Interrupt pytest, and kill it with its children if it does not end."""
        with self._lock:
            self._must_stop = True
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(signal.SIGINT)
        self.join(END_SECONDS)
        if self.is_alive() and self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)


def on_signal(number: int, _frame: object) -> NoReturn:
    """End as after an interrupt."""
    raise SystemExit(128 + number)


def main() -> int:
    """Run both streams; return the exit code."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--old", default="", metavar="RUNSC")
    parser.add_argument("tests", nargs="+")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, on_signal)
    with tempfile.NamedTemporaryFile(prefix="sandfleet-tests-") as output:
        print(f"the tests that depend on runsc run beside the others, and print to {output.name} meanwhile", flush=True)
        beside = ReleaseTests(options.tests, ["", options.old] if options.old else [""], output.file)
        beside.start()
        try:
            code = subprocess.call([*PYTEST, *(f"--ignore={test}" for test in options.tests)], stdin=subprocess.DEVNULL)
            beside.join()
        finally:
            beside.stop()
        output.seek(0)
        sys.stdout.buffer.write(output.read())
        sys.stdout.flush()
    return next((found for found in [code, *beside.codes] if found), 0)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
