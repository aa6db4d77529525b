"""``sandfleet batch results`` with a fleet in memory."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from cli_fleet import new_use
from sandfleet import SandboxResult, SandboxSpec
from sandfleet.cli import main

if TYPE_CHECKING:
    from pathlib import Path

    from cli_fleet import Capture, Patch, Use
    from sandfleet.testing import Ending


@pytest.fixture
def use(monkeypatch: Patch) -> Use:
    return new_use(monkeypatch)


def play(spec: SandboxSpec) -> Ending:
    """Leave the job ``queued`` as it is; end others."""
    if spec.command == ("queued",):
        return None
    return SandboxResult(exit_code=3, stdout="=o", stderr="", duration=0.1)


def submit(use: Use, *words: str) -> None:
    use(play).submit_many([SandboxSpec(image="x", command=[word]) for word in words], batch="b")


def test_a_file_gets_one_row_for_each_job(use: Use, tmp_path: Path, capfd: Capture) -> None:
    submit(use, "a", "b")
    file = tmp_path / "r.csv"
    assert main(["batch", "results", "b", "-o", str(file), "--columns", "code, exit_code"]) == 0
    assert file.read_text() == "code,exit_code\nEXIT_NONZERO,3\nEXIT_NONZERO,3\n"
    assert capfd.readouterr() == ("", f"sandfleet: 2 rows in {file}\n")


def test_stdout_gets_json_lines_or_csv(use: Use, capfd: Capture) -> None:
    submit(use, "a")
    assert main(["batch", "results", "b", "--columns", "exit_code,stdout"]) == 0
    assert json.loads(capfd.readouterr().out) == {"exit_code": 3, "stdout": "=o"}
    assert main(["batch", "results", "b", "--columns", "exit_code,stdout", "--format", "csv"]) == 0
    assert capfd.readouterr() == ("exit_code,stdout\n3,'=o\n", "")


def test_jobs_without_an_outcome_are_rows_and_an_exit_code(use: Use, capfd: Capture) -> None:
    submit(use, "a", "queued")
    assert main(["batch", "results", "b", "--columns", "state,code"]) == 1
    out, err = capfd.readouterr()
    assert out == '{"state":"ended","code":"EXIT_NONZERO"}\n{"state":"queued","code":null}\n'
    assert "1 job has not ended: the rows say so. To wait: sandfleet batch results b --wait" in err


def test_wait_ends_when_all_have_ended_or_when_the_time_is_up(use: Use, tmp_path: Path, capfd: Capture) -> None:
    submit(use, "a", "queued")
    file = tmp_path / "r.jsonl"
    assert main(["batch", "results", "b", "-o", str(file), "--wait", "--timeout", "0.2"]) == 124
    assert not file.exists()
    assert "1 of 2 jobs of batch b have not ended in time; nothing was written" in capfd.readouterr().err
    submit(use, "a")
    assert main(["batch", "results", "b", "-o", str(file), "--wait"]) == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "r.xlsx"], "--out: the format of r.xlsx is not known: end its name with .jsonl, .csv or .parquet"),
        (["-o", "r.csv", "--format", "jsonl"], "r.csv is csv"),
        (["--format", "parquet"], "stdout takes jsonl or csv"),
        (["--resume"], "--resume: needs -o FILE"),
        (["--timeout", "1"], "--timeout: needs --wait"),
        (["--overwrite"], "--overwrite: needs --outputs or --artifacts"),
        (["--columns", "cod"], "--columns: there is no column cod: did you mean code?"),
    ],
)
def test_wrong_options_are_told(use: Use, capfd: Capture, words: list[str], said: str) -> None:
    submit(use, "a")
    assert main(["batch", "results", "b", *words]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
    assert len(err.splitlines()) == 1


def test_an_unknown_batch_is_told(use: Use, capfd: Capture) -> None:
    submit(use, "a")
    assert main(["batch", "results", "c"]) == 1
    assert "there is no batch c" in capfd.readouterr().err
