"""The Python API as people expect it: run, map, print, raise_for_code, and async twins."""

from __future__ import annotations

import asyncio
import inspect
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import sample_program
from sandfleet import (
    Batch,
    ErrorCode,
    ExitNonZero,
    Fleet,
    HostError,
    IdempotencyConflict,
    Job,
    Outcome,
    OutOfMemory,
    QueueFull,
    ResultTimeout,
    SandboxResult,
    SandboxSpec,
    SpecInvalid,
)
from sandfleet.testing import FakeFleet
from sandfleet_config.codes import read_code
from sandfleet_config.outcome import StreamOutput
from sandfleet_config.settings import Settings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sandfleet.testing import Ending

ROOT = Path(__file__).parents[2]


def spec_of(number: int) -> SandboxSpec:
    return SandboxSpec(image="x", command=[str(number)])


def play(spec: SandboxSpec) -> Ending:
    """Exit with the number that is the command."""
    return SandboxResult(exit_code=int(spec.command[0]) % 256, stdout="o", stderr="", duration=0.1)


def hold(_: SandboxSpec) -> None:
    """Leave the job queued."""


def test_run_returns_the_outcome_whatever_its_code() -> None:
    outcome = FakeFleet(play).run(spec_of(3), batch="b")
    assert (outcome.code, outcome.exit_code, outcome.batch) == (ErrorCode.EXIT_NONZERO, 3, "b")


def test_a_run_that_ends_early_cancels_its_job() -> None:
    fleet = FakeFleet(hold)
    with pytest.raises(ResultTimeout):
        fleet.run(spec_of(1), timeout=0.01)
    assert fleet.job(fleet.job_ids[0]).outcome(0).code is ErrorCode.CANCELLED


def test_a_task_that_is_cancelled_while_it_submits_leaves_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, is_queuing = FakeFleet(hold), threading.Event()
    publish = fleet.fake_channel.publish

    def publish_slowly(*args: Any) -> Any:
        is_queuing.set()
        time.sleep(0.1)
        return publish(*args)

    monkeypatch.setattr(fleet.fake_channel, "publish", publish_slowly)

    async def cancel_meanwhile() -> None:
        task = asyncio.create_task(fleet.run_async(spec_of(1)))
        await asyncio.to_thread(is_queuing.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_meanwhile())
    assert fleet.job(fleet.job_ids[0]).outcome(0).code is ErrorCode.CANCELLED


def test_a_cancelled_task_cancels_its_job() -> None:
    fleet = FakeFleet(hold)

    async def cancel_soon() -> None:
        task = asyncio.create_task(fleet.run_async(spec_of(1)))
        while not fleet.job_ids:  # noqa: ASYNC110  the fake has no event
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel_soon())
    assert fleet.job(fleet.job_ids[0]).outcome(0).code is ErrorCode.CANCELLED


def test_a_thousand_waits_of_an_event_loop_need_no_thread_each() -> None:
    fleet = FakeFleet(hold)

    async def wait_for_all() -> int:
        tasks = [asyncio.create_task(fleet.run_async(spec_of(number))) for number in range(1000)]
        while len(fleet.job_ids) < 1000:  # noqa: ASYNC110  likewise
            await asyncio.sleep(0.01)
        threads = threading.active_count()
        for job_id in fleet.job_ids:
            fleet.finish(job_id, play(spec_of(0)))
        assert {outcome.code for outcome in await asyncio.gather(*tasks)} == {ErrorCode.OK}
        return threads

    assert asyncio.run(wait_for_all()) < 50


@pytest.mark.parametrize("batch", [None, "b"])
@pytest.mark.parametrize("ahead", [1, 2, 300, 5000])
def test_map_yields_each_item_with_its_outcome(batch: str | None, ahead: int) -> None:
    fleet = FakeFleet(play)
    found = list(fleet.map(spec_of, range(700), batch=batch, ahead=ahead))
    assert sorted(item for item, _ in found) == list(range(700))
    assert all(outcome.exit_code == item % 256 for item, outcome in found)
    if batch:
        assert fleet.batch("b").is_sealed


@pytest.mark.parametrize("batch", [None, "b"])
def test_map_looks_no_further_ahead_than_asked(batch: str | None) -> None:
    fleet, seen = FakeFleet(hold), 0

    def finish(number: int) -> None:
        fleet.finish(fleet.job_ids[number], play(spec_of(0)))

    stream = iter(fleet.map(spec_of, iter(range(10**9)), batch=batch, ahead=10))
    threading.Timer(0.2, finish, [3]).start()
    assert next(stream)[0] == 3
    assert len(fleet.job_ids) == 10
    for number in (0, 1, 2, 4, 5):
        finish(number)
    for _ in range(5):
        seen += next(stream)[0]
    assert seen == 12
    assert len(fleet.job_ids) <= 16


