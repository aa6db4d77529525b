"""The `sandfleet` commands for batches: batches, batch show and retry, jobs, show of any job."""

from __future__ import annotations

import csv
import io
import json
from typing import TYPE_CHECKING

import pytest
from cli_fleet import new_use
from rich.console import Console
from sandfleet import BatchLimits, ErrorCode, Outcome, SandboxSpec
from sandfleet.cli import main
from sandfleet.cli.progress import Progress, Rate
from sandfleet.cli.rows import format_duration

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandfleet.testing.fake_fleet import Ending, FakeFleet

    Capture = pytest.CaptureFixture[str]
    Use = Callable[[Callable[[SandboxSpec], Ending]], FakeFleet]


def run_as_labelled(spec: SandboxSpec) -> Ending:
    """End a job with the code that its label says; with a timeout of 60 s it is OK.

    None: it stays queued.
    """
    code = spec.labels.get("code", "OK")
    return None if code == "-" else Outcome.of(ErrorCode.OK if spec.timeout == 60 else ErrorCode(code), "")


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> FakeFleet:
    """A fleet with batch `b`: two jobs OK, two TIMEOUT, one EXIT_NONZERO, one queued."""
    use: Use = new_use(monkeypatch)
    fleet = use(run_as_labelled)
    codes = ("OK", "TIMEOUT", "EXIT_NONZERO", "OK", "TIMEOUT", "-")
    specs = [
        SandboxSpec(image="x", command=["solve", str(at)], env=["SECRET=s3cr3t"], labels={"code": code, "n": str(at)})
        for at, code in enumerate(codes)
    ]
    fleet.submit_many(specs, batch="b")
    fleet.submit(specs[0], batch="other")
    return fleet


def printed(capfd: Capture, *words: str, code: int = 0) -> str:
    assert main(list(words)) == code
    out, err = capfd.readouterr()
    assert "s3cr3t" not in out + err
    return out


@pytest.mark.usefixtures("fleet")
def test_batches_are_listed_the_last_used_first(capfd: Capture) -> None:
    assert printed(capfd, "batches", "-q") == "other\nb\n"
    rows = [line.split() for line in printed(capfd, "batch", "list").splitlines()]
    assert rows[0] == ["BATCH", "STATE", "JOBS", "ENDED", "OK", "FAILED", "USED"]
    assert rows[2][:6] == ["b", "running", "6", "5", "2", "3"]
    assert "2 TIMEOUT" in printed(capfd, "batches", "-o", "wide")
    found = json.loads(printed(capfd, "batches", "-o", "json"))
    assert [batch["batch"] for batch in found] == ["other", "b"]
    assert found[1]["codes"] == {"OK": 2, "TIMEOUT": 2, "EXIT_NONZERO": 1}
    assert printed(capfd, "batches", "-q", "-n", "1") == "other\n"


def test_jobs_are_listed_by_code_label_and_state(fleet: FakeFleet, capfd: Capture) -> None:
    ids = [*fleet.batch("b").iter_ids()]
    for words, places in (
        ([], [0, 1, 2, 3, 4, 5]),
        (["--code", "timeout,EXIT_NONZERO"], [1, 2, 4]),
        (["--category", "limit", "-l", "n=4"], [4]),
        (["--state", "queued"], [5]),
        (["--state", "ended", "-n", "2"], [0, 1]),
    ):
        assert printed(capfd, "jobs", "--batch", "b", "-o", "ids", *words).split() == [ids[at] for at in places]
    lines = printed(capfd, "jobs", "--batch", "b", "-o", "jsonl", "--code", "TIMEOUT").splitlines()
    assert [json.loads(line)["labels"]["n"] for line in lines] == ["1", "4"]
    rows = list(csv.DictReader(io.StringIO(printed(capfd, "jobs", "--batch", "b", "-o", "csv"))))
    assert [row["code"] for row in rows] == ["OK", "TIMEOUT", "EXIT_NONZERO", "OK", "TIMEOUT", ""]
    assert main(["jobs", "--batch", "b", "--code", "TIMEOOT"]) == 2
    assert "there is no code TIMEOOT: did you mean TIMEOUT?" in capfd.readouterr().err


