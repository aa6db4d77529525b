"""The ways of `sandfleet submit`: scripts, tables, arrays, and their common options."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from cli_fleet import Binary, end, new_use
from sandfleet import ErrorCode, SandboxResult
from sandfleet.cli import main
from sandfleet.cli.ways.array import parse_array
from sandfleet.cli.ways.entry import Fault, InputInvalid
from sandfleet.cli.ways.stages import Stages
from sandfleet.cli.ways.table import parse_table
from sandfleet.cli.ways.template import Template

if TYPE_CHECKING:
    from pathlib import Path

    from cli_fleet import Capture, Patch, Use
    from sandfleet.testing import FakeFleet

END = SandboxResult(exit_code=0, stdout="", stderr="", duration=0.1)


@pytest.fixture
def fleet(monkeypatch: Patch, tmp_path: Path) -> FakeFleet:
    use: Use = new_use(monkeypatch)
    monkeypatch.chdir(tmp_path)
    return use(end(ErrorCode.OK, exit_code=0))


def commands_of(fleet: FakeFleet) -> list[list[str]]:
    return [list(spec.command) for spec in fleet.specs]


def names_of(fleet: FakeFleet) -> list[str]:
    return [spec.labels["name"] for spec in fleet.specs]


def test_each_script_becomes_a_file_of_its_own_job(fleet: FakeFleet, tmp_path: Path) -> None:
    (tmp_path / "scripts/deep").mkdir(parents=True)
    for name in ("a10.py", "a2.py", "run.sh", "deep/a2.py"):
        (tmp_path / "scripts" / name).write_text(f"# {name}")
    (tmp_path / "scripts/run.sh").chmod(0o755)
    assert main(["submit", "--each", "scripts/*.py", "--label-from", "stem", "--", "python3", "{}", "{name}"]) == 0
    assert commands_of(fleet) == [["python3", "/work/a2.py", "a2.py"], ["python3", "/work/a10.py", "a10.py"]]
    assert [spec.labels for spec in fleet.specs] == [{"name": n, "stem": n[:-3]} for n in ("a2.py", "a10.py")]
    assert [fleet.read_input(file) for spec in fleet.specs for file in spec.files] == [b"# a2.py", b"# a10.py"]
    assert main(["submit", "--each", "scripts/**/*.py", "--each", "scripts/run.sh", "--", "{path}"]) == 0
    assert names_of(fleet)[2:] == ["scripts/a2.py", "scripts/a10.py", "scripts/deep/a2.py", "scripts/run.sh"]
    assert fleet.specs[5].files[0].mode == "0755"
    assert main(["submit", "--each", "scripts", "--name", "n-{index}", "--", "{}"]) == 0
    assert names_of(fleet)[6:] == ["n-0", "n-1", "n-2"]


@pytest.mark.parametrize(
    ("option", "text"), [("--csv", 'seed,of\n1,"a,\nb"\n\n2,\n'), ("--tsv", "seed\tof\n1\ta,\n2\t\n")]
)
def test_each_row_of_a_table_is_a_job(fleet: FakeFleet, tmp_path: Path, option: str, text: str) -> None:
    (tmp_path / "cases").write_text("\ufeff" + text)
    argv = [
        "submit",
        option,
        "cases",
        "--label-from",
        "s=seed",
        "--",
        "x",
        "--seed={seed}",
        "{{{of}}}",
        "$(id)",
        "{index}",
    ]
    assert main(argv) == 0
    first = "a,\nb" if option == "--csv" else "a,"
    assert commands_of(fleet) == [
        ["x", "--seed=1", "{" + first + "}", "$(id)", "0"],
        ["x", "--seed=2", "{}", "$(id)", "1"],
    ]
    lines = ("2", "5") if option == "--csv" else ("2", "3")
    assert [spec.labels for spec in fleet.specs] == [
        {"name": f"cases:{line}", "s": seed} for line, seed in zip(lines, "12", strict=True)
    ]


def test_rows_come_as_json_on_stdin_and_keep_their_numbers(fleet: FakeFleet, monkeypatch: Patch) -> None:
    monkeypatch.setattr("sys.stdin", Binary(b'{"x": 1.50, "on": true}\n{"x": 12345678901234567890, "y": "z"}'))
    assert main(["submit", "--jsonl", "-", "--label", "name=mine", "--", "{x}"]) == 0
    assert commands_of(fleet) == [["1.50"], ["12345678901234567890"]]
    assert names_of(fleet) == ["mine", "mine"]


def test_an_array_gives_each_job_its_index(fleet: FakeFleet) -> None:
    assert main(["submit", "--array", "0-20:10", "-e", "A=1", "--", "./task", "{index}"]) == 0
    assert commands_of(fleet) == [["./task", "0"], ["./task", "10"], ["./task", "20"]]
    assert list(fleet.specs[1].env) == ["A=1", "SANDFLEET_ARRAY_INDEX=10", "SANDFLEET_ARRAY_COUNT=3"]
    assert names_of(fleet) == ["task[0]", "task[10]", "task[20]"]
    assert parse_array("1,3,7-9") == [1, 3, 7, 8, 9]
    assert len(parse_array("0-999999")) == 1_000_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("9-0", "9-0: ends before it begins: did you mean 0-9?"),
        ("0-9:0", "a step must be at least 1"),
        ("1,0,0-1", "has the index 0 twice"),
        ("", "'' is no index: write 0-999, 0-999:10 or 1,3,7"),
        ("-1", "'-1' is no index"),
        ("0-9%3", "for at most 3 jobs at once say --array 0-9 --at-most 3"),
        ("0-1000000", "has more than 1000000 indexes"),
        (f"0-{'9' * 400}", "is no index"),
        ("0-999999999999999999", "has more than"),
    ],
)
def test_a_wrong_array_is_refused(text: str, said: str) -> None:
    with pytest.raises(InputInvalid) as caught:
        parse_array(text)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("{sede}", "argument 1: there is no {sede}: did you mean {seed}?"),
        ("{SEED}", "did you mean {seed}?"),
        ("{}", "argument 1: {} has no meaning here: the placeholders are {seed}, {of}"),
        ('d = {"a"', "argument 1: a single { at character 5: write {{ for a brace"),
        ("a}", "argument 1: a single } at character 2: write }} for a brace"),
    ],
)
def test_a_wrong_placeholder_is_told_with_its_place(word: str, said: str) -> None:
    with pytest.raises(InputInvalid) as caught:
        Template([word], ("seed", "of"))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("csv", "", "the table is empty"),
        ("csv", "a,b\n", "has no rows below its header"),
        ("csv", "a,a\n1,2\n", "line 1: column a is there twice"),
        ("csv", "a,\n1,2\n", "line 1: column 2 has no name"),
        ("csv", "a;b\n1;2\n", "columns are separated by commas, not by ;"),
        ("csv", "a\tb\n1\t2\n", "did you mean --tsv?"),
        ("tsv", "a,b\n1,2\n", "did you mean --csv?"),
        ("csv", "a,b\n1\n1,2,3\n", "line 2: has 1 fields, the header has 2; line 3: has 3 fields"),
        ("csv", 'a,b\n1,2\n1,"2\n', "line 3: a quoted field that begins here has no end"),
        ("csv", "a,{b}\n1,2\n", "column 2: a name must have no braces"),
        ("jsonl", "\n", "has no rows"),
        ("jsonl", '{"a": null}\n[]\nx\n{"a": NaN}', "line 1: a: must be text, a number, true or false, not null"),
        ("jsonl", '{"a": null}\n[]\nx\n{"a": NaN}', "line 2: must be a JSON object"),
        ("jsonl", '{"a": null}\n[]\nx\n{"a": NaN}', "line 3: is not JSON"),
        ("jsonl", '{"a": null}\n[]\nx\n{"a": NaN}', "line 4: a: must be text, a number, true or false, not NaN"),
    ],
)
def test_a_wrong_table_is_told_with_its_lines(kind: str, text: str, said: str) -> None:
    faults: list[Fault] = []
    parse_table(text, kind, faults)
    assert said in "; ".join(map(str, faults))


def test_options_hold_for_all_jobs_and_a_line_has_its_way(fleet: FakeFleet, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("x")
    lines = [
        {"image": "own", "env": ["A=own"], "resources": {"cpu_quota": 50000}, "labels": {"k": "own"}},
        {"command": ["y"], "env": {"B": 2}, "timeout": 3, "labels": {"z": "1"}},
    ]
    (tmp_path / "jobs").write_text("\n".join(map(json.dumps, lines)))
    options = ["--image", "all", "--timeout", "7", "--memory", "64MiB", "-e", "A=all", "-e", "C=", "-l", "k=all"]
    assert main(["submit", "jobs", *options, "--file", "in", "--stdin-file", "in", "--writable"]) == 0
    first, second = fleet.specs
    assert (first.image, second.image) == ("own", "all")
    assert (first.timeout, second.timeout) == (7, 3)
    assert first.resources.memory_bytes == second.resources.memory_bytes == 64 << 20
    assert first.resources.cpu_quota == 50000
    assert (list(first.env), list(second.env)) == (["C=", "A=own"], ["A=all", "C=", "B=2"])
    assert (first.labels, second.labels) == ({"k": "own"}, {"k": "all", "z": "1"})
    assert {spec.stdin.data for spec in fleet.specs} == {"x"}
    assert [spec.files[0].path for spec in fleet.specs] == ["/work/in"] * 2
    assert not first.security.read_only_rootfs


def test_a_byte_order_mark_and_crlf_do_not_spoil_a_file_of_jobs_or_ids(fleet: FakeFleet, tmp_path: Path) -> None:
    (tmp_path / "jobs").write_bytes(b'\xef\xbb\xbf{"image": "x", "command": ["a"]}\r\n')
    assert main(["submit", str(tmp_path / "jobs"), "--batch", "b"]) == 0
    (tmp_path / "ids").write_bytes(b"\xef\xbb\xbf" + fleet.job_ids[0].encode() + b"\r\n")
    assert main(["wait", "--file", str(tmp_path / "ids"), "--timeout", "5"]) == 0


def test_nothing_is_queued_when_anything_is_wrong(fleet: FakeFleet, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "c.csv").write_text("seed,name\n1,a\n2,b\n")
    long = "x" * 300
    (tmp_path / "long.csv").write_text(f"seed\n{long}\n1\n")
    (tmp_path / "rows").write_text('{"seed": 1}\n{"other": 2}\n')
    (tmp_path / "s.py").write_text("1")
    for argv, code, said in (
        (["--csv", "c.csv", "--", "{sed}"], 2, "argument 1: there is no {sed}: did you mean {seed}?"),
        (["--csv", "c.csv", "--label-from", "sed", "--", "x"], 2, "--label-from: there is no column sed: did you mean"),
        (["--csv", "c.csv", "--memory", "lots", "--", "x"], 2, "SPEC_INVALID: --memory: must be a number of bytes"),
        (["--csv", "c.csv", "--memory", "4KiB", "--", "x"], 2, "--memory: 4 KiB cannot work, the least is 16 MiB"),
        (["--csv", "long.csv", "--label-from", "seed", "--", "x"], 2, "line 2: SPEC_INVALID: labels.seed: "),
        (["--jsonl", "rows", "--", "{seed}"], 2, "line 2: has no seed"),
        (["--csv", "no.csv", "--", "{seed}"], 2, "no.csv: No such file or directory"),
        (["--csv", "c.csv"], 2, "--csv: needs a command: -- COMMAND [ARG]"),
        (["--csv", "c.csv", "--array", "0-1", "--", "x"], 2, "give one of --csv and --array"),
        (["--csv", "c.csv", "x", "{seed}"], 2, "--csv: what is x {seed}? The command comes after --"),
        (["--each", "*.txt", "--", "x", "{}"], 2, "--each: *.txt: no file matches"),
        (["--each", "s.py", "t.py", "--", "x", "{}"], 2, "--each: what is t.py? The command comes after --: put the"),
        (["--each", "s.py", "--", "python3"], 2, "the command: names no script: write {} where its path belongs"),
        (["--each", "s.py", "--", "python3", "{.}"], 2, "there is no {.}: did you mean {stem}?"),
        (["--array", "5-1", "--", "x"], 2, "--array: 5-1: ends before it begins"),
        (["c.csv", "--name", "x"], 2, "--name: a line of a file of jobs has labels of its own"),
        (["c.csv", "--", "x"], 2, "a command after -- needs --each, --csv, --tsv, --jsonl or --array"),
        ([], 2, "give a file of jobs (- is stdin), or --each, --csv, --tsv, --jsonl or --array"),
    ):
        assert main(["submit", *argv]) == code, argv
        assert said in capfd.readouterr().err, argv
    assert fleet.specs == []


@pytest.mark.parametrize(
    ("argv", "faults"),
    [
        (
            ["--csv", "c.csv", "--memory", "7QB", "--pids", "-1", "--name", "{nam}", "--label-from", "sed", "-e", "NO_SUCH",
             "-l", "k", "--file", "none", "--", "x", "{sede}"],
            ["--label k: must be key=value", "--env NO_SUCH: not set", "--file none: No such file", "SPEC_INVALID: --memory: ",
             "SPEC_INVALID: --pids: ", "line 3: has 1 fields", "argument 2: there is no {sede}", "--name 1: there is no {nam}",
             "--label-from: there is no column sed"],
        ),
        (
            ["--array", "5-1,a,0-9:0,7,7", "--disk", "1", "--name", "{nam}", "--", "x", "{i}"],
            ["SPEC_INVALID: --disk: ", "--array: 5-1: ends before", "--array: 'a' is no index", "--array: 0-9:0: a step",
             "--array: has the index 7 twice", "argument 2: there is no {i}", "--name 1: there is no {nam}"],
        ),
        (
            ["--each", "*.txt", "--timeout", "0.0001", "--label-from", "stm", "--", "x"],
            ["SPEC_INVALID: --timeout: ", "--each: *.txt: no file matches", "--label-from: there is no column stm",
             "the command: names no script"],
        ),
        (
            ["jobs", "--memory", "7QB", "--image", "y"],
            ["SPEC_INVALID: --memory: ", "line 1: SPEC_INVALID: imag: there is no", "line 2: SPEC_INVALID: is not JSON"],
        ),
        (
            ["--array", "0-3", "--stdin-file", ".", "--image", "docker://python:a:b", "-l", "k", "--", "true"],
            ["--label k: must be key=value", "--stdin-file: ", "SPEC_INVALID: --image: "],
        ),
        (["--jsonl", "nulls", "--", "{seed}"], ["line 1: seed: must be text", "line 2: seed: must be text"]),
    ],
    ids=("csv", "array", "each", "jobs", "told once", "nulls"),
)  # fmt: skip
def test_all_faults_of_options_and_input_are_told_at_once(
    fleet: FakeFleet, tmp_path: Path, capfd: Capture, argv: list[str], faults: list[str]
) -> None:
    (tmp_path / "c.csv").write_text("seed,of\n1,2\n3\n")
    (tmp_path / "jobs").write_text('{"imag": "x"}\n{\n{"command": ["true"]}\n')
    (tmp_path / "nulls").write_text('{"seed": null}\n{"seed": []}\n')
    for more in ([], ["--dry-run"]):
        assert main(["submit", *more, *argv]) == 2
        told = capfd.readouterr().err.splitlines()
        assert [fault for fault in faults if not any(line.startswith(f"sandfleet: {fault}") for line in told)] == []
        assert told[-1] == f"sandfleet: nothing was queued: {len(faults)} faults"
        assert len(told) == len(faults) + 1
    assert fleet.specs == []


def test_rows_without_columns_are_jobs_and_an_empty_table_has_none(
    fleet: FakeFleet, tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "rows").write_text("{}\n{}\n")
    (tmp_path / "empty").touch()
    assert main(["submit", "--jsonl", "rows", "--", "x", "{index}"]) == 0
    assert [spec.command for spec in fleet.specs] == [("x", "0"), ("x", "1")]
    capfd.readouterr()
    main(["submit", "--jsonl", "empty", "--", "x"])
    assert "has no rows" in capfd.readouterr().err


def test_a_dry_run_shows_the_first_jobs_and_the_totals(fleet: FakeFleet, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "large").write_bytes(b"x" * 100_000)
    argv = ["submit", "--array", "0-9", "--dry-run", "--file", "large", "-e", "KEY=secret", "--memory", "64MiB"]
    assert main([*argv, "--batch", "b", "--", "run me", "{index}"]) == 0
    out = capfd.readouterr().out
    assert "job 1         'run me' 0\n" in out
    assert "... and 7 more\n" in out
    assert "to upload     100000 bytes (about 97.7 KiB) at most\n" in out
    assert "most memory   64 MiB\n" in out
    assert "secret" not in out
    assert main([*argv, "--json", "--", "x", "{index}"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert (printed["jobs"], printed["upload_bytes"], printed["largest_memory_bytes"]) == (10, 100_000, 64 << 20)
    assert printed["first"][2]["command"] == ["x", "2"]
    assert "secret" not in str(printed)
    assert fleet.specs == []


def test_a_dry_run_shows_the_limits_that_would_hold(fleet: FakeFleet, capfd: Capture) -> None:
    argv = ["submit", "--array", "0-9", "--batch", "b", "--dry-run"]
    assert main([*argv, "--", "x"]) == 0
    plain = capfd.readouterr().out
    assert not any(word in plain for word in ("at once", "stops", "deadline", "after", "on done"))
    given = ["--at-most", "3", "--max-failures", "20", "--deadline", "2h", "--on-stop", "kill"]
    given += ["--after-batch", "prepare", "--after", "job-1", "--on-done", "ci"]
    assert main([*argv, *given, "--", "x"]) == 0
    out = capfd.readouterr().out
    for line in (
        "at most       3 at once\n",
        "stops         when 20 jobs have failed; those that run are cancelled\n",
        "deadline      7200 s (2 h) after the submit; those that run are cancelled\n",
        "after         all jobs start when batch prepare, job job-1 ended OK\n",
        "on done       a webhook to endpoint ci\n",
    ):
        assert line in out
    assert main([*argv, *given, "--json", "--", "x"]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed["limits"] == {
        "max_failures": 20, "fail_fast": False, "at_most": 3, "deadline": 7200.0, "on_stop": "kill"
    }  # fmt: skip
    assert (printed["awaited"], printed["waiting_jobs"]) == ({"jobs": ["job-1"], "batches": ["prepare"]}, 10)
    assert printed["on_done"] == "ci"
    assert main([*argv, "--fail-fast", "--", "x"]) == 0
    assert "stops         when 1 job has failed; those that run go on\n" in capfd.readouterr().out
    assert fleet.specs == []


def test_a_spec_that_is_too_large_is_told_with_its_line(fleet: FakeFleet, tmp_path: Path, capfd: Capture) -> None:
    lines = [
        {"image": "x"},
        {"image": "x", "command": ["x" * 60_000] * 5},
        {"image": "x", "command": ["\u0001" * 60_000]},
    ]
    (tmp_path / "jobs").write_text("\n".join(map(json.dumps, lines)))
    assert main(["submit", "jobs"]) == 2
    err = capfd.readouterr().err
    assert "line 2: SPEC_TOO_LARGE: " in err
    assert "line 3: SPEC_TOO_LARGE: " in err
    assert "nothing was queued: 2 of 3 lines are faulty" in err
    assert fleet.specs == []


def test_a_slow_submit_says_in_one_line_how_fast_it_was(capfd: Capture) -> None:
    now = [0.0]
    stages = Stages(clock=lambda: now[0])
    for verb, done, total, unit in (("checking", "checked", 1000, "jobs"), ("uploading", "uploaded", 1 << 20, "bytes")):
        with stages.stage(verb, done, total, unit) as report:
            now[0] += 2
            report(total)
    stages.sum_up()
    assert capfd.readouterr().err == (
        "sandfleet: checked 1,000 jobs in 2.0 s (500 a second), uploaded 1 MiB in 2.0 s (512 KiB a second)\n"
    )
    Stages(is_quiet=True, clock=lambda: now[0]).sum_up()
    assert capfd.readouterr().err == ""
