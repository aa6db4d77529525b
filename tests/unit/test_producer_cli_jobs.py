"""The commands of `sandfleet` for jobs that are queued: submit, wait, show, cancel, batch, dead."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import pytest
from cli_fleet import Binary, end, new_use
from sandfleet import ErrorCode, GVisorNotAvailable, Outcome, SandboxResult, SandboxSpec, StreamOutput
from sandfleet.cli import main
from sandfleet.testing.fake_fleet import FakeFleet
from sandfleet_config.terminal import safe_text

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sandfleet.testing.fake_fleet import Ending

    Capture = pytest.CaptureFixture[str]
    Patch = pytest.MonkeyPatch
    Use = Callable[[Callable[[SandboxSpec], Ending]], FakeFleet]


@pytest.fixture
def use(monkeypatch: Patch) -> Use:
    return new_use(monkeypatch)


def test_submit_checks_the_whole_file_first(use: Use, tmp_path: Path, capfd: Capture) -> None:
    fleet = use(end(ErrorCode.OK, exit_code=0))
    file = tmp_path / "jobs.jsonl"
    file.write_text(
        '{"image": "x"}\n\n{"image": "", "timeout": -1}\nnonsense\n[]\n{"image": "x", "security": {"privileged": true}}\n'
    )
    assert main(["submit", str(file)]) == 2
    out, err = capfd.readouterr()
    assert (out, fleet.specs) == ("", [])
    for said in (
        "line 3: SPEC_INVALID: image: ",
        "line 3: SPEC_INVALID: timeout: ",
        "line 4: SPEC_INVALID: is not JSON",
    ):
        assert said in err
    assert "line 5: SPEC_INVALID: must be a JSON object" in err
    assert "line 6: SECURITY_VIOLATION: security.privileged: " in err
    assert "nothing was queued: 4 of 5 lines are faulty" in err


def test_submit_prints_ids_and_wait_collects_them(use: Use, tmp_path: Path, capfd: Capture) -> None:
    fleet = use(lambda spec: SandboxResult(exit_code=len(spec.command), stdout="o", stderr="", duration=0.1))
    (tmp_path / "jobs").write_text('{"image": "x"}\n{"image": "x", "command": ["a", "b"]}\n')
    assert main(["submit", str(tmp_path / "jobs"), "--batch", "nightly", "--ids"]) == 0
    ids = capfd.readouterr().out.split()
    assert len(ids) == len(fleet.specs) == 2
    (tmp_path / "ids").write_text("\n".join(ids))
    results = tmp_path / "results.jsonl"
    results.write_text("kept\n")
    assert main(["wait", ids[0], "--file", str(tmp_path / "ids"), "--out", str(results)]) == 1
    out, err = capfd.readouterr()
    kept, *lines = results.read_text().splitlines()
    assert kept == "kept"
    outcomes = {line["job_id"]: line for line in map(json.loads, lines)}
    assert set(outcomes) == set(ids)
    assert outcomes[ids[1]]["exit_code"] == 2
    assert outcomes[ids[1]]["batch"] == "nightly"
    assert out == ""
    assert "EXIT_NONZERO" in err
    assert main(["wait", ids[0]]) == 0
    assert capfd.readouterr().out == f"{ids[0]}\tOK\n"


def test_submit_and_wait_in_one(use: Use, tmp_path: Path, capfd: Capture, monkeypatch: Patch) -> None:
    use(end(ErrorCode.OK, exit_code=0))
    monkeypatch.setattr("sys.stdin", Binary(b'{"image": "x"}\n{"image": "y"}'))
    assert main(["submit", "-", "--wait", "--json", "--out", str(tmp_path / "r")]) == 0
    printed = json.loads(capfd.readouterr().out)
    assert printed["codes"] == {"OK": 2}
    assert len(printed["job_ids"]) == len((tmp_path / "r").read_text().splitlines()) == 2


def test_ctrl_c_while_waiting_says_how_to_resume(use: Use, tmp_path: Path, capfd: Capture, monkeypatch: Patch) -> None:
    use(lambda spec: None if spec.image == "slow" else SandboxResult(exit_code=0, stdout="", stderr="", duration=0))
    (tmp_path / "jobs").write_text('{"image": "slow"}\n{"image": "x"}\n')

    def interrupt(_: object, seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sandfleet.channel.waker.Waker.wait", interrupt)
    out_file = str(tmp_path / "r")
    assert main(["submit", str(tmp_path / "jobs"), "--wait", "--ids", "--out", out_file]) == 130
    out, err = capfd.readouterr()
    assert f"1 job goes on. To resume: sandfleet wait {out.split()[0]} --out {out_file}" in err
    assert len((tmp_path / "r").read_text().splitlines()) == 1


def test_many_ids_resume_from_a_file(use: Use, tmp_path: Path, capfd: Capture, monkeypatch: Patch) -> None:
    fleet = use(lambda _: None)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    jobs = fleet.submit_many([SandboxSpec(image="x")] * 9)
    assert main(["wait", *(job.id for job in jobs), "--timeout", "0.01"]) == 124
    (file,) = tmp_path.glob("sandfleet-wait-*.ids")
    assert file.read_text().split() == [job.id for job in jobs]
    assert f"sandfleet wait --file {file}" in capfd.readouterr().err


def test_unknown_jobs_are_named_and_not_waited_for(use: Use, capfd: Capture) -> None:
    use(end(ErrorCode.OK, exit_code=0))
    for command in ("show", "wait", "cancel"):
        assert main([command, "no-\x1bsuch"]) == 1
        err = capfd.readouterr().err
        assert err.startswith("sandfleet: there is no job no-\\x1bsuch")
        assert err.count("\n") == 1


def test_cancel_says_what_it_did(use: Use, capfd: Capture) -> None:
    fleet = use(
        lambda spec: None if spec.image == "slow" else SandboxResult(exit_code=0, stdout="", stderr="", duration=0)
    )
    slow, done = fleet.submit_many([SandboxSpec(image="slow"), SandboxSpec(image="x")])
    assert main(["cancel", slow.id, done.id]) == 0
    assert capfd.readouterr().out == f"{slow.id}\tcancelled before it started\n{done.id}\talready ended: OK\n"
    assert main(["cancel", slow.id]) == 0
    assert capfd.readouterr().out == f"{slow.id}\talready ended: CANCELLED\n"


def test_show_neutralises_control_sequences_on_a_terminal(use: Use, capfd: Capture, monkeypatch: Patch) -> None:
    outcome = Outcome.of(
        ErrorCode.EXIT_NONZERO, "", exit_code=3, stdout=StreamOutput.of(b"a\x1b]0;owned\x07\tb\r\n\xc2\x9b1m")
    )
    fleet = use(lambda _: outcome)
    job = fleet.submit(SandboxSpec(image="x", labels={"name": "n"}))
    assert main(["show", job.id]) == 0
    assert "\x1b]0;owned\x07" in capfd.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert main(["show", job.id]) == 0
    out = capfd.readouterr().out
    assert "a\\x1b]0;owned\\x07\tb\\r\n\\x9b1m" in out
    assert "\x1b" not in out
    assert "exit 3" in out


def test_show_of_a_job_that_waits_shows_its_line(use: Use, capfd: Capture) -> None:
    fleet = use(lambda _: None)
    job = fleet.submit(SandboxSpec(image="x", command=["true"], env=("A=s3cret",)), batch="b")
    assert main(["show", job.id]) == 0
    out = capfd.readouterr().out
    assert "state         queued\n" in out
    assert "x true" in out
    assert "s3cret" not in out
    assert main(["show", job.id, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["batch"] == "b"


def test_usage_of_the_other_commands_is_2(use: Use, capfd: Capture) -> None:
    use(end(ErrorCode.OK, exit_code=0))
    for argv in (
        ["wait"],
        ["nonsense"],
        ["submit"],
        ["submit", "x", "--out", "y"],
        ["submit", "/no/such/file"],
        ["show"],
    ):
        assert main(argv) == 2, argv
        assert capfd.readouterr().err.startswith("sandfleet: ")


def test_safe_text_is_not_changed() -> None:
    assert safe_text("héllo €\n\tx") == "héllo €\n\tx"
    assert safe_text("\u202eevil\x7f") == "\\u202eevil\\x7f"


def broken(_: SandboxSpec) -> Ending:
    return GVisorNotAvailable.of("no runsc")


def test_a_batch_is_shown_waited_for_and_cancelled(use: Use, tmp_path: Path, capfd: Capture) -> None:
    use(lambda spec: None if spec.image == "slow" else SandboxResult(exit_code=0, stdout="", stderr="", duration=0))
    (tmp_path / "jobs").write_text('{"image": "slow"}\n{"image": "x"}\n')
    assert main(["submit", str(tmp_path / "jobs"), "--batch", "nightly", "--ids"]) == 0
    slow, done = capfd.readouterr().out.split()
    assert main(["batch", "show", "nightly"]) == 0
    shown = capfd.readouterr()
    assert "jobs          2\nended         1 of 2\nnot ended     1\n" in shown.out
    assert re.search(r"^OK +ok +1 *$", shown.out, re.MULTILINE), "a pipe has the codes, too"
    assert shown.err == ""
    assert main(["batch", "show", "nightly", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == {
        "batch": "nightly",
        "total": 2,
        "done": 1,
        "sealed": True,
        "codes": {"OK": 1},
        "job_ids": [slow, done],
    }
    assert main(["batch", "wait", "nightly", "--list", "--timeout", "0.01"]) == 124
    out, err = capfd.readouterr()
    assert out == f"{done}\tOK\n"
    assert "1 job goes on. To resume: sandfleet batch wait nightly" in err
    assert main(["batch", "cancel", "nightly"]) == 0
    assert capfd.readouterr().out == "nightly\t1 cancelled before they started, 0 requested, 1 already ended\n"
    results = tmp_path / "r"
    assert main(["batch", "wait", "nightly", "--out", str(results)]) == 1
    assert [json.loads(line)["code"] for line in results.read_text().splitlines()] == ["OK", "CANCELLED"]
    capfd.readouterr()
    assert main(["batch", "show", "no-such"]) == 1
    assert capfd.readouterr().err.startswith("sandfleet: there is no batch no-such")


def test_dead_letters_are_listed_shown_queued_again_and_dropped(use: Use, capfd: Capture) -> None:
    fleet = use(broken)
    first, second = fleet.submit_many([SandboxSpec(image="x", command=["a\x1b[31m"])] * 2)
    assert main(["dead", "list"]) == 0
    lines = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == [second.id, first.id]
    assert lines[0][2:] == ["GVISOR_NOT_AVAILABLE", "3", "sandfleet", r"x 'a\x1b[31m'"]
    assert main(["dead", "list", "--json", "--limit", "1"]) == 0
    assert [dead["job_id"] for dead in json.loads(capfd.readouterr().out)] == [second.id]
    assert main(["dead", "show", first.id]) == 0
    out = capfd.readouterr().out
    assert "last code     GVISOR_NOT_AVAILABLE" in out
    assert "attempt 3     GVISOR_NOT_AVAILABLE on fake" in out
    assert main(["dead", "show", first.id, "--json"]) == 0
    assert len(json.loads(capfd.readouterr().out)["attempts"]) == 3
    assert main(["dead", "requeue", first.id, "no-such"]) == 1
    out, err = capfd.readouterr()
    assert out == f"{first.id}\tqueued\n"
    assert "there is no dead letter no-such" in err
    assert main(["dead", "purge", second.id]) == 0
    assert main(["dead", "purge"]) == 0
    assert capfd.readouterr().out == "1 dropped\n1 dropped\n"
    assert main(["dead", "show", second.id]) == 1


def test_run_and_submit_have_the_options_of_delivery(use: Use, tmp_path: Path, capfd: Capture) -> None:
    fleet = use(end(ErrorCode.OK, exit_code=0))
    options = "run --queue gpu --priority 0 --queue-ttl 60 --max-attempts 1 --idempotency-key k -- true"
    assert main(options.split()) == main(options.split()) == 0
    (spec,) = fleet.specs
    assert (spec.priority, spec.queue_ttl, spec.max_attempts, spec.idempotency_key) == (0, 60, 1, "k")
    record = fleet.record(fleet.job_ids[0])
    assert record is not None
    assert record.queue == "gpu"
    (tmp_path / "jobs").write_text('{"image": "x"}\n{"image": "y", "priority": 9}\n')
    submit = [
        "submit",
        str(tmp_path / "jobs"),
        "--batch",
        "b",
        "--queue",
        "q",
        "--priority",
        "3",
        "--idempotent",
        "--ids",
    ]
    capfd.readouterr()
    assert main(submit) == main(submit) == 0
    ids = capfd.readouterr().out.split()
    assert ids[:2] == ids[2:]
    assert [spec.priority for spec in fleet.specs[1:]] == [3, 9]
    (tmp_path / "jobs").write_text('{"image": "z"}\n')
    assert main(submit) == 1
    assert "idempotency key 'b/0' stands for job" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["run", "--queue", "a:b", "--", "x"], 125, "a queue's name is"),
        (["run", "--priority", "10", "--", "x"], 125, "SPEC_INVALID: --priority"),
        (["run", "--max-attempts", "0", "--", "x"], 125, "SPEC_INVALID: --max-attempts"),
        (["submit", "-", "--idempotent"], 2, "--batch"),
        (["submit", "-", "--queue", "dead"], 2, "no queue may be called dead"),
        (["batch"], 2, ""),
        (["dead", "nonsense"], 2, "nonsense"),
    ],
)
def test_bad_usage_of_delivery_options(use: Use, argv: list[str], code: int, said: str, capfd: Capture) -> None:
    fleet = use(end(ErrorCode.OK, exit_code=0))
    assert main(argv) == code
    assert said in capfd.readouterr().err
    assert fleet.specs == []


def test_a_full_queue_is_an_error_of_the_command(use: Use, tmp_path: Path, capfd: Capture) -> None:
    fleet = use(lambda _: None)
    fleet._fake._max_queued = 1
    (tmp_path / "jobs").write_text('{"image": "x"}\n' * 2)
    assert main(["submit", str(tmp_path / "jobs")]) == 1
    err = capfd.readouterr().err
    assert "holds 0 jobs, 2 more would pass max_queued (1)" in err
    assert fleet.specs == []