def test_a_cell_of_csv_is_no_formula(fleet: FakeFleet, capfd: Capture) -> None:
    fleet.submit(SandboxSpec(image="=1+1", command=["x"]), batch="evil")
    (row,) = csv.DictReader(io.StringIO(printed(capfd, "jobs", "--batch", "evil", "-o", "csv")))
    assert row["image"] == "'=1+1"


@pytest.mark.usefixtures("fleet")
def test_a_dry_run_shows_and_a_retry_runs_once(capfd: Capture) -> None:
    shown = printed(capfd, "batch", "retry", "b", "--code", "TIMEOUT", "--dry-run")
    assert "2 jobs of batch b would run again:\n" in shown
    assert "TIMEOUT  limit     2" in shown
    assert json.loads(printed(capfd, "batch", "retry", "b", "--dry-run", "--json"))["match"] == 3
    assert printed(capfd, "batch", "retry", "b", "--code", "TIMEOUT", "--set", "timeout=60") == "2 queued\n"
    assert main(["batch", "retry", "b", "--code", "TIMEOUT"]) == 0
    out, err = capfd.readouterr()
    assert out == "0 queued\n"
    assert err == "sandfleet: no job of batch b matches; its jobs that have ended: 1 EXIT_NONZERO, 4 OK\n"
    assert json.loads(printed(capfd, "batch", "show", "b", "-o", "json"))["codes"] == {"OK": 4, "EXIT_NONZERO": 1}


@pytest.mark.usefixtures("fleet")
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("timeuot=3", "nothing was queued: timeuot: there is no such field, did you mean timeout? (job "),
        ("resources.memory_bytes=3", "resources.memory_bytes: "),
        ("timeout.x=3", "timeout"),
        ("security.privileged=true", "privileged sandboxes are not allowed"),
        ("idempotency_key=k", "cannot be changed"),
        ('after=["x"]', "after cannot be changed"),
        ('after.jobs=["x"]', "after.jobs cannot be changed"),
        ("timeout", "must be field=value"),
    ],
)
def test_a_change_that_fits_no_spec_is_refused_before_the_first_job(change: str, said: str, capfd: Capture) -> None:
    assert main(["batch", "retry", "b", "--set", change]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
    assert "s3cr3t" not in err
    assert json.loads(printed(capfd, "batch", "show", "b", "-o", "json"))["ended"] == 5


def test_specs_come_from_the_submitted_file_and_no_other(
    fleet: FakeFleet, capfd: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet._channel.overview, "kept_requests", lambda ids: [None] * len(ids))
    lines = [spec.model_dump_json(exclude_defaults=True) for spec in fleet.specs[:6]]
    right, wrong, short = tmp_path / "right", tmp_path / "wrong", tmp_path / "short"
    right.write_text("\n\n".join(lines))
    wrong.write_text("\n\n".join(line.replace("solve", "other") for line in lines))
    short.write_text(lines[0])
    assert main(["batch", "retry", "b", "--from", str(wrong)]) == 2
    assert f"{wrong}: line 3 has another spec than job" in capfd.readouterr().err
    assert main(["batch", "retry", "b", "--from", str(short)]) == 2
    assert "it has 1 job, and job" in capfd.readouterr().err
    assert printed(capfd, "batch", "retry", "b", "--from", str(right), "--set", "timeout=60") == "3 queued\n"
    assert json.loads(printed(capfd, "batch", "show", "b", "-o", "json"))["codes"] == {"OK": 5}


def test_specs_that_are_no_longer_kept_are_told_with_the_bounds_and_what_to_do(
    fleet: FakeFleet, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet._channel.overview, "are_kept", lambda ids: [False] * len(ids))
    monkeypatch.setattr(fleet._channel.overview, "count_dropped_specs", lambda: 7)
    assert main(["batch", "retry", "b", "--dry-run"]) == 0
    err = capfd.readouterr().err
    assert "3 of them cannot run again: their specs are no longer kept" in err
    assert "(Redis keeps 256 MiB of specs, 16 MiB while it is more than 80 % full: then raise its maxmemory;" in err
    assert "7 were dropped lately)" in err
    assert "If a file of jobs was submitted, give it: --from FILE; else submit them again" in err


def test_show_tells_of_any_job_and_what_to_do(fleet: FakeFleet, capfd: Capture) -> None:
    ids = [*fleet.batch("b").iter_ids()]
    ended = printed(capfd, "show", ids[1])
    assert "ran           x solve 1\n" in ended
    assert "next          Raise `timeout`, or make the job smaller.\n" in ended
    assert "then: sandfleet batch retry b --code TIMEOUT" in ended
    queued = printed(capfd, "show", ids[5])
    assert "state         queued\n" in queued
    assert "place         it is next in its queue\n" in queued
    assert json.loads(printed(capfd, "show", ids[5], "--json"))["before"] == 0
    assert printed(capfd, "show", "no-such", code=1) == ""


def test_the_failures_of_a_stopped_batch_come_before_what_the_stop_cancelled(fleet: FakeFleet, capfd: Capture) -> None:
    codes = ("EXIT_NONZERO", "TIMEOUT", *["CANCELLED"] * 6)
    fleet.submit_many([SandboxSpec(image="x", labels={"code": code}) for code in codes], batch="stopped")
    shown = printed(capfd, "batch", "show", "stopped").partition("last failures")[2].splitlines()[1:6]
    assert [line.split()[1] for line in shown] == ["TIMEOUT", "EXIT_NONZERO", "CANCELLED", "CANCELLED", "CANCELLED"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0.34, "0.34s"), (9.6, "9.6s"), (12.4, "12s"), (200, "3m"), (7300, "2h"), (200000, "2d")],
)
def test_a_duration_is_short(seconds: float | None, text: str) -> None:
    assert format_duration(seconds) == text