def test_equal_items_and_jobs_of_one_key_come_each() -> None:
    fleet = FakeFleet(play)
    keyed = SandboxSpec(image="x", command=["1"], idempotency_key="k")
    assert [item for item, _ in fleet.map(lambda _: keyed, ["a", "b", "a"])] == ["a", "b", "a"]
    assert len(fleet.job_ids) == 1


def test_an_idempotent_map_finds_its_jobs_again() -> None:
    fleet = FakeFleet(play)
    stream = iter(fleet.map(spec_of, range(50), batch="b", ahead=10, idempotent=True))
    first = [next(stream) for _ in range(5)]
    again = dict(fleet.map(spec_of, range(50), batch="b", ahead=10, idempotent=True))
    assert len(fleet.job_ids) == len(again) == 50
    assert all(again[item].job_id == outcome.job_id for item, outcome in first)
    with pytest.raises(IdempotencyConflict):
        list(fleet.map(lambda number: spec_of(number + 1), range(5), batch="b", idempotent=True))
    with pytest.raises(ValueError, match="needs a batch"):
        fleet.map(spec_of, [1], idempotent=True)
    with pytest.raises(ValueError, match="1 or more"):
        fleet.map(spec_of, [1], ahead=0)


def test_a_faulty_item_is_told_with_its_number_and_the_jobs_under_way() -> None:
    fleet = FakeFleet(hold)
    with pytest.raises(SpecInvalid) as caught:
        list(fleet.map(lambda number: {"image": "x" if number < 600 else ""}, range(700), ahead=1000))
    assert caught.value.errors[0]["field"] == "specs[600].image"
    assert set(fleet.job_ids) <= set(caught.value.job_ids)
    assert len(fleet.job_ids) == 600


def test_map_waits_for_its_own_jobs_while_the_queue_is_full() -> None:
    fleet = FakeFleet(hold, settings=Settings(max_queued=4))

    is_over = threading.Event()

    def finish_all() -> None:
        while not is_over.wait(0.02):
            for job_id in fleet.job_ids:
                fleet.finish(job_id, play(spec_of(0)))

    thread = threading.Thread(target=finish_all)
    thread.start()
    assert sorted(item for item, _ in fleet.map(spec_of, range(12))) == list(range(12))
    is_over.set()
    thread.join()
    fleet.submit_many([spec_of(0)] * 4)
    with pytest.raises(QueueFull):
        list(fleet.map(spec_of, range(4)))


def test_a_map_may_take_asynchronous_items() -> None:
    fleet = FakeFleet(play)

    async def count_up() -> AsyncIterator[int]:
        for number in range(40):
            await asyncio.sleep(0)
            yield number

    async def collect() -> list[int]:
        return [item async for item, _ in fleet.map(spec_of, count_up(), batch="b", ahead=7)]

    assert sorted(asyncio.run(collect())) == list(range(40))
    with pytest.raises(TypeError, match="use async for"):
        list(fleet.map(spec_of, count_up()))


def test_an_error_of_the_items_comes_through() -> None:
    def fail() -> Iterator[int]:
        yield 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(FakeFleet(play).map(spec_of, fail()))


def test_printing_an_outcome_shows_code_exit_and_the_ends_of_the_outputs() -> None:
    text = "\n".join(f"line {number}" for number in range(30)) + "\n"
    outcome = Outcome.of(ErrorCode.EXIT_NONZERO, "j1", exit_code=3, duration=0.5, stdout=StreamOutput.of(text.encode()))
    assert str(outcome).splitlines() == [
        "job j1: exit 3 (0.500 s)",
        f"stdout: {len(text)} bytes",
        "...",
        *(f"line {number}" for number in range(20, 30)),
        "stderr: empty",
    ]
    killed = Outcome.of(
        ErrorCode.OUT_OF_MEMORY, "j2", "above 64 MiB", signal=9, stderr=StreamOutput.of(b"\x1b[2J", 900)
    )
    assert (
        str(killed)
        == "job j2: OUT_OF_MEMORY: above 64 MiB (signal 9)\nstdout: empty\nstderr: 900 bytes, 4 kept\n\\x1b[2J"
    )
    assert "line 29" not in repr(outcome)


def test_raise_for_code_raises_for_every_code_but_ok() -> None:
    outcome = FakeFleet(play).run(spec_of(0))
    assert outcome.raise_for_code() is outcome
    with pytest.raises(ExitNonZero) as caught:
        FakeFleet(play).run(spec_of(3)).raise_for_code()
    assert caught.value.outcome is not None
    assert caught.value.outcome.exit_code == 3
    for code in set(ErrorCode) - {ErrorCode.OK}:
        with pytest.raises(Exception, match=code.value):
            Outcome.of(code, "j", "said").raise_for_code()
    with pytest.raises(HostError, match="NEW_CODE: said"):
        Outcome.of(read_code("NEW_CODE", "host", True), "j", "said").raise_for_code()
    with pytest.raises(OutOfMemory, match="64"):
        Outcome.of(ErrorCode.OUT_OF_MEMORY, "j", "above 64 MiB").raise_for_code()


