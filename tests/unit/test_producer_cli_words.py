"""Messages of `sandfleet` for a mistake on its command line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sandfleet import ErrorCode, Outcome, SandboxResult, SandboxSpec
from sandfleet.cli import main
from sandfleet.testing.fake_fleet import FakeFleet

if TYPE_CHECKING:
    from pathlib import Path

    Capture = pytest.CaptureFixture[str]

JOBS = '{"image": "slow"}\n{"image": "x"}\n'


def play(spec: SandboxSpec) -> SandboxResult | None:
    return None if spec.image == "slow" else SandboxResult(exit_code=0, stdout="", stderr="", duration=0)


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeFleet:
    fleet = FakeFleet(play)
    monkeypatch.setenv("SANDFLEET_WEB__HISTORY__FILE", str(tmp_path / "none.db"))  # not that of this machine
    for module in ("batch", "dead"):
        monkeypatch.setattr(f"sandfleet.cli.{module}.Fleet", lambda: fleet)
    monkeypatch.setattr("sandfleet.cli.opening.open_fleet", lambda: fleet)
    return fleet


def test_bytes_that_are_no_utf8_are_a_fault_of_the_spec_and_no_traceback(fleet: FakeFleet, capfd: Capture) -> None:
    half = "\udcff\udcfe"  # as Python reads $'\xff\xfe' from argv
    for argv, said in (
        (
            ["run", "--", "echo", half],
            "SPEC_INVALID: the command, item 2: is not valid UTF-8: send other bytes by stdin",
        ),
        (["run", "-e", f"A={half}", "--", "x"], "SPEC_INVALID: --env, item 1: is not valid UTF-8"),
        (["run", "-w", f"/{half}", "--", "x"], "SPEC_INVALID: --workdir: is not valid UTF-8"),
        (["run", "--image", half, "--", "x"], "SPEC_INVALID: --image: is not valid UTF-8"),
        (["run", "-l", f"a={half}", "--", "x"], "SPEC_INVALID: --label"),
        (["run", "--queue", half, "--", "x"], "--queue"),
    ):
        assert main(argv) == 125, argv
        err = capfd.readouterr().err
        assert said in err
        assert err.count("\n") == 1
    for argv in (["show", half], ["wait", half], ["cancel", half], ["batch", "show", half], ["dead", "show", half]):
        assert main(argv) == 1, argv
        assert capfd.readouterr().err.startswith("sandfleet: there is no ")
    assert fleet.specs == []


def test_a_faulty_field_is_named_by_the_option_that_was_typed(fleet: FakeFleet, capfd: Capture) -> None:
    for options, said in (
        (["--memory", "lots"], "--memory: must be a number of bytes, or a size such as 256MiB"),
        (["--memory", "4KiB"], "--memory: 4 KiB cannot work, the least is 16 MiB"),
        (
            ["--cpu", "0.00001"],
            "--cpu: 0.00001 cores (cpu_quota 1) cannot work, the least is 0.1 cores",
        ),
        (["--cpu", "-1"], "--cpu: must not be negative"),
        (["--cpu", "nan"], "--cpu"),
        (["--pids", "-1"], "--pids: must not be negative"),
        (["--disk", "1"], "--disk: 1 byte cannot work, the least is 4 KiB"),
        (["--timeout", "-1"], "--timeout: must not be negative"),
        (["--grace", "-1"], "--grace: must not be negative"),
        (["--keep", "middle"], "--keep: must be 'head', 'tail' or 'both'"),
        (["--max-output", "x"], "--max-output: must be a number of bytes"),
        (["--on-output-limit", "x"], "--on-output-limit: must be 'truncate' or 'kill'"),
        (["--priority", "10"], "--priority: must be at most 9"),
        (["--queue-ttl", "0"], "--queue-ttl: must be more than 0 s"),
        (["--max-attempts", "0"], "--max-attempts: must be at least 1"),
        (["--image", ""], "--image: must not be empty"),
        (["-w", "tmp"], "--workdir: must be an absolute path inside the image"),
        (["-e", "=x"], "--env, item 1: must be KEY=VALUE"),
    ):
        assert main(["run", *options, "--", "x"]) == 125, options
        err = capfd.readouterr().err
        assert said in err, err
        assert err.count("\n") == 1
    assert fleet.specs == []


def test_an_option_of_docker_gets_a_hint(fleet: FakeFleet, capfd: Capture) -> None:
    for option, said in (
        ("--network=host", "no such option: --network: sandboxes have no network but loopback"),
        ("--net=none", "no such option: --net: sandboxes have no network but loopback"),
        ("--mem=1g", "no such option: --mem: did you mean --memory?"),
        ("--cpus=1", "no such option: --cpus: did you mean --cpu?"),
        ("--imag=x", "no such option: --imag: did you mean --image?"),
        ("--workdirr=/", "no such option: --workdirr: did you mean --workdir?"),
        ("--volume=/:/", "no such option: --volume: no folder of the host is mounted"),
        ("--rm", "no such option: --rm: each sandbox is removed when its job ends"),
        ("--name=x", "no such option: --name: did you mean --label name=..."),
        ("--entrypoint=x", "no such option: --entrypoint: the command comes after --"),
        ("--zzz", "no such option: --zzz (sandfleet run --help lists them)"),
    ):
        assert main(["run", option, "--", "x"]) == 125, option
        err = capfd.readouterr().err
        assert said in err, err
        assert err.count("\n") == 1
    assert main(["submit", "--networ", "x"]) == 2
    assert "Possible options" not in capfd.readouterr().err
    assert fleet.specs == []


def test_an_unknown_command_gets_the_nearest_one_as_a_hint(fleet: FakeFleet, capfd: Capture) -> None:
    for argv, said in (
        (["submti", "x"], "no such command: submti: did you mean submit?"),
        (["pz"], "no such command: pz (sandfleet --help lists them)"),
        (["batch", "shwo", "x"], "no such command: shwo: did you mean show?"),
    ):
        assert main(argv) == 2
        assert capfd.readouterr().err == f"sandfleet: {said}\n"
    assert fleet.specs == []


def test_results_that_cannot_be_written_stop_the_submit_before_it(
    fleet: FakeFleet, tmp_path: Path, capfd: Capture
) -> None:
    (tmp_path / "jobs").write_text(JOBS)
    for out, said in ((str(tmp_path / "no" / "r"), "No such file"), (str(tmp_path), "Is a directory")):
        assert main(["submit", str(tmp_path / "jobs"), "--wait", "--out", out]) == 2
        assert said in capfd.readouterr().err
        assert fleet.specs == []
    (tmp_path / "bad").write_text("nonsense\n")
    assert main(["submit", str(tmp_path / "bad"), "--wait", "--out", str(tmp_path / "r")]) == 2
    assert not (tmp_path / "r").exists(), "nothing was queued, so there is nothing to write"


def test_a_file_without_jobs_is_no_success(fleet: FakeFleet, tmp_path: Path, capfd: Capture) -> None:
    for text in ("", "\n\n"):
        (tmp_path / "jobs").write_text(text)
        assert main(["submit", str(tmp_path / "jobs"), "--wait"]) == 2
        assert capfd.readouterr().err == f"sandfleet: nothing was queued: {tmp_path / 'jobs'} has no jobs\n"
    assert fleet.specs == []


def test_an_empty_list_says_so(fleet: FakeFleet, capfd: Capture) -> None:
    assert main(["dead", "list"]) == 0
    assert capfd.readouterr() == ("", "sandfleet: there are no dead letters\n")
    assert main(["dead", "list", "--json"]) == 0
    assert capfd.readouterr().out == "[]\n"


def test_a_run_without_a_command_says_what_runs(fleet: FakeFleet, capfd: Capture) -> None:
    assert main(["run", "--image", "x"]) == 0
    assert capfd.readouterr().err == "sandfleet: no command was given: the image's own one runs\n"
    assert main(["run", "--image", "x", "--json"]) == 0
    assert main(["run", "--image", "x", "--", "true"]) == 0
    assert capfd.readouterr().err.count("no command") == 1


def test_ctrl_c_at_the_wait_of_a_batch_names_the_batch(
    fleet: FakeFleet, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "jobs").write_text(JOBS)

    def interrupt(_: object, seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sandfleet.channel.waker.Waker.wait", interrupt)
    assert main(["submit", str(tmp_path / "jobs"), "--batch", "night ly", "--wait"]) == 130
    assert capfd.readouterr().err.endswith("1 job goes on. To resume: sandfleet batch wait 'night ly'\n")
    out = str(tmp_path / "r")
    assert main(["submit", str(tmp_path / "jobs"), "--batch", "second", "--wait", "--out", out]) == 130
    err = capfd.readouterr().err
    assert f"To resume: sandfleet batch wait second --out {out} (it writes those that have ended once more)" in err
    assert main(["batch", "wait", "second", "--out", out]) == 130
    assert "once more" in capfd.readouterr().err
    assert not list(tmp_path.glob("sandfleet-wait-*"))


def test_every_cancel_reads_the_same(fleet: FakeFleet, capfd: Capture) -> None:
    slow = fleet.submit({"image": "slow"}, batch="b")
    assert main(["cancel", slow.id]) == 0
    assert capfd.readouterr().out == f"{slow.id}\tcancelled before it started\n"
    assert fleet.job(slow.id).outcome(0).message == "the job was cancelled before it started"
    assert main(["batch", "cancel", "b"]) == 0
    assert capfd.readouterr().out == "b\t0 cancelled before they started, 0 requested, 1 already ended\n"


def test_sizes_are_printed_in_the_units_that_people_type(fleet: FakeFleet, capfd: Capture) -> None:
    from sandfleet_config.outcome import LimitState, StreamOutput, Usage

    outcome = Outcome.of(
        ErrorCode.OK,
        "",
        exit_code=0,
        stdout=StreamOutput.of(b"x" * 2048, 1 << 20),
        usage=Usage(cpu_seconds=0.5, memory_peak_bytes=96 << 20, pids_peak=7),
        limits={"memory_bytes": LimitState(value=512 << 20, enforced=False)},
    )
    job = fleet.submit({"image": "slow"})
    fleet.finish(job.id, outcome)
    assert main(["show", job.id]) == 0
    out = capfd.readouterr().out
    assert "used          0.5 s of CPU, 96 MiB of memory at most, 7 host tasks at most\n" in out
    assert "--- stdout (1 MiB, cut to 2 KiB) ---" in out


def test_a_wrong_command_line_gets_a_message_in_plain_words(fleet: FakeFleet, tmp_path: Path, capfd: Capture) -> None:
    (tmp_path / "bytes").write_bytes(b"\xd0\xff")
    (tmp_path / "jobs").write_text(JOBS)
    binary, jobs = str(tmp_path / "bytes"), str(tmp_path / "jobs")
    for argv, code, said in (
        (
            ["run", "--timeout", "soon", "--", "x"],
            125,
            "--timeout: must be seconds, or a time such as 90s, 45m, 1h30m or 2d",
        ),
        (
            ["submit", "--dependency", "afterok:3"],
            2,
            "no such option: --dependency: did you mean --after-batch NAME, or --after ID?",
        ),
        (["squeue"], 2, "no such command: squeue: did you mean sandfleet batches, or sandfleet jobs --batch NAME?"),
        (["run", "--cpu", "two", "--", "x"], 125, "--cpu: must be a number of cores, such as 0.5"),
        (["run", "--pids", "many", "--", "x"], 125, "--pids: must be a whole number"),
        (["dead", "list", "--limit", "0"], 2, "--limit: must be at least 1"),
        (["show"], 2, "missing argument ID (sandfleet show --help tells more)"),
        (["run", "--env"], 125, "option '--env' requires an argument"),
        (["submit", "a", "b"], 2, "takes one file of jobs: what is b? a command after -- needs --each, --csv, --tsv,"),
        (["batc"], 2, "no such command: batc: did you mean batch?"),
        (["wait"], 2, "give job ids, or --file with some"),
        (["submit", "x", "--out", "y"], 2, "--out: needs --wait"),
        (["run", "--queue", "a:b", "--", "x"], 125, "--queue: a queue's name is 1 to 128 of"),
        (["submit", "/no/such"], 2, "/no/such: No such file or directory"),
        (["submit", "/etc"], 2, "/etc: Is a directory"),
        (["submit", binary], 2, f"{binary} is not text in UTF-8"),
        (["wait", "--file", binary], 2, f"{binary} is not text in UTF-8"),
        (["submit", jobs, "--batch", "b\n"], 2, "SPEC_INVALID: batch: must not contain control characters"),
    ):
        assert main(argv) == code, argv
        err = capfd.readouterr().err
        assert err.startswith(f"sandfleet: {said}"), err
        assert err.count("\n") == 1
    assert fleet.specs == []


def test_the_help_that_a_bare_command_gets_is_readable(fleet: FakeFleet, capfd: Capture) -> None:
    for argv in ([], ["batch"], ["dead"]):
        assert main(argv) == 2
        err = capfd.readouterr().err
        assert err.startswith("Usage: sandfleet")
        assert "\\n" not in err
        assert err.count("\n") > 5
    assert fleet.specs == []


def test_a_program_that_is_not_in_the_image_is_reported_with_the_image(fleet: FakeFleet, capfd: Capture) -> None:
    """As docker's users type it, the image's name is the program."""
    from sandfleet import CommandNotFound

    def missing(_: SandboxSpec) -> Outcome:
        raise CommandNotFound.of("'busybox': no such program in the image")

    fleet._fake.handler = missing
    assert main(["run", "busybox", "echo", "hi"]) == 127
    said = "COMMAND_NOT_FOUND: 'busybox': no such program in the image (python; --image NAME takes another)"
    assert capfd.readouterr().err == f"sandfleet: {said}\n"
