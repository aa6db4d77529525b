"""Live output with a fleet in memory: `job.stream`, `sandfleet logs`, `run --live`, `batch watch`."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING

import pytest
from cli_fleet import new_use
from sandfleet import OutputChunk, OutputNotLive, ResultTimeout, SandboxResult
from sandfleet.cli import main
from sandfleet.cli.batch_lines import BatchLines
from sandfleet.testing.fake_fleet import FakeFleet
from sandfleet.testing.fake_live import FakeLive
from waiting import wait_until

if TYPE_CHECKING:
    from sandfleet import Job

    Capture = pytest.CaptureFixture[str]

LIVE = {"image": "x", "command": ["y"], "output": {"live": True}}


def new_result(stdout: str, stderr: str = "", exit_code: int = 0) -> SandboxResult:
    return SandboxResult(exit_code=exit_code, stdout=stdout, stderr=stderr, duration=0.1)


def write_slowly(fleet: FakeFleet, job_id: str, result: SandboxResult) -> threading.Thread:
    """Let the job write its output in two parts, and end it; in another thread."""

    def write() -> None:
        raw = result.stdout.encode()
        for part in (raw[: len(raw) // 2], raw[len(raw) // 2 :]):
            time.sleep(0.05)
            fleet.write_output(job_id, part)
        time.sleep(0.05)
        fleet.finish(job_id, result)

    thread = threading.Thread(target=write)
    thread.start()
    return thread


def read_async(job: Job) -> list[str]:
    async def read() -> list[str]:
        return [chunk.text async for chunk in job.stream(timeout=5)]

    return asyncio.run(read())


def test_a_stream_comes_while_the_job_runs_and_ends_with_it() -> None:
    fleet = FakeFleet(lambda _: None)
    job = fleet.submit(LIVE)
    assert list(job.stream(follow=False)) == []
    thread = write_slowly(fleet, job.id, new_result("one\ntwo\n", "three\n"))
    chunks = [(chunk.stream, chunk.text) for chunk in job.stream(timeout=5)]
    thread.join()
    assert chunks == [("stdout", "one\n"), ("stdout", "two\n"), ("stderr", "three\n")]
    assert read_async(job) == ["one\n", "two\n", "three\n"]


def test_a_stream_waits_in_an_event_loop() -> None:
    fleet = FakeFleet(lambda _: None)
    job = fleet.submit(LIVE)
    thread = write_slowly(fleet, job.id, new_result("one\ntwo\n"))
    assert read_async(job) == ["one\n", "two\n"]
    thread.join()


def test_a_stream_has_a_timeout_and_needs_a_job_that_asks() -> None:
    fleet = FakeFleet(lambda _: None)
    with pytest.raises(ResultTimeout, match="has not ended in time"):
        list(fleet.submit(LIVE).stream(timeout=0.1))
    with pytest.raises(OutputNotLive, match="submit it with --live"):
        list(fleet.submit({"image": "x"}).stream())


def test_the_streams_of_a_batch_come_together() -> None:
    fleet = FakeFleet(lambda _: None)
    jobs = fleet.submit_many([LIVE, LIVE, {"image": "x"}], batch="b")
    for number, job in enumerate(jobs):
        fleet.write_output(job.id, f"{number}-".encode())
    found: list[tuple[str, OutputChunk]] = []
    for job_id, chunk in fleet.batch("b").stream(timeout=10):
        found.append((job_id, chunk))
        if len(found) == 2:
            for number, job in enumerate(jobs):
                fleet.finish(job.id, new_result(f"{number}-{number}"))
    by_job = {job.id: "".join(chunk.text for job_id, chunk in found if job_id == job.id) for job in jobs}
    assert list(by_job.values()) == ["0-0", "1-1", ""]
    assert list(fleet.batch("b").stream()) == [], "what had ended before does not come"


def test_logs_of_an_ended_job_are_its_output(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    fleet = new_use(monkeypatch)(lambda _: new_result("out\n", "err\n", 3))
    job = fleet.submit({"image": "x"})
    for options in ([], ["-f"]):
        assert main(["logs", *options, job.id]) == 0
        assert capfd.readouterr() == ("out\n", "err\nsandfleet: exit 3\n")


def test_run_live_prints_what_comes_once(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    fleet = new_use(monkeypatch)(lambda _: None)

    def end() -> None:
        while not fleet.job_ids:
            time.sleep(0.01)
        write_slowly(fleet, fleet.job_ids[0], new_result("a\nb\n", "e\n", 4)).join()

    thread = threading.Thread(target=end)
    thread.start()
    assert main(["run", "--live", "--", "x"]) == 4
    thread.join()
    assert fleet.specs[0].output.live
    assert capfd.readouterr() == ("a\nb\n", "e\n")


def test_run_live_prints_the_rest_of_a_stream_that_broke_off(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    fleet = new_use(monkeypatch)(lambda _: new_result("never streamed\n"))
    monkeypatch.setattr(FakeLive, "write_rest", lambda *_: None)
    assert main(["run", "--live", "--", "x"]) == 0
    assert capfd.readouterr() == ("never streamed\n", "")
    assert fleet.specs[0].output.live


def test_batch_watch_prints_lines_under_the_names_of_their_jobs(
    monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    fleet = new_use(monkeypatch)(lambda _: None)
    specs = [LIVE | {"labels": {"name": "steps"}}, LIVE]
    first, second = fleet.submit_many(specs, batch="b")
    has_begun, list_changed = threading.Event(), FakeLive.list_changed

    def list_and_note(live: FakeLive, batch: str, since: float) -> list[tuple[str, float]]:
        found = list_changed(live, batch, since)
        has_begun.set()
        return found

    def write() -> None:
        has_begun.wait(10)  # what has ended before the watch begins is not shown
        for job, result in ((first, new_result("one\ntwo\x1b[1m")), (second, new_result("x\n"))):
            write_slowly(fleet, job.id, result).join()

    monkeypatch.setattr(FakeLive, "list_changed", list_and_note)
    thread = threading.Thread(target=write)
    thread.start()
    assert main(["batch", "watch", "b"]) == 0
    thread.join()
    short = second.id[:8]
    assert sorted(capfd.readouterr().out.splitlines()) == sorted(["steps | one", "steps | two\\x1b[1m", f"{short} | x"])


def test_batch_watch_prints_a_line_that_has_no_end_yet_while_the_batch_runs(
    monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    fleet = new_use(monkeypatch)(lambda _: None)
    (job,) = fleet.submit_many([LIVE | {"labels": {"name": "steps"}}], batch="b")
    fleet.write_output(job.id, b"one\nContinue?")
    thread = threading.Thread(target=main, args=(["batch", "watch", "b"],))
    thread.start()
    shown: list[str] = []

    def is_shown(line: str) -> bool:
        shown.append(capfd.readouterr().out)
        return line in "".join(shown)

    try:
        wait_until(lambda: is_shown("steps | Continue?\n"), 10, "the line is shown")
        assert not job.is_done
        fleet.write_output(job.id, b" yes\ntwo\n")
        wait_until(lambda: is_shown("steps | two\n"), 10, "the next line is shown")
    finally:
        fleet.finish(job.id, new_result("one\nContinue? yes\ntwo\n"))
        thread.join()
    assert "".join(shown).splitlines() == ["steps | one", "steps | Continue?", "steps |  yes", "steps | two"]


def test_lines_without_an_end_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sandfleet.cli.batch_lines.MAX_NAMES", 10)
    printed: list[str] = []
    lines = BatchLines(lambda job_id: job_id, printed.append)
    for number in range(35):
        lines.add(f"job-{number}", OutputChunk("stdout", 0, b"x", "x", 0, 1, 1))
    assert len(printed) >= 25
    lines.finish()
    assert printed == [f"job-{number} | x" for number in range(35)]


def lose_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the last chunks of each stream get lost."""
    monkeypatch.setattr(FakeLive, "write_rest", lambda *_: None)


