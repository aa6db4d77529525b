"""The supervisor of a worker's processes, with small programs in their place."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

SUPERVISOR = """
import logging, pathlib, signal, sys
from sandfleet_worker.system import supervisor
from sandfleet_worker.system.children import Child

folder, count, program = pathlib.Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
supervisor.FIRST_BACKOFF_SECONDS, supervisor.REFUSED_BACKOFF_SECONDS = 0.2, 0.4
logging.basicConfig(level="INFO", stream=sys.stderr, format="%(message)s")

def start(number, ready_fd):
    command = ["sh", "-c", program, "sh", str(number), str(ready_fd), str(folder)]
    return Child(f"process {number}", command, {"PATH": "/usr/bin:/bin"}, signal.SIGTERM, pass_fds=[ready_fd])

sys.exit(supervisor.Supervisor(start, count).run())
"""
PROGRAM = """
echo $$ >> $3/pids-$1
[ -e $3/refuse ] && exit 1
trap 'echo TERM >> $3/signals-$1; exit $(cat $3/code-$1 2>/dev/null || echo 0)' TERM
trap 'echo QUIT >> $3/signals-$1; exit 0' QUIT
trap 'echo INT >> $3/signals-$1' INT
[ -e $3/silent ] || echo ready >&$2
eval "exec $2>&-"
while :; do sleep 0.05; done
"""
"""Notes its starts and its signals; says that it is ready unless there is a file `silent`."""


class Supervised:
    """A supervisor as a process of its own."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        with (folder / "log").open("wb") as log:
            command = [sys.executable, "-c", SUPERVISOR, str(folder), str(count), PROGRAM]
            self.process = subprocess.Popen(command, stderr=log, start_new_session=True)

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def pids(self, number: int) -> list[int]:
        """Return the process ids of all children that this number has had."""
        path = self.folder / f"pids-{number}"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def signals(self, number: int) -> list[str]:
        path = self.folder / f"signals-{number}"
        return path.read_text().split() if path.exists() else []

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.log, 20, f"it says {text!r}")

    def wait_ready(self, count: int) -> None:
        self.wait_for(f"all {count} processes are ready")

    def wait_starts(self, number: int, starts: int) -> None:
        wait_until(lambda: len(self.pids(number)) >= starts, 20, f"process {number} is started {starts} times")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for number in range(1, 4):
            wait_until(lambda: not is_alive(self.pids(number)[-1:]), 10, "its children have ended")  # noqa: B023


def is_alive(pids: list[int]) -> bool:
    for pid in pids:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            return True
    return False


@pytest.fixture
def two(tmp_path: Path) -> Iterator[Supervised]:
    """A supervisor of two children, which are ready."""
    found = Supervised(tmp_path, 2)
    try:
        found.wait_ready(2)
        yield found
    finally:
        found.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGQUIT])
def test_a_stop_signal_ends_all_and_the_supervisor_with_0(two: Supervised, number: signal.Signals) -> None:
    two.send(number)

    assert two.process.wait(10) == 0
    assert two.signals(1) == two.signals(2) == [number.name.removeprefix("SIG")]
    assert len(two.pids(1)) == len(two.pids(2)) == 1, "none is started again"


def test_each_signal_is_passed_on_and_it_waits_for_the_last_child(two: Supervised) -> None:
    two.send(signal.SIGINT)
    wait_until(lambda: two.signals(1) == two.signals(2) == ["INT"], 10, "the first is passed on")
    os.kill(two.pids(1)[0], signal.SIGKILL)
    wait_until(lambda: not is_alive(two.pids(1)), 10, "one has ended")
    assert two.process.poll() is None
    two.send(signal.SIGTERM)

    assert two.process.wait(10) == 128 + signal.SIGKILL, "the exit code tells the worst of them"
    assert two.signals(2) == ["INT", "TERM"]


def test_the_exit_code_of_a_child_that_could_not_drain_is_the_supervisors(two: Supervised) -> None:
    (two.folder / "code-2").write_text("70")
    two.send(signal.SIGTERM)

    assert two.process.wait(10) == 70


def test_a_child_that_dies_is_started_again_after_a_growing_pause(two: Supervised) -> None:
    for starts in (1, 2):
        os.kill(two.pids(1)[-1], signal.SIGKILL)
        two.wait_starts(1, starts + 1)
    other = two.pids(2)
    assert len(other) == 1
    assert is_alive(other), "its sibling goes on"
    assert "process 1 has ended with SIGKILL; it is started again in 0 s" in two.log
    two.send(signal.SIGTERM)
    assert two.process.wait(10) == 0


def test_a_child_that_ends_in_order_by_itself_is_started_again(two: Supervised) -> None:
    """As by `Restart=always`: somebody has drained this one process."""
    os.kill(two.pids(2)[0], signal.SIGTERM)
    two.wait_starts(2, 2)
    assert "process 2 has ended with exit code 0" in two.log


def test_a_child_that_refuses_to_start_ends_the_rest(tmp_path: Path) -> None:
    (tmp_path / "refuse").touch()
    found = Supervised(tmp_path, 2)
    try:
        assert found.process.wait(10) == 1
        assert "does not start: the others end, too" in found.log
        assert len(found.pids(1)) <= 1
    finally:
        found.close()


def test_a_child_that_refuses_later_is_tried_again(two: Supervised) -> None:
    (two.folder / "refuse").touch()
    os.kill(two.pids(1)[0], signal.SIGKILL)
    two.wait_for("process 1 has ended with exit code 1")
    (two.folder / "refuse").unlink()
    starts = len(two.pids(1))
    two.wait_starts(1, starts + 1)
    assert is_alive(two.pids(2)[-1:])
    assert two.process.poll() is None


def test_sighup_restarts_one_after_the_other(two: Supervised) -> None:
    (two.folder / "silent").touch()  # the next ones are never ready
    two.send(signal.SIGHUP)
    two.wait_starts(1, 2)
    time.sleep(0.5)
    assert len(two.pids(2)) == 1, "the second waits for the first"
    (two.folder / "silent").unlink()
    os.kill(two.pids(1)[-1], signal.SIGKILL)

    two.wait_starts(2, 2)
    assert two.signals(1) == two.signals(2) == ["TERM"]
    assert not is_alive(two.pids(1)[:1] + two.pids(2)[:1])
    two.send(signal.SIGTERM)
    assert two.process.wait(10) == 0


def test_a_supervisor_that_is_killed_takes_its_children_along_in_order(two: Supervised) -> None:
    two.send(signal.SIGKILL)
    two.process.wait()

    wait_until(lambda: not is_alive(two.pids(1) + two.pids(2)), 10, "the children have ended")
    assert two.signals(1) == two.signals(2) == ["TERM"]
