"""The hold on a sandbox's kernel: of a real process, which runsc's state names."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from sandfleet_worker.sandbox.process.runsc import SandboxPaths
from sandfleet_worker.sandbox.process.sentry import Sentry
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def paths(tmp_path: Path) -> SandboxPaths:
    return SandboxPaths(tmp_path)


@pytest.fixture
def process(paths: SandboxPaths) -> Iterator[subprocess.Popen[bytes]]:
    """A process that its command line and runsc's state call the sentry of the sandbox."""
    with running_process(f"--root={paths.folder}") as found:
        write_state(paths, found.pid)
        yield found


@contextlib.contextmanager
def running_process(word: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()", word]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as found:
        assert found.stdout is not None
        found.stdout.readline()  # it runs
        try:
            yield found
        finally:
            found.kill()


def write_state(paths: SandboxPaths, pid: int) -> None:
    (paths.folder / "sandbox.state").write_text(json.dumps({"sandbox": {"pid": pid}}))


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (max(int(path.name) for path in Path("/proc/self/fd").iterdir()) + 1, hard)
    )
    opened = []
    try:
        with contextlib.suppress(OSError):
            while True:
                opened.append(os.dup(0))
        yield
    finally:
        for number in opened:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_sentry_is_found_stopped_and_let_go_on(paths: SandboxPaths, process: subprocess.Popen[bytes]) -> None:
    sentry = Sentry.find(paths)
    assert sentry is not None
    try:
        assert sentry.is_stopped is False
        assert sentry.stop() is True
        wait_until(lambda: sentry.is_stopped, 5, "it is stopped")
        assert sentry.resume() is True
        wait_until(lambda: not sentry.is_stopped, 5, "it goes on")
        process.kill()
        process.wait(5)
        assert (sentry.stop(), sentry.resume(), sentry.is_stopped) == (False, False, False)
    finally:
        sentry.close()


def test_a_sandbox_without_a_sentry_of_its_own_has_none(paths: SandboxPaths, process: subprocess.Popen[bytes]) -> None:
    with running_process("--root=/another/sandbox") as other:
        write_state(paths, other.pid)  # a number that another process has got
        assert Sentry.find(paths) is None
    for text in (
        "",
        "{",
        "[]",
        '{"sandbox": {"pid": 0}}',
        '{"sandbox": {"pid": null}}',
        '{"sandbox": {"pid": 99999999}}',
    ):
        (paths.folder / "sandbox.state").write_text(text)
        assert Sentry.find(paths) is None, text
    write_state(paths, process.pid)
    process.kill()
    process.wait(5)
    assert Sentry.find(paths) is None


def test_no_sentry_is_found_without_a_descriptor_for_it(
    paths: SandboxPaths, process: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So the sandbox is given up; an error would end the thread that keeps all of them."""
    with no_descriptor_left():
        assert Sentry.find(paths) is None

    # One descriptor, which another thread takes between the last read and the hold, and a process
    # that ends there.
    for number in (errno.EMFILE, errno.ESRCH):

        def refuse(_pid: int, number: int = number) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("sandfleet_worker.sandbox.process.sentry.os.pidfd_open", refuse)
        assert Sentry.find(paths) is None
    monkeypatch.undo()
    found = Sentry.find(paths)
    assert found is not None
    found.close()
