"""Files and artifacts of `sandfleet run`, `submit`, `show` and `artifacts`."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
from cli_fleet import end, new_use
from sandfleet import ErrorCode, Outcome, SandboxResult, SandboxSpec, StoredObject, StreamOutput
from sandfleet.cli import main
from sandfleet.testing import WithArtifacts

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from cli_fleet import Capture, Patch, Use
    from sandfleet.testing import FakeFleet

END = SandboxResult(exit_code=0, stdout="", stderr="", duration=0.1)


@pytest.fixture
def use(monkeypatch: Patch, tmp_path: Path) -> Use:
    monkeypatch.chdir(tmp_path)
    return new_use(monkeypatch)


def list_sent(fleet: FakeFleet, index: int = 0) -> dict[str, bytes]:
    return {file.path: fleet.read_input(file) for file in fleet.specs[index].files}


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


TYPED = {
    "a.py": ["/work/a.py"],
    "a.py:b.py": ["/work/b.py"],
    "src/c.py:in/": ["/work/in/c.py"],
    "a.py:/tmp/x": ["/tmp/x"],
    "src": ["/work/src/c.py", "/work/src/d/e.py"],
    "src/": ["/work/src/c.py", "/work/src/d/e.py"],
    "src/:/work/": ["/work/c.py", "/work/d/e.py"],
    "src:.": ["/work/c.py", "/work/d/e.py"],
    "src:lib": ["/work/lib/c.py", "/work/lib/d/e.py"],
    "a:b": ["/work/a:b"],
    "a:b:c": ["/work/c"],
}


@pytest.mark.parametrize("text", TYPED)
def test_a_file_option_names_a_file_or_a_folder_and_its_place(use: Use, tmp_path: Path, text: str) -> None:
    write(tmp_path, {"a.py": b"1", "src/c.py": b"2", "src/d/e.py": b"3", "a:b": b"4"})
    fleet = use(end(ErrorCode.OK, exit_code=0))
    assert main(["run", "--file", text, "--", "x"]) == 0
    assert list(list_sent(fleet)) == TYPED[text]


def test_large_and_small_files_reach_the_job(use: Use, tmp_path: Path) -> None:
    files = {"small": b"s", "large": b"\xff" * 40_000, "input": b"i" * 300_000}
    write(tmp_path, files)
    (tmp_path / "small").chmod(0o755)
    fleet = use(end(ErrorCode.OK, exit_code=0))
    assert main(["run", "--file", "small", "--file", "large", "--stdin-file", "input", "--", "x"]) == 0
    assert list_sent(fleet) == {"/work/small": b"s", "/work/large": files["large"]}
    assert [(file.mode, file.size) for file in fleet.specs[0].files] == [("0755", None), ("0644", 40_000)]
    assert fleet.read_input(fleet.specs[0].stdin) == files["input"]


def test_all_faulty_files_are_told_and_nothing_is_queued(use: Use, capfd: Capture) -> None:
    fleet = use(end(ErrorCode.OK, exit_code=0))
    assert main(["run", "--file", "none", "--file", "/dev/null:x", "--", "x"]) == 125
    assert "SPEC_INVALID: --file none: No such file or directory; --file /dev/null:x: " in capfd.readouterr().err
    assert main(["run", "--file", "/etc/hostname:../x", "--", "x"]) == 125
    assert "must not contain .." in capfd.readouterr().err
    assert main(["run", "--stdin-file", "none", "--", "x"]) == 125
    assert main(["run", "--stdin-file", "none", "--stdin", "--", "x"]) == 125
    assert main(["run", "--save", "x", "--", "x"]) == 125
    assert not fleet.specs


def test_run_saves_artifacts_and_exits_with_the_code_of_the_program(use: Use, tmp_path: Path, capfd: Capture) -> None:
    failed = SandboxResult(exit_code=3, stdout="", stderr="", duration=0.1)
    fleet = use(lambda _: WithArtifacts(failed, {"out/a": b"aa", "b": b"b"}))
    assert main(["run", "--artifact", "out/*", "--artifact", "b", "--save", "new/r", "--", "x"]) == 3
    assert "2 artifacts (3 bytes) saved in new/r" in capfd.readouterr().err
    assert (tmp_path / "new/r/out/a").read_bytes() == b"aa"
    assert [artifact.glob for artifact in fleet.specs[0].artifacts] == ["/work/out/*", "/work/b"]


def test_run_fails_if_artifacts_are_lost_or_not_saved(use: Use, tmp_path: Path, capfd: Capture) -> None:
    use(lambda _: WithArtifacts(END, {"../\x1b[1m": b"", "b": b"b"}, "the store is full\n"))
    assert main(["run", "--artifact", "*", "--save", "r", "--", "x"]) == 125
    err = capfd.readouterr().err
    assert "were lost: the store is full\\n\n" in err
    assert "../\\x1b[1m: the name has ..\n" in err
    assert (tmp_path / "r/b").read_bytes() == b"b"
    assert main(["run", "--artifact", "*", "--", "x"]) == 0
    assert "2 artifacts; to save them: sandfleet artifacts " in capfd.readouterr().err


def test_artifacts_lists_and_saves_those_of_a_job(use: Use, tmp_path: Path, capfd: Capture) -> None:
    fleet = use(lambda _: WithArtifacts(END, {"out/a": b"aa", "b\n\u202ec": b"b"}))
    job = fleet.submit({"image": "x"})
    digests = [artifact.sha256 for artifact in job.artifacts]
    assert main(["artifacts", job.id]) == 0
    assert capfd.readouterr().out == f"out/a\t2\t{digests[0]}\nb\\n\\u202ec\t1\t{digests[1]}\n"
    assert main(["artifacts", job.id, "--json"]) == 0
    told: dict[str, Any] = json.loads(capfd.readouterr().out)
    assert [item["path"] for item in told["artifacts"]] == ["out/a", "b\n\u202ec"]
    assert main(["artifacts", job.id, "--save", "r"]) == 1
    assert (tmp_path / "r/out/a").read_bytes() == b"aa"
    write(tmp_path, {"r/out/a": b"mine"})
    assert main(["artifacts", job.id, "--save", "r"]) == 1
    assert (tmp_path / "r/out/a").read_bytes() == b"mine"
    assert main(["artifacts", job.id, "--save", "r", "--overwrite"]) == 1
    assert (tmp_path / "r/out/a").read_bytes() == b"aa"


def test_artifacts_of_a_batch_are_saved_in_a_folder_for_each_job(use: Use, tmp_path: Path, capfd: Capture) -> None:
    def handler(spec: SandboxSpec) -> WithArtifacts | None:
        name = spec.labels["name"]
        return None if name == "late" else WithArtifacts(END, {"out": name.encode()})

    fleet = use(handler)
    jobs = fleet.submit_many([{"image": "x", "labels": {"name": name}} for name in ("a", "b", "late")], batch="n")
    assert main(["artifacts", "--batch", "n", "--save", "r"]) == 1
    err = capfd.readouterr().err
    assert "2 artifacts of 2 jobs (2 bytes) saved in r" in err
    assert "1 of 3 jobs have not ended. To wait: sandfleet batch wait n" in err
    fleet.finish(jobs[2].id, WithArtifacts(END, {"out": b"late"}))
    assert main(["artifacts", "--batch", "n", "--save", "r"]) == 0
    assert [(tmp_path / "r" / job.id / "out").read_bytes() for job in jobs] == [b"a", b"b", b"late"]
    capfd.readouterr()
    assert main(["artifacts", "--batch", "n"]) == 0
    assert [line.split("\t")[:3] for line in capfd.readouterr().out.splitlines()] == [
        [job.id, "out", str(size)] for job, size in zip(jobs, (1, 1, 4), strict=True)
    ]
    assert main(["artifacts", "--batch", "n", "--json"]) == 0
    assert [json.loads(line)["job_id"] for line in capfd.readouterr().out.splitlines()] == [job.id for job in jobs]


def test_artifacts_of_a_job_that_runs_are_not_there_yet(use: Use, capfd: Capture) -> None:
    job = use(lambda _: None).submit({"image": "x"})
    assert main(["artifacts", job.id]) == 1
    assert "has not ended" in capfd.readouterr().err
    assert main(["artifacts"]) == 2
    assert main(["artifacts", job.id, "--batch", "b"]) == 2
    assert main(["artifacts", "unknown"]) == 1


def test_a_file_of_jobs_names_local_files(use: Use, tmp_path: Path) -> None:
    write(tmp_path, {"jobs/a.csv": b"1,2", "jobs/src/lib/b.py": b"b", "jobs/big": b"x" * 50_000, "all.py": b"all"})
    lines = [
        {"image": "x", "files": [{"from": "a.csv"}, {"from": "src", "path": "/work/"}, {"path": "t", "content": "c"}]},
        {"image": "x", "files": [{"from": "big", "path": "in/big", "mode": "0755"}], "stdin": {"from": "a.csv"}},
        {"image": "x"},
    ]
    (tmp_path / "jobs/jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fleet = use(end(ErrorCode.OK, exit_code=0))
    assert main(["submit", "jobs/jobs.jsonl", "--file", "all.py", "--artifact", "out/**"]) == 0
    shared = {"/work/all.py": b"all"}
    assert list_sent(fleet) == shared | {"/work/a.csv": b"1,2", "/work/lib/b.py": b"b", "/work/t": b"c"}
    assert list_sent(fleet, 1) == shared | {"/work/in/big": b"x" * 50_000}
    assert fleet.specs[1].files[1].mode == "0755"
    assert fleet.read_input(fleet.specs[1].stdin) == b"1,2"
    assert list_sent(fleet, 2) == shared
    assert all("from" not in spec.model_dump_json() and "jobs/" not in spec.model_dump_json() for spec in fleet.specs)
    assert {artifact.glob for spec in fleet.specs for artifact in spec.artifacts} == {"/work/out/**"}


def test_every_fault_of_local_files_is_told_before_the_first_job_is_queued(
    use: Use, tmp_path: Path, capfd: Capture
) -> None:
    write(tmp_path, {"a": b"1", "src/b": b"2"})
    lines = [
        {"image": "x", "files": [{"from": "none"}, {"from": "a", "content": "c"}, {"from": 3}], "timeout": -1},
        {"image": "x", "files": [{"from": "src", "mode": "0755"}], "stdin": {"from": "a", "data": "x"}},
        {"image": "x", "files": [{"from": "a"}, {"from": "a"}]},
        {"image": "x", "files": [{"from": "a", "mode": 444}, {"path": "b", "content": "", "mode": 444}]},
        {"image": "x", "files": [{"from": "a"}]},
    ]
    (tmp_path / "jobs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fleet = use(end(ErrorCode.OK, exit_code=0))
    assert main(["submit", "jobs.jsonl"]) == 2
    told = capfd.readouterr().err
    for fault in (
        "line 1: SPEC_INVALID: files.0.from: none: No such file or directory",
        "line 1: SPEC_INVALID: files.1.from: cannot stand beside 'content'",
        "line 1: SPEC_INVALID: files.2.from: must be the name of a local file",
        "line 1: SPEC_INVALID: timeout: ",
        "line 2: SPEC_INVALID: files.0.from: mode cannot be given for a folder",
        "line 2: SPEC_INVALID: stdin.from: cannot stand beside 'data'",
        "line 3: SPEC_INVALID: files: two files have the same path: /work/a",
        "line 4: SPEC_INVALID: files.0.mode: must be text",
        "line 4: SPEC_INVALID: files.1.mode: must be text",
        "nothing was queued: 4 of 5 lines are faulty",
    ):
        assert fault in told
    assert not fleet.specs


def test_submit_and_wait_saves_the_artifacts_of_each_job(use: Use, tmp_path: Path, capfd: Capture) -> None:
    fleet = use(lambda spec: WithArtifacts(END, {"out": spec.command[0].encode()}))
    (tmp_path / "jobs.jsonl").write_text('{"image": "x", "command": ["a"]}\n{"image": "x", "command": ["b"]}\n')
    assert main(["submit", "jobs.jsonl", "--wait", "--save", "r"]) == 0
    assert [(tmp_path / "r" / job_id / "out").read_bytes() for job_id in fleet.job_ids] == [b"a", b"b"]
    assert "2 artifacts of 2 jobs (2 bytes) saved in r" in capfd.readouterr().err
    assert main(["submit", "jobs.jsonl", "--save", "r"]) == 2


def test_show_prints_files_artifacts_and_what_was_lost(use: Use, capfd: Capture) -> None:
    stored = StreamOutput(data="ab", total_bytes=9, truncated=True, stored=StoredObject("f" * 64, 9))
    ending = Outcome.of(ErrorCode.OK, "", exit_code=0, stdout=stored)
    fleet = use(lambda _: WithArtifacts(ending, {f"a{n}\x1b[2J": b"x" for n in range(12)}, "too\nmany"))
    job = fleet.submit({"image": "x", "files": [{"path": "a", "content": "abc"}]})
    assert main(["show", job.id]) == 0
    out = capfd.readouterr().out
    for line in (
        "files         1 (3 bytes)",
        "artifacts     12 (12 bytes)",
        "              a0\\x1b[2J (1 byte)",
        f"              and 2 more: sandfleet artifacts {job.id}",
        "lost          artifacts: too\\nmany",
        f"stdout        9 bytes in the store: {'f' * 64}",
    ):
        assert f"{line}\n" in out
    assert "\x1b" not in out


def test_an_interrupted_wait_says_how_to_save_the_other_artifacts(
    use: Use, monkeypatch: Patch, tmp_path: Path, capfd: Capture
) -> None:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    fleet = use(lambda _: WithArtifacts(END, {"out": b"x"}))
    (tmp_path / "jobs.jsonl").write_text('{"image": "x"}\n')
    monkeypatch.setattr(fleet.store, "read", interrupt)
    assert main(["submit", "jobs.jsonl", "--batch", "b", "--wait", "--save", "r"]) == 130
    assert "to save the others later: sandfleet artifacts --batch b --save r\n" in capfd.readouterr().err