def test_a_batch_is_waited_for_by_its_counts() -> None:
    fleet = FakeFleet(hold)
    fleet.submit_many([spec_of(0)] * 3, batch="b")
    batch, counts = fleet.batch("b"), []
    with pytest.raises(ResultTimeout, match="3 of 3 jobs of batch b have not ended in time"):
        batch.wait(0.01)

    def finish() -> None:
        for job_id in fleet.job_ids:
            fleet.finish(job_id, play(spec_of(1)))

    threading.Timer(0.2, finish).start()
    assert batch.wait(10, on_counts=lambda state: counts.append(state.ended)) == {"EXIT_NONZERO": 3}
    assert (counts[0], counts[-1]) == (0, 3)
    assert asyncio.run(batch.wait_async(10)) == {"EXIT_NONZERO": 3}


@pytest.mark.parametrize("owner", [Fleet, Batch, Job])
def test_each_call_that_asks_the_fleet_has_an_async_twin(owner: type[Any]) -> None:
    names = {name for name, _ in inspect.getmembers(owner, callable) if not name.startswith("_")}
    twins = {name for name in names if name.endswith("_async")}
    both_ways = {"as_completed", "stream", "map", "rows", "table", "submit_chunks", "submit_portions"}
    pages = {"batches", "find_jobs", "iter_ids", "find_open", "open_jobs"}  # iterators that read Redis page by page
    local = {"artifacts_of", "explain_no_claims", "close", "new_encoders", "new_retry", "operator"}
    assert {name for name in names - twins - both_ways - pages - local if f"{name}_async" not in twins} == set()
    assert all(inspect.getdoc(getattr(owner, name)) for name in twins)


def test_a_wait_in_an_event_loop_ends_with_the_job_or_its_cancel() -> None:
    fleet = FakeFleet(hold)
    job, cancel = fleet.submit(spec_of(0)), threading.Event()
    with pytest.raises(ResultTimeout):
        asyncio.run(job.wait_async(0.01))
    threading.Timer(0.2, cancel.set).start()
    assert asyncio.run(job.wait_async(10, cancel)) is None
    assert not job.is_done
    threading.Timer(0.2, fleet.finish, (job.id, play(spec_of(1)))).start()
    outcome = asyncio.run(job.wait_async(10, threading.Event()))
    assert outcome is not None
    assert outcome.code is ErrorCode.EXIT_NONZERO


def test_a_stream_of_a_batch_in_an_event_loop_ends_with_its_cancel() -> None:
    fleet = FakeFleet(hold)
    (job,) = fleet.submit_many([{"image": "x", "output": {"live": True}}], batch="b")
    fleet.write_output(job.id, b"one")
    cancel = threading.Event()

    async def read() -> list[str]:
        return [chunk.text async for _, chunk in fleet.batch("b").stream(10, cancel=cancel)]

    threading.Timer(0.3, cancel.set).start()
    assert asyncio.run(read()) == ["one"]


def test_the_sample_program_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fleet = FakeFleet(lambda _: SandboxResult(exit_code=0, stdout="42\n", stderr="", duration=0.1))
    assert sample_program.run_one(fleet) == "42\n"
    assert "stdout: 3 bytes\n42\n" in capsys.readouterr().out
    assert sample_program.count_codes(fleet) == Counter({ErrorCode.OK: 100})
    assert sample_program.save_table(fleet, tmp_path) == 100
    found = asyncio.run(sample_program.run_async(fleet))
    assert found[:4] == ["OK", "OK", "already ended: OK", "OK"]
    assert len(found) == 10


def test_the_sample_program_passes_pyright_strict_without_a_cast(tmp_path: Path) -> None:
    program = ROOT / "tests/support/sample_program.py"
    assert "cast" not in program.read_text()
    assert "type: ignore" not in program.read_text()
    (tmp_path / "program.py").write_text(program.read_text())
    config = {"include": ["program.py"], "typeCheckingMode": "strict", "pythonVersion": "3.11"}
    (tmp_path / "pyrightconfig.json").write_text(
        json.dumps({**config, "extraPaths": [f"{ROOT}/config", f"{ROOT}/producer"]})
    )
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    report = json.loads(done.stdout)
    assert report["summary"]["filesAnalyzed"] == 1
    assert report["generalDiagnostics"] == []


def test_execute_has_a_twin_that_cancels_with_its_task() -> None:
    fleet = FakeFleet(lambda _: SandboxResult(exit_code=0, stdout="__OUT__:6", stderr="", duration=0.1))
    assert asyncio.run(fleet.execute_async("print(6)")).value == 6
    with pytest.raises(SpecInvalid, match="language"):
        asyncio.run(fleet.execute_async("print(6)", "cobol"))
    fleet.handler = hold

    async def cancel_soon() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(fleet.execute_async("print(6)"), 0.2)

    asyncio.run(cancel_soon())
    assert fleet.job(fleet.job_ids[-1]).outcome(0).code is ErrorCode.CANCELLED
