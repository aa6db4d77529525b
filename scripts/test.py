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


class Stream(threading.Thread):
    """Runs pytest once for each release in turn, out of the terminal's reach; `codes` are pytest's. "" is the chosen release."""

    def __init__(self, arguments: list[str], releases: list[str], output: IO[bytes] | None = None) -> None:
        super().__init__(daemon=True)
        self._command = [*PYTEST, *arguments]
        self._releases, self._output = releases, output
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._must_stop = False
        self.codes: list[int] = []
        self.ended = threading.Event()
        """Instead of `join`: in Python 3.11 an interrupt of `join` makes the thread look dead."""

    def run(self) -> None:
        """Run pytest."""
        try:
            self._run()
        finally:
            self.ended.set()

    def _run(self) -> None:
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
                    start_new_session=True,  # one interrupt, from `stop`: a second one would end the clean-up
                )
            self.codes.append(self._process.wait())

    def tell_to_stop(self) -> None:
        """Interrupt pytest."""
        with self._lock:
            self._must_stop = True
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(signal.SIGINT)

    def stop(self) -> None:
        """Wait for the end of a stream that was told to, and kill pytest with its children if it does not end."""
        if not self.ended.wait(END_SECONDS) and self._process is not None:
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
        releases = ["", options.old] if options.old else [""]
        beside = Stream(["-o", "cache_dir=.pytest_cache/releases", *options.tests], releases, output.file)
        rest = Stream([f"--ignore={test}" for test in options.tests], [""])
        streams = (rest, beside)
        try:
            for stream in streams:
                stream.start()
            for stream in streams:
                stream.ended.wait()
        finally:
            for stream in streams:
                stream.tell_to_stop()
            for stream in streams:
                stream.stop()
            output.seek(0)
            sys.stdout.buffer.write(output.read())
            sys.stdout.flush()
    codes = [*rest.codes, *beside.codes]
    return next((code for code in codes if code), 0 if len(codes) == 1 + len(releases) else 1)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
