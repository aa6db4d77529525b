"""The table of a batch: rows, three formats, files beside it, and resuming an interrupted one."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import shutil
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
from sandfleet import Batch, ErrorCode, Outcome, ResultsNotWritten, SandboxResult, SandboxSpec
from sandfleet.channel.stored_result import parse_outcome
from sandfleet.results import lines, parquet, rows
from sandfleet.results.columns import COLUMNS, ColumnUnknown
from sandfleet.testing import FakeFleet, WithArtifacts
from sandfleet_config.outcome import Attempt, StreamOutput

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from sandfleet.channel.records import JobRecord
    from sandfleet.testing import Ending

FORMATS = ("jsonl", "csv", "parquet")
STARTED = datetime(2026, 11, 28, 12, tzinfo=UTC)


def play(spec: SandboxSpec) -> Ending:
    """End a job as its only word says."""
    match spec.command[0]:
        case "queued":
            return None
        case "binary":
            return Outcome.of(ErrorCode.OK, "", exit_code=0, stdout=StreamOutput.of(b"\xff\x00"))
        case "formula":
            return SandboxResult(exit_code=0, stdout="=1+1", stderr="-x\n", duration=0.5)
        case "file":
            return WithArtifacts(SandboxResult(exit_code=0, stdout="o", stderr="", duration=0.5), {"a/b": b"12"})
        case "half":
            return Outcome.of(ErrorCode.SIGNALED, "", "half \udc80", signal=9, attempts=(new_attempt(),))
        case word:
            return SandboxResult(exit_code=int(word), stdout=f"ends {word}", stderr="", duration=0.5)


def new_attempt() -> Attempt:
    return Attempt(host="h", worker="w", code=ErrorCode.SIGNALED, started=STARTED, ended=STARTED)


def submit(*words: str) -> tuple[Batch, FakeFleet]:
    """Return a batch of jobs that end so."""
    fleet = FakeFleet(play)
    fleet.submit_many([SandboxSpec(image="x", command=[word], labels={"word": word}) for word in words], batch="b")
    return fleet.batch("b"), fleet


def read(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    found: list[dict[str, Any]] = pq.ParquetFile(path).read().to_pylist(maps_as_pydicts="strict")
    return found


@pytest.mark.parametrize("kind", FORMATS)
def test_each_job_is_a_row_in_the_order_of_submit(tmp_path: Path, kind: str) -> None:
    batch, _ = submit("3", "0", "half", "binary", "file", "queued")
    written = batch.save_results(tmp_path / f"r.{kind}")
    assert (written.rows, written.states, written.is_complete) == (6, {"ended": 5, "queued": 1}, False)
    found = read(tmp_path / f"r.{kind}")
    assert list(found[0]) == [column.name for column in COLUMNS]
    assert [row["job_id"] for row in found] == batch.job_ids
    codes = ["EXIT_NONZERO", "OK", "SIGNALED", "OK", "OK", "" if kind == "csv" else None]
    assert [row["code"] for row in found] == codes
    assert [row["state"] for row in found] == [*["ended"] * 5, "queued"]
    assert found[0]["stdout"] == "ends 3"
    assert (found[3]["stdout"], found[3]["stdout_encoding"]) == ("/wA=", "base64")
    assert [path.name for path in tmp_path.iterdir()] == [f"r.{kind}"]


def test_all_formats_say_the_same(tmp_path: Path) -> None:
    batch, _ = submit("3", "half", "file")
    for kind in FORMATS:
        batch.save_results(tmp_path / f"r.{kind}")
    found = [read(tmp_path / f"r.{kind}") for kind in FORMATS]
    in_json, in_csv, in_parquet = ([normalize(row) for row in table] for table in found)
    assert in_csv == in_json == in_parquet


def normalize(row: dict[str, Any]) -> dict[str, str]:
    """Return a row of any format as CSV has it."""
    row = {**row, "message": row["message"].encode(errors="backslashreplace").decode()}
    (cells,) = csv.reader([lines.format_csv([row]).decode()])
    return {name: cell.replace(" ", "T").replace("+00:00", "Z") for name, cell in zip(row, cells, strict=True)}


def test_a_carriage_return_ends_no_row_of_a_csv() -> None:
    text = lines.format_csv([{"a": "50%\r100%\r=1+1", "b": 1, "c": None}, {"a": "x", "b": 2, "c": None}]).decode()
    table = list(csv.reader(io.StringIO(text, newline="")))
    assert table == [["50%\r100%\r=1+1", "1", ""], ["x", "2", ""]]


def test_text_that_a_spreadsheet_would_compute_is_quoted_in_csv_only(tmp_path: Path) -> None:
    batch, _ = submit("formula")
    for kind, (stdout, stderr) in {"jsonl": ("=1+1", "-x\n"), "csv": ("'=1+1", "'-x\n")}.items():
        batch.save_results(tmp_path / f"r.{kind}", columns=["stdout", "stderr"])
        assert read(tmp_path / f"r.{kind}") == [{"stdout": stdout, "stderr": stderr}]


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"])
def test_every_start_of_a_formula_is_quoted(start: str) -> None:
    assert lines.format_csv([{"a": f"{start}1"}]).decode().strip('"').startswith("'")


def test_columns_are_chosen_and_a_label_is_one(tmp_path: Path) -> None:
    batch, _ = submit("3", "queued")
    batch.save_results(tmp_path / "r.jsonl", columns=["labels.word", "labels.none", "exit_code", "line", "queue"])
    row = {"labels.word": "3", "labels.none": None, "exit_code": 3, "line": "x 3", "queue": "sandfleet"}
    assert read(tmp_path / "r.jsonl") == [row, {**row, "labels.word": "queued", "exit_code": None, "line": "x queued"}]


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (["exitcode"], "there is no column exitcode: did you mean exit_code?"),
        (["code", "code"], "column code is named twice"),
        (["stdout_file"], "needs a folder for outputs"),
        ([], "no column is named"),
        (["zzz"], "the columns are job_id, batch"),
    ],
)
def test_a_wrong_column_is_told(columns: list[str], said: str) -> None:
    batch, _ = submit("0")
    with pytest.raises(ColumnUnknown, match=said):
        next(batch.rows(columns))


def test_outputs_and_artifacts_become_files(tmp_path: Path) -> None:
    batch, fleet = submit("binary", "file", "0")
    outputs, saved = tmp_path / "out", tmp_path / "saved"
    written = batch.save_results(tmp_path / "r.jsonl", outputs=outputs, artifacts=saved)
    assert written.is_complete
    found = read(tmp_path / "r.jsonl")
    assert "stdout" not in found[0]
    assert [row["stderr_file"] for row in found] == [None] * 3
    first, second, _ = fleet.job_ids
    assert (outputs / first / "stdout").read_bytes() == b"\xff\x00"
    assert found[1]["stdout_file"] == str(outputs / second / "stdout")
    assert (saved / second / "a/b").read_bytes() == b"12"
    assert sorted(path.name for path in saved.iterdir()) == [second]


def test_another_file_is_kept_and_told_unless_it_may_be_replaced(tmp_path: Path) -> None:
    batch, fleet = submit("0")
    there = tmp_path / fleet.job_ids[0] / "stdout"
    there.parent.mkdir()
    there.write_text("mine")
    faults: list[str] = []
    written = batch.save_results(tmp_path / "r.jsonl", outputs=tmp_path, on_fault=faults.append)
    assert (written.not_saved, written.is_complete) == (1, False)
    assert faults == [f"{fleet.job_ids[0]}/stdout: another file is there under this name; it is kept"]
    assert there.read_text() == "mine"
    assert batch.save_results(tmp_path / "r.jsonl", outputs=tmp_path, overwrite=True).is_complete
    assert there.read_text() == "ends 0"


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints after every few rows."""
    monkeypatch.setattr(rows, "PAGE_JOBS", 7)
    monkeypatch.setattr(lines, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(parquet, "CONVERTED_ROWS", 5)
    monkeypatch.setattr(parquet, "PART_ROWS", 20)


class Stop(Exception):
    """An interruption."""


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("kind", FORMATS)
def test_an_interrupted_table_is_gone_on_with_and_equals_the_whole(tmp_path: Path, kind: str) -> None:
    batch, _ = submit(*(str(number % 5) for number in range(100)))
    whole, path = tmp_path / f"whole.{kind}", tmp_path / f"r.{kind}"
    batch.save_results(whole)
    path.write_text("of yesterday")
    starts: list[int] = []
    for stop in (30, 60, 95, 1000):

        def count(number: int, stop: int = stop, seen: list[int] = starts) -> None:
            seen.append(number)
            if number >= stop:
                raise Stop

        starts.clear()
        try:
            written = batch.save_results(path, resume=True, on_rows=count)
        except Stop:
            assert path.read_text() == "of yesterday"
        else:
            assert (written.rows, written.is_complete) == (100, True)
            assert starts[0] > 70
    assert read(path) == read(whole)
    if kind != "parquet":
        assert path.read_bytes() == whole.read_bytes()
    assert sorted(found.name for found in tmp_path.iterdir()) == [f"r.{kind}", f"whole.{kind}"]


@pytest.mark.usefixtures("small_steps")
def test_without_resume_it_begins_anew_and_another_table_is_not_gone_on_with(tmp_path: Path) -> None:
    batch, _ = submit(*["0"] * 50)

    def stop(number: int) -> None:
        raise Stop

    with pytest.raises(Stop):
        batch.save_results(tmp_path / "r.csv", columns=["code"], on_rows=stop)
    with pytest.raises(ResultsNotWritten, match=r"another one \(columns was \['code'\], now \['job_id'\]\)"):
        batch.save_results(tmp_path / "r.csv", columns=["job_id"], resume=True)
    assert batch.save_results(tmp_path / "r.csv", columns=["job_id"]).rows == 50
    assert [row["job_id"] for row in read(tmp_path / "r.csv")] == batch.job_ids


def delete(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def cut(path: Path) -> None:
    if path.is_dir():
        (path / "part-00000.parquet").unlink()
    else:
        path.write_bytes(path.read_bytes()[:10])


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("damage", [delete, cut])
def test_a_temporary_file_that_lacks_something_is_written_anew(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    batch, _ = submit(*["0"] * 50)

    def stop(number: int) -> None:
        if number > 40:
            raise Stop

    for kind in FORMATS:
        with pytest.raises(Stop):
            batch.save_results(tmp_path / f"r.{kind}", on_rows=stop)
        for found in tmp_path.glob(".*-part*"):
            damage(found)
        batch.save_results(tmp_path / f"r.{kind}", resume=True)
        assert [row["job_id"] for row in read(tmp_path / f"r.{kind}")] == batch.job_ids


def test_two_processes_do_not_write_the_same_table(tmp_path: Path) -> None:
    batch, _ = submit("0")

    def again(number: int) -> None:
        with pytest.raises(ResultsNotWritten, match="another process"):
            batch.save_results(tmp_path / "r.csv")

    assert batch.save_results(tmp_path / "r.csv", on_rows=again).rows == 1


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("forgotten", [3, 10, 30, 60])
def test_jobs_that_leave_the_front_of_the_list_meanwhile_move_no_other_row(tmp_path: Path, forgotten: int) -> None:
    batch, fleet = submit(*["0"] * 60)
    ids = batch.job_ids
    listed = list(ids)
    fleet._fake.batch_ids = lambda name: list(listed)  # type: ignore[method-assign]  # noqa: ARG005

    def drop(number: int) -> None:
        if number > 10:
            del listed[: max(0, forgotten - (60 - len(listed)))]

    batch.save_results(tmp_path / "r.jsonl", on_rows=drop)
    found = [row["job_id"] for row in read(tmp_path / "r.jsonl")]
    assert len(set(found)) == len(found)
    assert found == ids[: len(found)] if forgotten == 60 else found[-20:] == ids[-20:]


def list_twice(batch: Batch, fleet: FakeFleet, relisted: list[str]) -> None:
    """Run all jobs of the batch again, and list some at the end once more, as if their records had been lost."""
    assert batch.retry().queued == len(batch.job_ids)
    listed = [*batch.job_ids, *relisted]
    fleet._fake.batch_ids = lambda name: list(listed)  # type: ignore[method-assign]  # noqa: ARG005
    known = fleet._fake.records

    def read_records(job_ids: Sequence[str]) -> list[JobRecord | None]:
        return [
            record and record.model_copy(update={"is_relisted": job_id in relisted})
            for job_id, record in zip(job_ids, known(job_ids), strict=True)
        ]

    fleet._fake.records = read_records  # type: ignore[method-assign]


@pytest.mark.usefixtures("small_steps")
@pytest.mark.parametrize("stop", [10, 40, 80, 110])
def test_a_table_that_is_gone_on_with_has_a_job_that_is_listed_twice_once(tmp_path: Path, stop: int) -> None:
    batch, fleet = submit(*["3"] * 100)
    ids = batch.job_ids
    list_twice(batch, fleet, ids[0:60:5])

    def interrupt(number: int) -> None:
        if number >= stop:
            raise Stop

    with contextlib.suppress(Stop):
        batch.save_results(tmp_path / "r.jsonl", on_rows=interrupt)
    for _ in range(3):  # nothing is lost in a second interruption
        with contextlib.suppress(Stop):
            batch.save_results(tmp_path / "r.jsonl", resume=True, on_rows=interrupt)
    batch.save_results(tmp_path / "r.jsonl", resume=True)
    found = read(tmp_path / "r.jsonl")
    assert [row["job_id"] for row in found] == ids
    assert {row["run"] for row in found} == {2}


def test_only_jobs_that_are_listed_twice_are_remembered() -> None:
    batch, fleet = submit(*["3"] * 50)
    ids = batch.job_ids
    list_twice(batch, fleet, ids[:2])
    found = rows.BatchRows(fleet._channel, "b")
    assert [job.job_id for page in found.read() for job in page] == ids
    assert list(found.relisted) == ids[:2]


def test_an_empty_name_of_a_format_is_refused(tmp_path: Path) -> None:
    batch, _ = submit("0")
    with pytest.raises(ResultsNotWritten, match=r"end its name with \.jsonl, \.csv or \.parquet"):
        batch.save_results(tmp_path / "results.xlsx")


def test_pandas_gets_types_that_may_be_absent() -> None:
    batch, _ = submit("3", "queued", "half")
    frame = batch.to_pandas(["code", "exit_code", "retryable", "labels", "started", "labels.word"])
    assert isinstance(frame, pd.DataFrame)
    assert str(frame.exit_code.dtype) == "Int64"
    assert frame.exit_code[0] == 3
    assert frame.exit_code[1] is pd.NA
    assert frame.labels[0] == {"word": "3"}
    assert list(frame.groupby("code")["labels.word"].first()) == ["3", "half"]
    assert frame.started[2] == STARTED


def test_without_pyarrow_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, _ = submit("0")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(ImportError, match=r"pip install 'sandfleet\[parquet\]'"):
        batch.save_results(tmp_path / "r.parquet")


def test_an_outcome_that_names_another_job_is_none_of_this_job() -> None:
    forged = Outcome.of(ErrorCode.OK, "../../home/me", exit_code=0, stdout=StreamOutput.of(b"x"))
    raw = json.dumps({"status": "SUCCESS", "result": forged.to_json()}).encode()
    found = parse_outcome(raw, "one")
    assert found is not None
    assert (found.job_id, found.code, found.stdout.data) == ("one", ErrorCode.INTERNAL, "")
    assert "another job" in found.message


def test_no_file_of_a_forged_outcome_is_written_outside_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch, fleet = submit("0")
    forged = Outcome.of(ErrorCode.OK, "../../evil", exit_code=0, stdout=StreamOutput.of(b"x"))
    monkeypatch.setattr(fleet.fake_channel, "outcome_chunks", lambda pages: ((ids, [forged]) for ids in pages))
    batch.save_results(tmp_path / "a" / "r.csv", outputs=tmp_path / "a" / "b" / "out", overwrite=True)
    assert [path.name for path in tmp_path.rglob("stdout")] == ["stdout"]
    assert (tmp_path / "a" / "b" / "out" / batch.job_ids[0] / "stdout").read_bytes() == b"x"


@pytest.mark.parametrize("name", [".r.csv.sandfleet-state", ".r.csv.sandfleet-part"])
def test_no_link_that_a_stranger_made_in_a_shared_folder_is_written_through(tmp_path: Path, name: str) -> None:
    batch, _ = submit("0")
    (tmp_path / "precious").write_text("mine")
    (tmp_path / name).symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"sandfleet-"):
        batch.save_results(tmp_path / "r.csv")
    assert (tmp_path / "precious").read_text() == "mine"
