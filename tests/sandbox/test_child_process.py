"""Processes that are started by posix_spawn: their ends, and the descriptors of a launcher."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sandfleet_worker.sandbox.process.child_process import ChildProcess


def spawn(script: str) -> ChildProcess:
    return ChildProcess.spawn(["/bin/sh", "-c", script], {"PATH": os.defpath}, [])


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize(("script", "status"), [("exit 3", 3), ("kill -9 $$", -signal.SIGKILL), ("true", 0)])
def test_the_end_of_a_child_is_told_each_time_and_it_is_reaped(script: str, status: int) -> None:
    child = spawn(script)
    assert child.wait(10) == status
    assert is_gone(child.pid)
    child.close()
    child.close()
    assert (child.poll(), child.wait(0)) == (status, status)


def test_a_child_that_does_not_end_is_waited_for_no_longer_than_told() -> None:
    child = spawn("exec sleep 60")
    began = time.monotonic()
    assert child.wait(0.2) is None
    assert 0.15 < time.monotonic() - began < 5
    child.kill()
    assert child.wait(10) == -signal.SIGKILL
    child.kill()  # it is gone: nobody else is killed
    child.close()


def test_a_child_has_its_own_session_and_only_its_environment() -> None:
    read, write = os.pipe()
    script = 'echo "$(ps -o sid= -p $$ | tr -d " ") $$ ${HOME:-none}"'
    child = ChildProcess.spawn(["/bin/sh", "-c", script], {"PATH": os.defpath}, [(os.POSIX_SPAWN_DUP2, write, 1)])
    os.close(write)
    session, pid, home = os.read(read, 100).decode().split()
    os.close(read)
    assert (int(session), int(pid), home) == (child.pid, child.pid, "none")
    assert child.wait(10) == 0
    child.close()


def test_a_program_that_is_missing_is_named() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        ChildProcess.spawn(["/no/such/program"], {}, [])
    assert caught.value.filename == "/no/such/program"


CLOSED_STREAMS = """
import json, os, sys
from sandfleet_config.settings import RunscSettings
from sandfleet_worker.sandbox.process.launcher import Launcher
launcher = Launcher.spawn(RunscSettings(), [])
launcher.begin(["/bin/sh", "-c", "cat; echo told >&2; ls /proc/self/fd | tr '\\\\n' ' '"])
os.write(launcher.pipes.stdin, b"given ")
launcher.pipes.close("stdin")
status = launcher.wait_exit()
texts = [os.read(fd, 1000).decode() for fd in (launcher.pipes.stdout, launcher.pipes.stderr)]
with open(sys.argv[1], "w") as file:
    json.dump((status, texts, list(launcher.passed)), file)
launcher.close()
"""


def test_a_worker_whose_own_streams_are_closed_gives_a_launcher_the_right_ones(tmp_path: Path) -> None:
    # Its pipes get the numbers 0 to 2, which are those of the launcher's own streams.
    script, found = tmp_path / "script.py", tmp_path / "found"
    script.write_text(CLOSED_STREAMS)
    command = f"'{sys.executable}' '{script}' '{found}' <&- >&- 2>&-"
    subprocess.run(["/bin/sh", "-c", command], check=True, timeout=30)
    status, (stdout, stderr), passed = json.loads(found.read_text())
    assert (status, stderr) == (0, "told\n")
    given, *numbers = stdout.split()
    assert given == "given"
    # `ls` has one more, of the folder.
    assert {"0", "1", "2", *map(str, passed)} <= set(numbers)
    assert len(numbers) == len(passed) + 4
