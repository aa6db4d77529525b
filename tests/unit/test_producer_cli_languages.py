"""`sandfleet run --lang` and `--cases`."""

from __future__ import annotations

import csv
import io
import json
import threading
from typing import TYPE_CHECKING

import pytest
from cli_fleet import Binary, new_use
from rows import each_row
from sandfleet import ErrorCode, ImageNotFound, Outcome, SandboxResult, SandboxTimeout
from sandfleet.cli import main
from sandfleet.cli.completion import complete_language
from sandfleet.testing import WithArtifacts

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cli_fleet import Capture, Patch, Use
    from sandfleet import SandboxSpec
    from sandfleet.testing import Ending


@pytest.fixture
def use(monkeypatch: Patch) -> Use:
    return new_use(monkeypatch)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "prog.cpp"
    path.write_text("int main() {}")
    return path


@pytest.fixture
def cases(tmp_path: Path) -> Path:
    folder = tmp_path / "cases"
    folder.mkdir()
    for number in (1, 2, 10):
        (folder / f"{number}.in").write_text(str(number))
        (folder / f"{number}.out").write_text(f"{2 * number}\n")
    return folder


def end(stdout: str = "", code: int = 0, stderr: str = "") -> SandboxResult:
    return SandboxResult(exit_code=code, stdout=stdout, stderr=stderr, duration=0.1)


def double_unless(wrong: str = "", lost: str | None = None) -> Callable[[SandboxSpec], Ending]:
    """Return a handler that compiles, and prints twice the number of stdin, but for the input `wrong`."""

    def handle(spec: SandboxSpec) -> Ending:
        if spec.labels["step"] == "compile":
            return WithArtifacts(end(stderr="prog.cpp: warning\n"), {"a.out": b"program"}, lost)
        number = spec.stdin.data
        return end("0" if number == wrong else str(2 * int(number)))

    return handle


def test_a_program_is_compiled_and_run_with_arguments_and_stdin(
    use: Use, source: Path, monkeypatch: Patch, capfd: Capture
) -> None:
    fleet = use(double_unless())
    monkeypatch.setattr("sys.stdin", Binary(b"21"))
    line = ["run", "--lang", "cpp", "--timeout", "3", "--compile-timeout", "9", "--memory", "64MiB", "-i"]
    assert main([*line, str(source), "-v", "a b"]) == 0
    assert capfd.readouterr() == ("42", "prog.cpp: warning\n")
    compiled, run = fleet.specs
    assert (compiled.image, compiled.command[-1], compiled.timeout) == ("gcc", "prog.cpp", 9)
    assert (run.command, run.timeout, run.resources.memory_bytes) == (("./a.out", "-v", "a b"), 3, 64 << 20)


@each_row(("ending", "exit_code"), [(end(code=3), 3), (end(code=123), 123), (SandboxTimeout.of("too slow"), 124)])
def test_the_exit_code_is_that_of_the_program(use: Use, tmp_path: Path, ending: Ending, exit_code: int) -> None:
    path = tmp_path / "prog.py"
    path.write_text("x")
    use(lambda _: ending)
    assert main(["run", "--lang", "python", str(path)]) == exit_code


def test_run_says_that_no_worker_is_there(use: Use, source: Path, monkeypatch: Patch, capfd: Capture) -> None:
    fleet = use(lambda _: None)
    monkeypatch.setattr("sandfleet.cli.run.WAIT_NOTE_SECONDS", 0.01)

    def has_no_workers(timeout_seconds: float = 1.0) -> bool:
        # The job ends only after the question, and the note is printed during the wait.
        threading.Timer(0.3, fleet.finish, (fleet.job_ids[0], Outcome.of(ErrorCode.CANCELLED, "by hand"))).start()
        return False

    monkeypatch.setattr(fleet, "has_workers", has_no_workers)
    assert main(["run", "--lang", "cpp", str(source)]) == 130
    assert "sandfleet: no worker is listening on redis://127.0.0.1:6379/0: the job is queued" in capfd.readouterr().err


def test_a_program_that_did_not_compile_is_told_apart(use: Use, source: Path, capfd: Capture) -> None:
    fleet = use(lambda _: end("note", code=1, stderr="prog.cpp:1: error\n"))
    assert main(["run", "--lang", "cpp", str(source)]) == 123
    assert capfd.readouterr() == ("", "noteprog.cpp:1: error\nsandfleet: did not compile: the compiler exited 1\n")
    assert len(fleet.specs) == 1
    assert main(["run", "--lang", "cpp", "--json", str(source)]) == 123
    out, err = capfd.readouterr()
    told = json.loads(out)
    assert (told["did_compile"], told["run"], told["compile"]["code"]) == (False, None, "EXIT_NONZERO")
    assert err == "sandfleet: did not compile: the compiler exited 1\n"


def test_a_compiler_that_ran_into_a_limit_or_could_not_run(use: Use, source: Path, capfd: Capture) -> None:
    use(lambda _: SandboxTimeout.of("ran longer than 60 s"))
    assert main(["run", "--lang", "cpp", str(source)]) == 123
    assert "sandfleet: did not compile: TIMEOUT: ran longer than 60 s\n" in capfd.readouterr().err
    use(lambda _: ImageNotFound.of("no host has the image gcc"))
    assert main(["run", "--lang", "cpp", str(source)]) == 125
    assert "sandfleet: the compile job could not run: IMAGE_NOT_FOUND: no host" in capfd.readouterr().err