def test_a_stream_tells_what_is_missing_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    lose_the_end(monkeypatch)
    fleet = FakeFleet(lambda _: None)
    job = fleet.submit(LIVE)
    fleet.write_output(job.id, b"one\n")
    fleet.finish(job.id, new_result("one\ntwo\n", "lost"))
    chunks = [(chunk.stream, chunk.text, chunk.skipped, chunk.end, chunk.attempt) for chunk in job.stream(timeout=5)]
    assert chunks == [("stdout", "one\n", 0, 4, 1), ("stdout", "", 4, 8, 1), ("stderr", "", 4, 4, 1)]
    assert read_async(job) == ["one\n", "", ""]
    gone = fleet.submit(LIVE)
    fleet.finish(gone.id, new_result("all of it"))
    assert [(chunk.text, chunk.skipped) for chunk in gone.stream(timeout=5)] == [("", 9)], "its stream has expired"


def test_the_streams_of_a_batch_tell_what_is_missing_at_their_ends(
    monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    lose_the_end(monkeypatch)
    fleet = new_use(monkeypatch)(lambda _: None)
    ended, running = fleet.submit_many([LIVE | {"labels": {"name": name}} for name in ("ended", "running")], batch="b")
    for job in (ended, running):
        fleet.write_output(job.id, b"one\n")
    fleet.finish(ended.id, new_result("one\ntwo\n"))
    found: list[str] = []

    def print_line(_: object, line: str) -> None:
        found.append(line)
        if len(found) == 1:
            fleet.finish(running.id, new_result("one\ntwo\n"))

    monkeypatch.setattr("sandfleet.cli.progress.Progress.print_line", print_line)
    assert main(["batch", "watch", "b"]) == 0
    assert found == ["running | one", "running | [4 bytes of stdout were skipped]"]
    capfd.readouterr()
