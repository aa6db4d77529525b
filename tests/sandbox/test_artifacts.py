"""Files leave a sandbox after its program's end, of any kind, and never change how it ended."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import HostResources
from sandfleet_worker.sandbox.process import supervision
from sandfleet_worker.sandbox.process.artifacts import ArtifactPattern, CollectLimits
from sandfleet_worker.sandbox.process.cancellation import Cancellation
from sandfleet_worker.sandbox.start_hooks import NoHooks
from test_endings import sentry_of
from transferring import Sink, new_file

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet_worker.sandbox.runner import RunscRunner
    from transferring import Carry

ROUNDS = ("cold", "warm")
MIB = 1 << 20
WHEN = [ArtifactPattern(when, when=when) for when in ("always", "failed", "ok")]
LEAVE = ": >always; : >failed; : >ok"


class EndLater(NoHooks):
    """Ends the job some time after its start."""

    def __init__(self, cancel: Cancellation, code: ErrorCode) -> None:
        self._timer = threading.Timer(1.5, cancel.cancel, (code, "ended from outside"))

    def start(self) -> None:
        self._timer.start()


@pytest.mark.parametrize("is_read_only", [True, False])
def test_what_patterns_name_comes_with_its_mode(carry: Carry, *, is_read_only: bool) -> None:
    script = """
        mkdir -p out/a/b closed; echo 1 >out/1.png; echo 2 >out/a/b/2.png; echo no >out/a/no.txt; echo h >.hidden
        echo secret >closed/f; chmod 400 out/1.png; chmod 000 closed/f closed; : >empty; mkdir out/folder.png
    """
    patterns = ["out/**/*.png", "/work/closed/*", "*", "nothing/*"]
    carried = carry("sh", "-c", script, artifacts=patterns, security={"read_only_rootfs": is_read_only})
    assert carried.outcome.code is ErrorCode.OK, carried.outcome.stderr.text
    assert carried.files == {
        ".hidden": b"h\n",
        "closed/f": b"secret\n",
        "empty": b"",
        "out/1.png": b"1\n",
        "out/a/b/2.png": b"2\n",
    }
    assert (carried.modes["out/1.png"], carried.modes["closed/f"], carried.modes["empty"]) == (0o400, 0, 0o644)
    assert carried.lost == ""
    assert carried.outcome.timing.collect is not None


@pytest.mark.parametrize("kept", ["always", "failed", "ok", None])
def test_a_job_that_leaves_nothing_loses_nothing(carry: Carry, kept: Any) -> None:
    carried = carry("true", artifacts=[] if kept is None else [ArtifactPattern("**", when=kept)])
    assert (carried.outcome.code, carried.files, carried.lost) == (ErrorCode.OK, {}, "")


@pytest.mark.parametrize(
    ("script", "code", "number", "names"),
    [
        (f"{LEAVE}", ErrorCode.OK, None, ["always", "ok"]),
        (f"{LEAVE}; exit 3", ErrorCode.EXIT_NONZERO, None, ["always", "failed"]),
        (f"{LEAVE}; kill -SEGV $$", ErrorCode.SIGNALED, signal.SIGSEGV, ["always", "failed"]),
        (f"{LEAVE}; sleep 100", ErrorCode.TIMEOUT, signal.SIGTERM, ["always", "failed"]),
        (f"trap '' TERM; {LEAVE}; while :; do sleep 1; done", ErrorCode.TIMEOUT, None, ["always", "failed"]),
        (f"{LEAVE}; yes", ErrorCode.OUTPUT_LIMIT, None, ["always", "failed"]),
    ],
)
def test_when_decides_after_each_end(
    carry: Carry, script: str, code: ErrorCode, number: int | None, names: Sequence[str]
) -> None:
    output = {"max_bytes": 1000, "on_limit": "kill"}
    carried = carry("sh", "-c", script, artifacts=WHEN, timeout=1.5, grace=1, output=output)
    assert (carried.outcome.code, carried.outcome.signal) == (code, number)
    assert list(carried.files) == names
    assert carried.lost == ""


def test_a_cancelled_job_is_collected_and_stays_cancelled(carry: Carry) -> None:
    cancel = Cancellation()
    hooks = EndLater(cancel, ErrorCode.CANCELLED)
    carried = carry("sh", "-c", f"{LEAVE}; sleep 100", artifacts=WHEN, cancel=cancel, hooks=hooks, timeout=60)
    assert (carried.outcome.code, carried.outcome.exit_code, carried.outcome.signal) == (
        ErrorCode.CANCELLED,
        None,
        None,
    )
    assert list(carried.files) == ["always", "failed"]


def test_a_worker_that_stops_does_not_wait_for_a_collection(carry: Carry) -> None:
    cancel = Cancellation()
    hooks = EndLater(cancel, ErrorCode.WORKER_LOST)
    carried = carry("sh", "-c", f"{LEAVE}; sleep 100", artifacts=WHEN, cancel=cancel, hooks=hooks, timeout=60)
    assert carried.outcome.code is ErrorCode.WORKER_LOST
    assert (carried.files, carried.lost) == ({}, "the sandbox had gone with the job, and its files with it")


def test_a_sandbox_that_does_not_answer_is_killed_without_its_files(
    carry: Carry, runner: RunscRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "STOP_SECONDS", 1.0)
    cancel = Cancellation()

    def stop() -> None:
        sentry_of(runner).suspend()
        cancel.cancel()

    class StopLater(NoHooks):
        def start(self) -> None:
            threading.Timer(1.5, stop).start()

    carried = carry("sleep", "100", artifacts=["*"], cancel=cancel, hooks=StopLater(), timeout=60)
    assert carried.outcome.code is ErrorCode.CANCELLED
    assert carried.lost == "the sandbox had gone with the job, and its files with it"


def test_files_of_a_job_that_ran_out_of_memory_are_lost_and_told(carry: Carry) -> None:
    script = f"{LEAVE}; dd if=/dev/zero of=/tmp/x bs=1M count=200"
    carried = carry("sh", "-c", script, artifacts=WHEN, resources={"memory_bytes": "64MiB"})
    assert carried.outcome.code is ErrorCode.OUT_OF_MEMORY
    assert carried.lost == "the sandbox had gone with the job, and its files with it: it ran out of memory"


def test_a_program_that_never_started_loses_nothing(carry: Carry) -> None:
    carried = carry("/nothing", files=[new_file("f")], artifacts=["**"])
    assert (carried.outcome.code, carried.files, carried.lost) == (ErrorCode.COMMAND_NOT_FOUND, {}, "")


def test_a_large_file_comes_whole(carry: Carry) -> None:
    data = os.urandom(MIB) * 24
    sink = Sink()
    assert carry("cp", "big", "copy", files=[new_file("big", data)], artifacts=["copy"], sink=sink).lost == ""
    assert hashlib.sha256(sink.files["copy"]).digest() == hashlib.sha256(data).digest()


def test_many_files_come(carry: Carry) -> None:
    script = "i=0; while [ $i -lt 900 ]; do echo $i >f$i; i=$((i+1)); done"
    carried = carry("sh", "-c", script, artifacts=["f*"])
    assert carried.files == {f"f{number}": b"%d\n" % number for number in range(900)}
    assert carried.lost == ""


@pytest.mark.parametrize("exit_code", [0, 3])
@pytest.mark.parametrize(
    ("failure", "lost"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device"),
            "the worker's host cannot keep them: No space left on device",
        ),
        (HostResources.of("the spool is full"), "the spool is full"),
        (ZeroDivisionError(), "a fault in sandfleet itself: see the worker's log"),
    ],
)
def test_a_sink_that_fails_changes_nothing_but_what_is_lost(
    carry: Carry, failure: Exception, lost: str, exit_code: int
) -> None:
    def fail() -> None:
        raise failure

    carried = carry("sh", "-c", f"echo 1 >a; exit {exit_code}", artifacts=["*"], sink=Sink(fail))
    assert carried.outcome.exit_code == exit_code
    assert carried.outcome.code is (ErrorCode.EXIT_NONZERO if exit_code else ErrorCode.OK)
    assert carried.lost.endswith(lost)


def test_a_cancel_ends_the_collection_and_not_the_job(carry: Carry) -> None:
    cancel = Cancellation()

    def end() -> None:
        cancel.cancel()

    script = "dd if=/dev/zero of=big bs=1M count=30; exit 3"
    carried = carry("sh", "-c", script, artifacts=["*"], sink=Sink(end), cancel=cancel)
    assert (carried.outcome.code, carried.outcome.exit_code) == (ErrorCode.EXIT_NONZERO, 3)
    assert carried.lost.startswith("0 of 1 file was collected: the collection was ended")


def test_a_collection_has_a_deadline_of_its_own(carry: Carry) -> None:
    began: list[float] = []

    def wait() -> None:
        began.append(time.monotonic())
        time.sleep(0.3)

    script = "for i in 1 2 3 4 5 6 7 8 9; do dd if=/dev/zero of=f$i bs=64k count=1; done"
    carried = carry("sh", "-c", script, artifacts=["*"], sink=Sink(wait), limits=CollectLimits(seconds=1))
    assert carried.outcome.code is ErrorCode.OK
    assert carried.lost.endswith("of 9 files were collected: the collection took longer than 1 s")
    assert 1 < len(began) < 9


@pytest.mark.parametrize("exit_code", [0, 3])
def test_a_sandbox_that_dies_during_the_collection_loses_files_and_not_the_verdict(
    carry: Carry, runner: RunscRunner, exit_code: int
) -> None:
    carried = carry(
        "sh",
        "-c",
        f"echo 1 >a; dd if=/dev/zero of=big bs=1M count=30; exit {exit_code}",
        artifacts=["*"],
        sink=Sink(lambda: sentry_of(runner).kill()),
    )
    assert carried.outcome.code is (ErrorCode.EXIT_NONZERO if exit_code else ErrorCode.OK)
    assert carried.lost.endswith("of 2 files were collected: the sandbox ended before its files were collected")


def test_output_before_the_end_is_kept_through_the_collection(carry: Carry) -> None:
    carried = carry("sh", "-c", "yes | head -c 900000; echo end >&2; echo 1 >a", artifacts=["a"])
    assert carried.outcome.stdout.total_bytes == 900_000
    assert carried.outcome.stderr.text == "end\n"
    assert list(carried.files) == ["a"]