def test_a_program_that_is_compiled_again_says_so(use: Use, source: Path, capfd: Capture) -> None:
    use(lambda spec: double_unless(lost="2 MiB is too large")(spec) if spec.labels["step"] == "compile" else end("hi"))
    assert main(["run", "--lang", "cpp", str(source)]) == 0
    assert "compiled again in the sandbox of each run, since the store does not have the program: 2 MiB" in (
        capfd.readouterr().err
    )


def test_verdicts_are_a_table_and_the_exit_code(use: Use, source: Path, cases: Path, capfd: Capture) -> None:
    use(double_unless())
    assert main(["run", "--lang", "cpp", "--cases", str(cases), str(source)]) == 0
    out, err = capfd.readouterr()
    assert [line.split() for line in out.splitlines()] == [
        ["CASE", "VERDICT", "TIME", "DETAIL"],
        ["1", "ACCEPTED", "0.1s", "-"],
        ["2", "ACCEPTED", "0.1s", "-"],
        ["10", "ACCEPTED", "0.1s", "-"],
    ]
    assert err == "prog.cpp: warning\nsandfleet: 3 of 3 cases accepted\n"
    use(double_unless(wrong="2"))
    assert main(["run", "--lang", "cpp", "--cases", str(cases), str(source)]) == 1
    out, err = capfd.readouterr()
    assert '2     WRONG_ANSWER  0.1s  line 1: expected "4", got "0"' in out
    assert "sandfleet: 2 of 3 cases accepted: 1 WRONG_ANSWER; the runs are batch judge-" in err


def test_verdicts_for_programs(use: Use, source: Path, cases: Path, capfd: Capture) -> None:
    use(double_unless(wrong="10"))
    line = ["run", "--lang", "cpp", "--cases", str(cases)]
    assert main([*line, "-o", "jsonl", str(source)]) == 1
    rows = [json.loads(text) for text in capfd.readouterr().out.splitlines()]
    assert [(row["case"], row["verdict"], row["code"]) for row in rows] == [
        ("1", "ACCEPTED", "OK"),
        ("2", "ACCEPTED", "OK"),
        ("10", "WRONG_ANSWER", "OK"),
    ]
    assert main([*line, "-o", "csv", str(source)]) == 1
    assert [row["verdict"] for row in csv.DictReader(io.StringIO(capfd.readouterr().out))][2] == "WRONG_ANSWER"
    assert main([*line, "--json", str(source)]) == 1
    told = json.loads(capfd.readouterr().out)
    assert (told["is_accepted"], told["verdicts"]) == (False, {"ACCEPTED": 2, "WRONG_ANSWER": 1})
    assert Outcome.read(told["cases"][2]["outcome"]).code is ErrorCode.OK


def test_exact_counts_white_space(use: Use, source: Path, cases: Path) -> None:
    use(double_unless())
    assert main(["run", "--lang", "cpp", "--cases", str(cases), "--exact", str(source)]) == 1


def test_no_verdict_of_what_did_not_compile(use: Use, source: Path, cases: Path, capfd: Capture) -> None:
    fleet = use(lambda _: end(code=1, stderr="prog.cpp:1: error\n"))
    assert main(["run", "--lang", "cpp", "--cases", str(cases), str(source)]) == 123
    assert capfd.readouterr() == ("", "prog.cpp:1: error\nsandfleet: did not compile: the compiler exited 1\n")
    assert len(fleet.specs) == 1


@each_row(
    ("words", "said"),
    [
        (["--lang", "cobol", "SOURCE"], "there is no language cobol"),
        (["--lang", "cpp"], "needs a source file"),
        (["--lang", "cpp", "no.cpp"], "no.cpp: No such file"),
        (["--cases", "CASES", "SOURCE"], "need a language"),
        (["--lang", "cpp", "--exact", "SOURCE"], "is for --cases only"),
        (["--lang", "cpp", "--cases", "CASES", "-i", "SOURCE"], "is not for --cases"),
        (["--lang", "cpp", "--cases", "CASES", "-o", "xml", "SOURCE"], "must be one of table, wide"),
        (["--lang", "cpp", "--cases", "SOURCE", "SOURCE"], "Not a directory"),
        (["--lang", "cpp", "--idempotency-key", "k", "SOURCE"], "more than one job"),
        (["--lang", "cpp", "--live", "SOURCE"], "printed at the end"),
        (["--lang", "cpp", "--memory", "1MiB", "SOURCE"], "--memory: 1 MiB cannot work, the least is 16 MiB"),
    ],
)
def test_a_wrong_line_is_refused_and_nothing_is_queued(
    use: Use, cases: Path, capfd: Capture, words: list[str], said: str
) -> None:
    fleet = use(double_unless())
    source = cases.parent / "prog.cpp"
    source.write_text("int main() {}")
    real = {"SOURCE": str(source), "CASES": str(cases)}
    assert main(["run", *(real.get(word, word) for word in words)]) == 125
    assert said in capfd.readouterr().err
    assert fleet.specs == []


def test_languages_are_completed() -> None:
    assert complete_language("c") == ["c", "cpp"]
