"""Languages: the table, the specs of a program, cases, and verdicts."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rows import each_row
from sandfleet import (
    Case,
    CaseResult,
    ErrorCode,
    Fleet,
    Outcome,
    OutOfMemory,
    Program,
    ResultTimeout,
    SandboxResult,
    SandboxSpec,
    SandboxTimeout,
    SecurityViolation,
    Settings,
    SettingsInvalid,
    Signaled,
    SpecInvalid,
    StoredObject,
    StreamOutput,
)
from sandfleet.languages.cases import read_cases
from sandfleet.languages.comparison import find_difference
from sandfleet.languages.judging import SLACK_BYTES
from sandfleet.languages.program import Expansion
from sandfleet.languages.table import read_table
from sandfleet.testing import FakeFleet, WithArtifacts
from sandfleet_config.fingerprint import spec_sha256
from sandfleet_config.wire import new_spec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandfleet.testing import Ending

CPP = Program("int main() {}", "cpp")


def end(stdout: str = "", code: int = 0, stderr: str = "") -> SandboxResult:
    return SandboxResult(exit_code=code, stdout=stdout, stderr=stderr, duration=0.1)


def compile_then(run: Callable[[SandboxSpec], Ending], lost: str | None = None) -> Callable[[SandboxSpec], Ending]:
    """Return a handler that compiles each program to ``a.out``, and runs it by `run`."""

    def handle(spec: SandboxSpec) -> Ending:
        if spec.labels["step"] != "compile":
            return run(spec)
        return WithArtifacts(end(), {} if lost else {"a.out": b"program"}, lost)

    return handle


def double(spec: SandboxSpec) -> Ending:
    """Print twice the number of stdin, with white space that does not count."""
    return end(f"{2 * int(spec.stdin.data)} \n\n")


def write_table(folder: Path, text: str) -> Path:
    path = folder / "more.toml"
    path.write_text(text)
    return path


# The table.


def test_the_built_in_table_has_the_nine_languages_and_their_ready_recipes() -> None:
    table = read_table()
    assert {"python", "bash", "node", "typescript", "c", "cpp", "go", "rust", "java"} <= set(table)
    recipes = Path(__file__).parents[2] / "worker/sandfleet_worker/sandbox/image/recipe/ready"
    assert {row.image for row in table.values()} <= {path.stem for path in recipes.glob("*.toml")}
    for name, row in table.items():
        expansion = Expansion(Program("x", name), table)
        expansion.check()
        assert expansion.is_compiled == bool(row.artifacts)


@each_row(("name", "found"), [("cpp", "cpp"), ("c++", "cpp"), ("py", "python"), ("js", "node"), ("shell", "sh")])
def test_a_language_has_aliases(name: str, found: str) -> None:
    assert read_table().find(name)[0] == found


def test_an_unknown_language_is_told_with_the_nearest_and_all() -> None:
    with pytest.raises(
        SpecInvalid, match=r"there is no language pyton, did you mean python\? \(there are python, bash"
    ):
        read_table().find("pyton")
    with pytest.raises(SpecInvalid, match="language"):
        FakeFleet().run_program(Program("x", "cobol"))


def test_a_file_adds_languages_and_changes_single_fields(tmp_path: Path) -> None:
    text = '[lua]\nimage = "lua"\nsource = "main.lua"\nrun = ["lua", "{source}"]\n[cpp]\nimage = "my-gcc"\naliases = ["py"]\n'
    table = read_table(write_table(tmp_path, text))
    assert table["lua"].run == ("lua", "{source}")
    assert (table["cpp"].image, table["cpp"].artifacts) == ("my-gcc", ("a.out",))
    assert table.find("py")[0] == "cpp"
    assert table.changed == {"lua", "cpp"}
    fleet = FakeFleet(settings=Settings.model_construct(languages=str(tmp_path / "more.toml")))
    assert set(fleet.languages) - set(read_table()) == {"lua"}


@each_row(
    ("text", "said"),
    [
        ("[lua]\nimage = 1\nsource = 'a b'\nrun = []\n", "[lua] image must be a string; [lua] source must be the name"),
        ("[lua]\nimag = 'x'\nsource = 'm.lua'\nrun = ['lua']\n", "imag there is no such field, did you mean image?"),
        ("[cpp]\nartifacts = []\n", "[cpp] compile and artifacts belong together"),
        (
            "[cpp]\nrun = ['{exe}']\n",
            "[cpp] run has the placeholder {exe}, there are {source}, {stem} and {memory_mib}",
        ),
        ("[cpp]\ncompile_timeout = 0\n", "[cpp] compile_timeout must be at least"),
        ("[cpp]\ncompile_memory = '1MiB'\n", "memory"),
        ("[cpp]\nimage = 'docker://'\n", "[cpp] image is no image of a registry"),
        ("[CPP]\n", "[CPP]: is no name of a language"),
        ("cpp = 1\n", "[cpp]: must be a table"),
        ("[cpp\n", "is not TOML"),
        ("\xff", "is not TOML"),
    ],
)
def test_a_faulty_file_is_told_with_its_faults(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "more.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(SettingsInvalid) as caught:
        read_table(path)
    assert said in str(caught.value)
    assert str(caught.value).startswith(f"SANDFLEET_LANGUAGES: {path}: ")


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(SettingsInvalid, match=r"no\.toml: No such file"):
        read_table(tmp_path / "no.toml")
    large = tmp_path / "large.toml"
    large.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(SettingsInvalid, match="larger than 1 MiB"):
        read_table(large)


# The specs.


def test_a_program_becomes_a_compile_job_and_runs_with_what_it_left() -> None:
    fleet = FakeFleet(compile_then(double))
    fields = {
        "timeout": 3,
        "resources": {"memory_bytes": "64MiB"},
        "files": [{"path": "my.h", "content": "x"}],
        "env": {"A": "1"},
        "labels": {"name": "mine"},
        "queue_ttl": 60,
        "output": {"max_bytes": 10},
    }
    result = fleet.run_program(Program("code", "cpp", "prog.cpp", ["-v"], 7, fields), b"4")
    compiled, run = fleet.specs
    assert compiled.command[0] == "g++"
    assert compiled.command[-1] == "prog.cpp"
    assert [file.path for file in compiled.files] == ["/work/prog.cpp", "/work/my.h"]
    assert (compiled.timeout, compiled.resources.memory_bytes, compiled.queue_ttl, compiled.env) == (7, 0, 60, ())
    assert [artifact.glob for artifact in compiled.artifacts] == ["/work/a.out"]
    assert compiled.labels == {"language": "cpp", "step": "compile", "name": "mine"}
    assert run.command == ("./a.out", "-v")
    assert [file.path for file in run.files] == ["/work/a.out", "/work/my.h"]
    assert fleet.read_input(run.files[0]) == b"program"
    assert (run.timeout, run.resources.memory_bytes, run.queue_ttl, run.env) == (3, 64 << 20, 60, ("A=1",))
    assert (run.labels["step"], run.stdin.data, run.output.max_bytes) == ("run", "4", 10)
    assert (result.is_ok, result.did_compile, result.shared) == (True, True, "")
    assert str(result).startswith("cpp: ran\njob ")


def test_a_file_that_was_sent_and_comes_back_is_there_once() -> None:
    files = {"lib.js": b"lib", "main.js": b"main"}
    fleet = FakeFleet(lambda spec: WithArtifacts(end(), files) if spec.labels["step"] == "compile" else end())
    other = [{"path": "./lib.js", "content": "lib"}, {"path": "data.txt", "content": "x"}]
    assert fleet.run_program(Program("code", "ts", spec={"files": other})).is_ok
    assert sorted(file.path for file in fleet.specs[1].files) == ["/work/data.txt", "/work/lib.js", "/work/main.js"]


def test_an_interpreted_program_is_one_job_with_its_source() -> None:
    fleet = FakeFleet(lambda _: end("hi"))
    result = fleet.run_program(Program("print('hi')", "py", args=["a b"]))
    (spec,) = fleet.specs
    assert (spec.image, spec.command, spec.files[0].path) == ("python", ("python3", "main.py", "a b"), "/work/main.py")
    assert (result.compile, result.is_ok) == (None, True)


@each_row(
    ("name", "found"),
    [
        ("prog.cpp", "prog.cpp"),
        ("", "main.cpp"),
        ("-x.cpp", "main.cpp"),
        ("a b.cpp", "main.cpp"),
        ("noend", "main.cpp"),
    ],
)
def test_a_source_keeps_a_name_that_is_safe(name: str, found: str) -> None:
    assert Expansion(Program("x", "cpp", name), read_table()).compile_spec()["command"][-1] == found


def test_the_stem_of_the_source_names_the_class_of_java() -> None:
    expansion = Expansion(Program("x", "java", "Solution.java"), read_table())
    assert expansion.compile_spec()["command"][-1] == "Solution.java"
    assert expansion.run_spec(Outcome.of(ErrorCode.OK, ""))["command"][-1] == "Solution"


@each_row(("memory", "found"), [(0, "512"), ("96MiB", "96"), (64 << 20, "64")])
def test_java_knows_the_memory_of_its_job(memory: object, found: str) -> None:
    program = Program("x", "java", spec={"resources": {"memory_bytes": memory}})
    assert f"-XX:MaxRAM={found}m" in Expansion(program, read_table()).run_spec(None)["command"]


def test_a_case_without_input_has_an_empty_one() -> None:
    fleet = FakeFleet(lambda spec: end(spec.stdin.data))
    program = Program("x", "python", spec={"stdin": "of the program"})
    assert fleet.run_program(program).run is not None
    assert fleet.judge(program, [Case("a", "", "")]).is_accepted
    assert fleet.specs[0].stdin.data == "of the program"
    with pytest.raises(TypeError, match="args must be a list"):
        Program("x", "python", args="-v")


def test_braces_are_written_twice(tmp_path: Path) -> None:
    path = write_table(tmp_path, '[x]\nimage = "x"\nsource = "m.x"\nrun = ["sh", "-c", "{{ cat {source}; }}"]\n')
    assert Expansion(Program("x", "x"), read_table(path)).run_spec(None)["command"] == ["sh", "-c", "{ cat m.x; }"]


@each_row(
    ("fields", "kind"),
    [
        ({"resources": {"memory_bytes": -1}}, SpecInvalid),
        ({"tiemout": 1}, SpecInvalid),
        ({"security": {"privileged": True}}, SecurityViolation),
        ({"idempotency_key": "k"}, SpecInvalid),
        ({"working_dir": "/tmp"}, SpecInvalid),
        ({"files": [{"path": "main.cpp", "content": ""}]}, SpecInvalid),
    ],
)
def test_a_faulty_run_is_refused_before_anything_is_compiled(fields: dict[str, object], kind: type[Exception]) -> None:
    fleet = FakeFleet(compile_then(double))
    with pytest.raises(kind):
        fleet.run_program(Program("code", "cpp", spec=fields))
    assert fleet.specs == []


def test_a_compile_error_is_the_outcome_of_the_compile_job() -> None:
    fleet = FakeFleet(lambda _: end(code=1, stderr="prog.cpp:3: error"))
    result = fleet.run_program(CPP)
    assert result.compile is not None
    assert (result.compile.code, result.compile.stderr.text) == (ErrorCode.EXIT_NONZERO, "prog.cpp:3: error")
    assert (result.run, result.did_compile, result.is_ok) == (None, False, False)
    assert "did not compile" in str(result)
    assert len(fleet.specs) == 1


def test_what_the_store_cannot_take_is_compiled_again_in_the_sandbox_of_the_run() -> None:
    fleet = FakeFleet(compile_then(double, lost="2 MiB is too large"))
    fields = {"timeout": 3, "resources": {"memory_bytes": "64MiB"}}
    result = fleet.run_program(Program("code", "cpp", "p.cpp", ["a'b"], 7, fields), b"4")
    run = fleet.specs[1]
    assert result.shared == "2 MiB is too large"
    assert run.command[:2] == ("sh", "-c")
    assert run.command[2].endswith("\nexec ./a.out 'a'\"'\"'b'")
    assert (run.timeout, run.resources.memory_bytes) == (10, 0)
    assert [file.path for file in run.files] == ["/work/p.cpp"]


def test_a_shared_sandbox_that_does_not_compile_is_no_failure_of_the_program() -> None:
    def fail(spec: SandboxSpec) -> Ending:
        return end(code=1, stderr=spec.command[2].split("'")[1])

    fleet = FakeFleet(compile_then(fail, lost="too large"))
    assert fleet.run_program(CPP).did_compile is False
    (case,) = fleet.judge(CPP, [Case("a", "1", "2")]).cases
    assert case.verdict == "COMPILE_ERROR"
    # A program that says the like has run.
    said = "sandfleet: did not compile again in the sandbox of its run (0)\n"
    fleet.handler = compile_then(lambda _: end(code=1, stderr=said), lost="too large")
    assert fleet.run_program(CPP).did_compile


def test_a_timeout_covers_both_jobs_and_cancels(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = FakeFleet(compile_then(lambda _: None))
    with pytest.raises(ResultTimeout):
        fleet.run_program(CPP, timeout=0.05)
    assert fleet.job(fleet.job_ids[1]).outcome(0).code is ErrorCode.CANCELLED
    with pytest.raises(ResultTimeout):
        fleet.judge(CPP, [Case("a", "1", "2"), Case("b", "1", "2")], timeout=0.05)
    assert [fleet.job(job_id).outcome(0).code for job_id in fleet.job_ids[3:]] == [ErrorCode.CANCELLED] * 2
    assert len(fleet.job_ids) == 5


# Cases and verdicts.


@each_row(
    ("output", "answer", "exact", "said"),
    [
        (b"1 2\n3\n", b"1 2\n3\n", True, ""),
        (b"1 2 \r\n3\n\n\n", b"1 2\n3", False, ""),
        (b"", b"\n", False, ""),
        (b"1\n2\n", b"1\n3\n", False, 'line 2: expected "3", got "2"'),
        (b" 1\n", b"1\n", False, 'line 1: expected "1", got " 1"'),
        (b"1\n\n2\n", b"1\n2\n", False, 'line 2: expected "2", got ""'),
        (b"1\n", b"1\n2\n", False, 'line 2: expected "2", got the end'),
        (b"1\n2\n", b"1\n", False, 'line 2: expected the end, got "2"'),
        (b"1\n2 \n", b"1\n2\n", True, "byte 4 (line 2): 4 bytes are expected, got 5"),
        (b"\x1b[31m\xff", b"x", False, 'line 1: expected "x", got "\\x1b[31m\N{REPLACEMENT CHARACTER}"'),
        (b"y" * 99, b"x", False, f'line 1: expected "x", got "{"y" * 40}..."'),
    ],
)
def test_outputs_are_compared_as_judges_do_it(output: bytes, answer: bytes, exact: bool, said: str) -> None:  # noqa: FBT001
    assert find_difference(output, answer, is_exact=exact) == said


def write_cases(folder: Path, names: Sequence[str]) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{name}\n")
    return folder


def test_a_folder_has_cases_in_order_also_below_it(tmp_path: Path) -> None:
    names = ["10.in", "10.out", "2.in", "2.ans", "s/b.in", "s/b.out", "README.md", "gen.py"]
    found = read_cases(write_cases(tmp_path, names))
    assert [case.name for case in found] == ["2", "10", "s/b"]
    assert (found[2].read_stdin(), found[2].read_answer()) == (b"s/b.in\n", b"s/b.out\n")


@each_row(
    ("names", "said"),
    [
        ([], "has no cases: there is no file NAME.in"),
        (["1.in", "2.out"], "1.in has no .out and no .ans beside it; 2.out has no .in beside it"),
        (["1.in", "1.out", "1.ans"], "1.in has both .out and .ans: keep one"),
        (["a\x1b.in", "a\x1b.out"], "a\\x1b: the name of a case is"),
    ],
)
def test_a_faulty_folder_is_told_with_its_faults(tmp_path: Path, names: list[str], said: str) -> None:
    with pytest.raises(SpecInvalid) as caught:
        read_cases(write_cases(tmp_path, names))
    assert said in caught.value.message
    assert caught.value.errors[0]["field"] == "cases"


def test_cases_are_checked(tmp_path: Path) -> None:
    with pytest.raises(SpecInvalid, match="two cases have one name"):
        read_cases([Case("a", "", ""), Case("a", "", "")])
    with pytest.raises(FileNotFoundError):
        read_cases(tmp_path / "no")
    with pytest.raises(SpecInvalid, match="the limit is 10000"):
        read_cases([Case(str(number), "", "") for number in range(10_001)])


ENDINGS: dict[str, tuple[Ending, str, str]] = {
    "right": (end("2"), "ACCEPTED", ""),
    "wrong": (end("3"), "WRONG_ANSWER", 'line 1: expected "2", got "3"'),
    "exit": (end("2", 3), "EXIT_NONZERO", "exit 3"),
    "crash": (Signaled.of("ended by SIGSEGV"), "SIGNALED", "ended by SIGSEGV"),
    "slow": (SandboxTimeout.of("ran longer than 1 s"), "TIMEOUT", "ran longer than 1 s"),
    "large": (OutOfMemory.of("used more than 64 MiB"), "OUT_OF_MEMORY", "used more than 64 MiB"),
    "long": (
        Outcome.of(ErrorCode.OK, "", exit_code=0, stdout=StreamOutput.of(b"2", 2 * SLACK_BYTES)),
        "WRONG_ANSWER",
        "1 bytes are expected, got 131072",
    ),
    "dropped": (
        Outcome.of(ErrorCode.OK, "", "its output was dropped", exit_code=0, stdout=StreamOutput.of(b"", 1)),
        "NOT_JUDGED",
        "its output is not known: its output was dropped",
    ),
}


@pytest.mark.parametrize("is_async", [False, True])
def test_each_case_has_a_verdict_in_order(*, is_async: bool) -> None:
    fleet = FakeFleet(compile_then(lambda spec: ENDINGS[spec.stdin.data][0]))
    cases, seen = [Case(name, name, "2") for name in ENDINGS], list[str]()

    def note(case: CaseResult) -> None:
        seen.append(case.name)

    judgement = (
        asyncio.run(fleet.judge_async(CPP, cases, batch="b", on_case=note))
        if is_async
        else fleet.judge(CPP, cases, batch="b", on_case=note)
    )
    assert {case.name: (case.verdict, case.detail) for case in judgement.cases} == {
        name: (verdict, detail) for name, (_, verdict, detail) in ENDINGS.items()
    }
    assert sorted(seen) == sorted(ENDINGS)
    assert (judgement.is_accepted, judgement.batch, judgement.verdicts["WRONG_ANSWER"]) == (False, "b", 2)
    assert "1 of 8 cases accepted: 2 WRONG_ANSWER" in str(judgement)
    assert fleet.batch("b").counts == (len(ENDINGS), len(ENDINGS))
    assert fleet.batch("b").is_sealed
    assert [spec.labels["step"] for spec in fleet.specs].count("compile") == 1
    assert fleet.specs[1].labels["name"] == "right"


def test_a_judgement_is_accepted_if_all_cases_are() -> None:
    fleet = FakeFleet(compile_then(double))
    judgement = fleet.judge(CPP, [Case("a", "1", "2"), Case("b", b"2", "4\n")])
    assert judgement.is_accepted
    assert judgement.describe() == "2 of 2 cases accepted"
    assert not fleet.judge(CPP, [Case("a", "1", "2")], is_exact=True).is_accepted


def test_a_program_that_does_not_compile_has_no_verdicts() -> None:
    fleet = FakeFleet(lambda _: end(code=1, stderr="error"))
    judgement = fleet.judge(CPP, [Case("a", "1", "2")])
    assert (judgement.did_compile, judgement.is_accepted, judgement.cases) == (False, False, ())
    assert len(fleet.specs) == 1


def test_a_long_answer_goes_through_the_store() -> None:
    fleet = FakeFleet()
    answer = b"x" * (600 * 1024)
    ref = fleet.upload(answer)
    kept = StreamOutput.of(b"x", len(answer))
    stored = replace(kept, stored=StoredObject(ref.sha256, ref.size))
    fleet.handler = lambda _: Outcome.of(ErrorCode.OK, "", exit_code=0, stdout=stored)
    (case,) = fleet.judge(Program("x", "python"), [Case("a", "", answer)]).cases
    assert case.verdict == "ACCEPTED"
    assert (fleet.specs[0].output.store, fleet.specs[0].output.max_bytes) == (True, 64 * 1024)


def test_languages_are_no_part_of_the_contract() -> None:
    spec = new_spec(Expansion(CPP, read_table()).compile_spec())
    assert "language" not in SandboxSpec.model_fields
    assert len(spec_sha256(spec)) == 64
    assert isinstance(FakeFleet(), Fleet)


# Backend.Execute.


def test_execute_compiles_and_runs() -> None:
    fleet = FakeFleet(compile_then(lambda _: end("__OUT__:7")))
    result = fleet.execute("int main() {}", "cpp", timeout=5)
    assert (result.value, result.exit_code, result.did_compile) == (7, 0, True)
    assert result.compile is not None
    assert result.compile.is_ok
    assert [(spec.image, spec.timeout) for spec in fleet.specs] == [("gcc", 60), ("gcc", 5)]
    assert {spec.security.user for spec in fleet.specs} == {"nobody:nogroup"}


@pytest.mark.parametrize("is_async", [False, True])
def test_execute_returns_a_compile_error(*, is_async: bool) -> None:
    fleet = FakeFleet(lambda _: end("__OUT__:7", code=1, stderr="error"))
    result = asyncio.run(fleet.execute_async("x", "rust")) if is_async else fleet.execute("x", "rust")
    assert (result.value, result.exit_code, result.stderr, result.did_compile) == (None, 1, "error", False)
    assert len(fleet.specs) == 1


def test_execute_says_that_the_compile_job_ran_into_a_limit() -> None:
    with pytest.raises(SandboxTimeout, match="the compile job: ran longer"):
        FakeFleet(lambda _: SandboxTimeout.of("ran longer than 60 s")).execute("x", "go")
