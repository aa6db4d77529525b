"""A batch's limits on the command line, and the commands to hold, release and prioritise it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from cli_fleet import new_use
from rows import each_row
from sandfleet import BatchLimits, SandboxResult, SandboxSpec
from sandfleet.cli import main

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandfleet.testing.fake_fleet import Ending, FakeFleet

    Capture = pytest.CaptureFixture[str]
    Use = Callable[[Callable[[SandboxSpec], Ending]], FakeFleet]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Use:
    return new_use(monkeypatch)


def fail(spec: SandboxSpec) -> Ending:
    return SandboxResult(exit_code=int(spec.image == "bad"), stdout="", stderr="", duration=0.1)


@pytest.fixture
def jobs(tmp_path: Path) -> str:
    file = tmp_path / "jobs.jsonl"
    file.write_text('{"image": "bad"}\n{"image": "x"}\n{"image": "x"}\n')
    return str(file)


def test_submit_sets_limits(use: Use, jobs: str, capfd: Capture) -> None:
    use(fail)
    command = ["submit", jobs, "--batch", "b", "--max-failures", "1", "--at-most", "2", "--deadline", "2h", "--wait"]
    assert main([*command, "--json"]) == 1
    assert json.loads(capfd.readouterr().out)["codes"] == {"EXIT_NONZERO": 1, "CANCELLED": 2}


@each_row(
    ("options", "told"),
    [
        (["--fail-fast"], "--fail-fast: needs --batch: the limit is one of the whole batch"),
        (
            ["--batch", "b", "--deadline", "soon"],
            "--deadline: must be seconds, or a time such as 90s, 45m, 1h30m or 2d",
        ),
        (["--batch", "b", "--max-failures", "0"], "--max-failures: "),
        (["--batch", "b", "--at-most", "1", "--on-stop", "pause"], "--on-stop: must be 'keep' or 'kill'"),
        (["--batch", "b", "--on-stop", "kill"], "--on-stop: needs a limit that stops the batch"),
        (["--batch", "b", "--fail-fast", "--max-failures", "3"], "fail_fast is max_failures=1: give one of them"),
    ],
)
def test_a_faulty_option_is_named(use: Use, jobs: str, capfd: Capture, options: list[str], told: str) -> None:
    fleet = use(fail)
    assert main(["submit", jobs, *options]) == 2
    assert told in capfd.readouterr().err
    assert fleet.specs == []


def test_submit_after_jobs_and_batches(use: Use, jobs: str, capfd: Capture) -> None:
    fleet = use(fail)
    first = fleet.submit(SandboxSpec(image="x"), batch="prepare", job_id="first")
    fleet.batch("prepare").seal()
    assert main(["submit", jobs, "--after", first.id, "--after-batch", "prepare"]) == 0
    assert fleet.specs[1].after.jobs == ("first",)
    assert fleet.specs[1].after.batches == ("prepare",)
    assert main(["submit", jobs, "--after", "nobody"]) == 2
    assert "after.jobs: there is no job nobody" in capfd.readouterr().err


def test_hold_release_priority_and_limit(use: Use, jobs: str, capfd: Capture) -> None:
    fleet = use(fail)
    fleet.submit(SandboxSpec(image="x"), batch="b")
    assert main(["batch", "hold", "b"]) == 0
    assert main(["submit", jobs, "--batch", "b", "--ids"]) == 0
    ids = capfd.readouterr().out.splitlines()[1:]
    assert main(["show", ids[0]]) == 0
    assert "batch b is held: sandfleet batch release b" in capfd.readouterr().out
    assert main(["batch", "priority", "b", "0"]) == 0
    assert main(["batch", "limit", "b", "--fail-fast"]) == 0
    assert main(["batch", "limit", "b"]) == 0
    assert main(["batch", "release", "b"]) == 0
    out = capfd.readouterr().out.splitlines()
    assert out == [
        "b\t3 jobs have priority 0",
        "b\tlimits set",
        "b\tno limits",
        "b\treleased, 3 jobs back in their queues",
    ]
    assert fleet.batch("b").codes == {"OK": 3, "EXIT_NONZERO": 1}
    assert main(["batch", "hold", "nobody"]) == 1
    assert "there is no batch nobody" in capfd.readouterr().err
    assert main(["batch", "priority", "b", "12"]) == 2


@each_row(
    ("words", "told"),
    [
        (["batch", "wait", "b", "--timeout", "nan"], "--timeout: must be seconds, or a time"),
        (["batch", "wait", "b", "--timeout", "-1"], "--timeout: must not be negative"),
        (["wait", "x", "--timeout", "nan"], "--timeout: must be seconds, or a time"),
        (["batch", "results", "b", "--wait", "--timeout", "nan"], "--timeout: must be seconds, or a time"),
        (["submit", "JOBS", "--batch", ""], "--batch: is empty"),
    ],
)
def test_what_would_wait_for_ever_or_lose_the_name_is_refused(
    words: list[str], told: str, use: Use, jobs: str, capfd: Capture
) -> None:
    fleet = use(fail)
    assert main([jobs if word == "JOBS" else word for word in words]) == 2
    assert told in capfd.readouterr().err
    assert not fleet.job_ids


def test_a_batch_that_is_forgotten_leaves_no_limits_to_the_next_of_its_name(use: Use) -> None:
    fleet = use(fail)
    specs = [SandboxSpec(image="bad"), SandboxSpec(image="x")]
    fleet.submit_many(specs, batch="b", limits=BatchLimits(fail_fast=True), on_done="ci")
    fleet.batch("b").forget()
    (job,) = fleet.submit_many([SandboxSpec(image="x")], batch="b")
    assert job.outcome(timeout=0).is_ok