def test_ids_are_printed_on_request_or_where_nothing_else_names_the_jobs(
    fleet: FakeFleet, capfd: Capture, tmp_path: Path
) -> None:
    (tmp_path / "jobs").write_text('{"image": "x"}\n{"image": "x"}\n')
    submit = ["submit", str(tmp_path / "jobs")]
    assert main([*submit, "--batch", "new"]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert err == "sandfleet: queued 2 jobs in batch new. To follow: sandfleet batch watch new\n"
    assert printed(capfd, *submit, "--batch", "new", "--ids", "--quiet").split() == fleet.job_ids[-2:]
    assert printed(capfd, *submit).split() == fleet.job_ids[-2:]
    assert main([*submit, "--wait", "--quiet"]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert "jobs ended" not in err
    assert main(["batch", "watch", "new"]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert "sandfleet: 4 of 4 jobs ended, 0 not OK\n" in err


def test_the_view_of_a_wait_has_counts_rate_time_left_and_failures() -> None:
    now = [100.0]
    progress = Progress(40, "nightly")
    progress._rate = Rate(lambda: now[0])
    for at in range(20):
        now[0] += 0.5
        code = ErrorCode.TIMEOUT if at % 10 == 9 else ErrorCode.OK
        progress.count(Outcome.of(code, f"id-{at}", labels={"name": f"seed-{at}\x1b[31m"}))
    for width in (80, 120):
        console = Console(width=width, file=io.StringIO(), force_terminal=False)
        console.print(progress.render())
        lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
        assert "nightly" in lines[0]
        assert lines[0].rstrip().endswith("20 of 40  50%")
        assert lines[1].rstrip() == "2.0 a second  about 10s left"
        assert lines[2].rstrip() == "OK 18   TIMEOUT 2"
        assert lines[3].rstrip() == r"failed last: seed-19\x1b[31m TIMEOUT   seed-9\x1b[31m TIMEOUT"
        assert len(lines) == 4
        assert max(map(len, lines)) <= width


def test_a_retry_lifts_the_stop_of_its_batch(monkeypatch: pytest.MonkeyPatch, capfd: Capture) -> None:
    fleet = new_use(monkeypatch)(run_as_labelled)
    specs = [SandboxSpec(image="x", labels={"code": code}) for code in ("TIMEOUT", "OK", "OK")]
    fleet.submit_many(specs, batch="b", limits=BatchLimits(fail_fast=True))
    assert fleet.batch("b").codes == {"TIMEOUT": 1, "CANCELLED": 2}
    assert printed(capfd, "batch", "retry", "b", "--code", "CANCELLED") == "2 queued\n"
    assert fleet.batch("b").codes == {"TIMEOUT": 1, "OK": 2}
