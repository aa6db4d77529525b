"""Supervision of a sandbox, with pipes for runsc: what is known of a job's end when it is told."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO

import pytest
from prepared_plan import INTERPRETER, PLAN
from sandfleet_config.outcome import Usage
from sandfleet_config.settings import HostSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.process import preparing
from sandfleet_worker.sandbox.process.artifacts import ArtifactPattern, ArtifactRequest
from sandfleet_worker.sandbox.process.cancellation import Cancellation
from sandfleet_worker.sandbox.process.facts import Facts
from sandfleet_worker.sandbox.process.init_reports import Exited
from sandfleet_worker.sandbox.process.inputs import InputFile
from sandfleet_worker.sandbox.process.measurement import Measurement
from sandfleet_worker.sandbox.process.packed_job import PackedJob, Transfer
from sandfleet_worker.sandbox.process.pipes import Pipes
from sandfleet_worker.sandbox.process.supervision import Supervision

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandfleet_worker.sandbox.process.artifacts import ArtifactSink


class Sandbox:
    """The ends of the pipes that runsc has; it lives until `end`."""

    def __init__(self) -> None:
        self.control, control = os.pipe()
        status, self.status = os.pipe()
        self.stdin, stdin = os.pipe()
        stdout, self.stdout = os.pipe()
        stderr, self.stderr = os.pipe()
        pidfd, self._life = os.pipe()
        pipes = Pipes(control, status, stdin, stdout, stderr)
        for fd in (control, status, stdin, stdout, stderr):
            os.set_blocking(fd, False)
        self._pidfd = pidfd
        self.supervision = Supervision(pipes, pidfd, self.end, self.end)
        self._open = [self.control, self.status, self.stdin, self.stdout, self.stderr, self._life]

    def end(self) -> None:
        """Die, with all that is in it."""
        while self._open:
            os.close(self._open.pop())

    def close(self) -> None:
        self.end()
        self.supervision.close()
        self.supervision.pipes.close_all()
        os.close(self._pidfd)


@pytest.fixture
def sandbox() -> Iterator[Sandbox]:
    opened = Sandbox()
    yield opened
    opened.close()


def new_job(sink: ArtifactSink | None = None) -> PackedJob:
    artifacts = None if sink is None else ArtifactRequest([ArtifactPattern("*")], sink)
    return PackedJob(b"job", "true", 4, Transfer(artifacts=artifacts))


class NoSink:
    def begin(self, path: str, size: int, mode: int) -> None: ...
    def write(self, chunk: bytes) -> None: ...
    def end(self) -> None: ...
    def drop(self) -> None: ...


@pytest.mark.parametrize("sink", [None, NoSink()], ids=["plain", "with artifacts"])
def test_all_that_a_program_wrote_counts_when_its_end_is_known(sandbox: Sandbox, sink: ArtifactSink | None) -> None:
    """The end is seen first by the request to cancel, which came too late."""
    spec = SandboxSpec.model_validate({"image": "python", "output": {"max_bytes": 4096, "on_limit": "kill"}})
    supervision, cancel = sandbox.supervision, Cancellation()
    os.write(sandbox.status, b"R\n")
    supervision.wait_ready()
    wait = supervision._poller.wait

    def wait_and_cancel(timeout_seconds: float | None) -> bool:
        supervision._poller.wait = wait  # type: ignore[method-assign]
        os.write(sandbox.stdout, bytes(5000))
        os.write(sandbox.status, b"S\nE 0 0 1000\n")
        cancel.cancel()
        supervision._on_cancel()
        return True

    supervision._poller.wait = wait_and_cancel  # type: ignore[method-assign]
    supervision.run(new_job(sink), admit(spec, HostSettings()), cancel, None)
    assert (supervision.end, supervision.kill) == (Exited(0, disk_full=False), None)
    assert supervision.is_held is (sink is not None)
    assert supervision.outputs.is_over


def test_a_program_that_starts_at_the_last_moment_is_not_killed(sandbox: Sandbox) -> None:
    supervision = sandbox.supervision
    supervision.begin_boot("systrap", 0.01)
    os.write(sandbox.status, b"R\n")
    supervision.wait_ready()
    wait = supervision._poller.wait
    reports = [b"S\n", b"E 0 0 1000\n"]

    def wait_late(timeout_seconds: float | None) -> bool:
        if len(reports) > 1:  # the thread sleeps past the deadline, and sees the report after it
            time.sleep(0.05)
            os.write(sandbox.status, reports.pop(0))
            return False
        if reports:
            os.write(sandbox.status, reports.pop())
        return wait(timeout_seconds)

    supervision._poller.wait = wait_late  # type: ignore[method-assign]
    spec = SandboxSpec.model_validate({"image": "python"})
    supervision.run(new_job(), admit(spec, HostSettings()), Cancellation(), None)
    assert (supervision.end, supervision.kill) == (Exited(0, disk_full=False), None)


def test_an_interpreter_that_is_prepared_at_the_last_moment_is_not_killed(sandbox: Sandbox) -> None:
    supervision = sandbox.supervision
    supervision.begin_boot("systrap", 30.0, replace(INTERPRETER, seconds=0.01))
    os.write(sandbox.status, b"R\n")
    supervision.poll()
    wait = supervision._poller.wait

    def wait_late(timeout_seconds: float | None) -> bool:
        time.sleep(0.05)  # the thread sleeps past the deadline, and sees the report after it
        os.write(sandbox.status, b"Q\n")
        supervision._poller.wait = wait  # type: ignore[method-assign]
        return False

    supervision._poller.wait = wait_late  # type: ignore[method-assign]
    supervision.poll()
    assert supervision.clock.prepared is not None
    assert supervision.kill is None


def test_a_job_that_is_cancelled_while_its_files_are_written_leaves_no_descriptor(
    sandbox: Sandbox, tmp_path: Path
) -> None:
    source = tmp_path / "input"
    source.write_bytes(bytes(4 << 20))
    opened: list[BinaryIO] = []
    cancel = Cancellation()

    def open_source() -> BinaryIO:
        cancel.cancel()
        opened.append(source.open("rb"))
        return opened[0]

    files = [InputFile("a", 4 << 20, open_source)]
    os.write(sandbox.status, b"R\n")
    limits = admit(SandboxSpec.model_validate({"image": "python"}), HostSettings())
    sandbox.supervision.run(PackedJob(b"job", "true", 4, Transfer(files=files)), limits, cancel, None)
    assert sandbox.supervision.kill is not None
    sandbox.supervision.close()
    assert opened[0].closed


def test_a_prepared_interpreter_that_does_not_take_its_job_is_killed_by_its_own_deadline(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its output ahead of the job is not told."""
    monkeypatch.setattr(preparing, "TAKE_SECONDS", 0.05)
    supervision, job = sandbox.supervision, new_job()
    supervision.begin_boot("systrap", 30.0, INTERPRETER)
    os.write(sandbox.status, b"R\nQ\n")
    os.write(sandbox.stdout, b"ahead")
    limits = admit(SandboxSpec(image="python"), HostSettings())
    supervision.clock.taken = time.monotonic()

    supervision.run(job, limits, Cancellation(), None)

    assert supervision.kill is not None
    assert supervision.kill.message == "the program did not start within 0.05 s of the sandbox being up"
    facts, now = Facts(kill=supervision.kill), time.monotonic()
    measured = Measurement.of(
        supervision,
        facts,
        PLAN,
        usage=Usage(),
        collection=None,
        collected=now,
        removed=now,
        enforced=frozenset(),
        is_warm=True,
        is_prepared=True,
    )
    assert measured.is_lost
    assert (measured.stdout.text, measured.stderr.text) == ("", "")
