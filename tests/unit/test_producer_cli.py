"""`sandfleet run`."""

from __future__ import annotations

import hashlib
import json
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from cli_fleet import Binary, end, new_use
from sandfleet import ErrorCode, FleetUnavailable, Outcome, SandboxSpec, StreamOutput
from sandfleet.channel.job_facts import JobFacts
from sandfleet.channel.overview import Queued
from sandfleet.cli import main
from sandfleet.cli.run import START_ONE
from sandfleet.overview.job_view import JobView
from sandfleet.testing.fake_fleet import FakeFleet
from sandfleet_config.outcome import StoredObject

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet.testing.fake_fleet import Ending

    Capture = pytest.CaptureFixture[str]
    Patch = pytest.MonkeyPatch
    Use = Callable[[Callable[[SandboxSpec], Ending]], FakeFleet]


@pytest.fixture
def use(monkeypatch: Patch) -> Use:
    return new_use(monkeypatch)


def test_run_prints_the_bytes_and_exits_with_the_code_of_the_program(
    use: Use, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    use(
        end(
            ErrorCode.EXIT_NONZERO,
            exit_code=124,
            stdout=StreamOutput.of(b"\xff\x1b[31m"),
            stderr=StreamOutput.of(b"e\x00"),
        )
    )
    assert main(["run", "--", "x"]) == 124
    assert capfdbinary.readouterr() == (b"\xff\x1b[31m", b"e\x00")


def test_run_names_the_code_if_the_exit_code_is_not_the_programs(use: Use, capfd: Capture) -> None:
    use(end(ErrorCode.OUT_OF_MEMORY, "used\nmore than \x1b[1m64 MiB", signal=9, stdout=StreamOutput.of(b"so far")))
    assert main(["run", "--", "x"]) == 137
    out, err = capfd.readouterr()
    assert out == "so far"
    assert err == "sandfleet: OUT_OF_MEMORY: used\\nmore than \\x1b[1m64 MiB\n"


def test_run_says_how_much_output_was_cut(use: Use, capfd: Capture) -> None:
    use(end(ErrorCode.OK, exit_code=0, stdout=StreamOutput.of(b"abc", 1000)))
    assert main(["run", "--", "x"]) == 0
    assert (
        capfd.readouterr().err
        == "sandfleet: stdout was cut: 3 bytes of 1000 bytes are kept (see --max-output, --keep, --store-output)\n"
    )


def test_run_prints_what_the_store_has_of_the_output(use: Use, capfd: Capture) -> None:
    whole = b"line\n" * 1000
    name = hashlib.sha256(whole).hexdigest()
    stdout = replace(StreamOutput.of(whole[:10], len(whole)), stored=StoredObject(name, len(whole), "the store"))
    fleet = use(end(ErrorCode.OK, exit_code=0, stdout=stdout))
    fleet.store.put_bytes(name, whole)
    assert main(["run", "--store-output", "--", "x"]) == 0
    assert capfd.readouterr() == (whole.decode(), "")
    assert fleet.specs[0].output.store

    fleet.store.delete(name)
    assert main(["run", "--store-output", "--", "x"]) == 0
    out, err = capfd.readouterr()
    assert out == "line\nline\n"
    assert "sandfleet: stdout: " in err
    assert name in err
    assert "10 bytes of 5000 bytes (about 4.9 KiB) are kept" in err


def test_run_makes_the_spec_from_its_options(use: Use, monkeypatch: Patch) -> None:
    fleet = use(end(ErrorCode.OK, exit_code=0))
    monkeypatch.setenv("FROM_HERE", "1")
    monkeypatch.setattr("sys.stdin", Binary(b"\x00in"))
    options = (
        "run --image img --timeout 2.5 --grace 0 --memory 64MiB --cpu 0.5 --pids 9 --disk 1MiB -e A=1 -e FROM_HERE"
    )
    options += (
        " --workdir /w --user 5:5 --label name=n --writable --max-output 1KiB --keep tail --on-output-limit kill -i"
        " --store-output --dataset corpus --dataset more"
    )
    assert main([*options.split(), "--", "cmd", "--image", "x"]) == 0
    (spec,) = fleet.specs
    assert spec == SandboxSpec.model_validate(
        {
            "image": "img",
            "command": ["cmd", "--image", "x"],
            "working_dir": "/w",
            "env": ["A=1", "FROM_HERE=1"],
            "resources": {"memory_bytes": 64 << 20, "cpu_quota": 50_000, "pids_limit": 9, "disk_bytes": 1 << 20},
            "security": {"user": "5:5", "read_only_rootfs": False},
            "timeout": 2.5,
            "grace": 0,
            "labels": {"name": "n"},
            "datasets": [{"name": "corpus"}, {"name": "more"}],
            "stdin": b"\x00in",
            "output": {"max_bytes": 1024, "keep": "tail", "on_limit": "kill", "store": True},
        }
    )


def test_run_without_options_is_the_smallest_spec(use: Use) -> None:
    fleet = use(end(ErrorCode.OK, exit_code=0))
    assert main(["run", "echo", "-n", "x"]) == 0
    assert fleet.specs == [SandboxSpec(image="python", command=["echo", "-n", "x"])]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--bogus"], "--bogus"),
        (["--timeout", "soon"], "--timeout"),
        (["--timeout", "-1"], "--timeout: must not be negative"),
        (["--memory", "lots"], "--memory: must be a number of bytes"),
        (["-e", "NOT_SET_HERE"], "NOT_SET_HERE"),
        (["--label", "x"], "--label x"),
        (["--keep", "middle"], "--keep"),
    ],
)
def test_run_with_bad_usage_is_125_as_with_docker(use: Use, options: list[str], said: str, capfd: Capture) -> None:
    fleet = use(end(ErrorCode.OK, exit_code=0))
    assert main(["run", *options, "--", "x"]) == 125
    out, err = capfd.readouterr()
    assert out == ""
    assert said in err
    assert err.count("\n") == 1
    assert fleet.specs == []


def test_run_uploads_a_stdin_that_does_not_fit_into_a_spec(use: Use, monkeypatch: Patch) -> None:
    fleet = use(end(ErrorCode.OK, exit_code=0))
    raw = b"x" * (fleet.settings.max_spec_bytes + 1)
    monkeypatch.setattr("sys.stdin", Binary(raw))
    assert main(["run", "-i", "--", "cat"]) == 0
    assert fleet.specs[0].stdin.size == len(raw)
    assert fleet.read_input(fleet.specs[0].stdin) == raw


def test_run_refuses_a_stdin_that_the_store_does_not_take(use: Use, monkeypatch: Patch, capfd: Capture) -> None:
    fleet = use(end(ErrorCode.OK, exit_code=0))
    fleet.store.max_object_bytes = 1 << 10
    monkeypatch.setattr("sys.stdin", Binary(b"x" * (fleet.settings.max_spec_bytes + 1)))
    assert main(["run", "-i", "--", "cat"]) == 125
    assert not fleet.specs
    assert "the store in memory takes 1 KiB at most" in capfd.readouterr().err


def test_run_prints_the_outcome_as_json(use: Use, capfd: Capture) -> None:
    use(end(ErrorCode.SIGNALED, "by signal 11", signal=11))
    assert main(["run", "--json", "--", "x"]) == 139
    assert json.loads(capfd.readouterr().out)["code"] == "SIGNALED"


def test_run_cancels_on_ctrl_c(use: Use, monkeypatch: Patch, capfd: Capture) -> None:
    fleet = use(lambda _: None)

    def interrupt(_: object, seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sandfleet.channel.waker.Waker.wait", interrupt)
    assert main(["run", "--", "x"]) == 130
    err = capfd.readouterr().err
    assert "CANCELLED" in err
    job_id = err.split("job ")[1].split(":")[0]
    assert fleet.job(job_id).outcome(timeout=0).code is ErrorCode.CANCELLED


@pytest.mark.parametrize(
    ("facts", "place", "note"),
    [
        (
            {"state": "queued"},
            Queued(0, 0, 0, is_served=False),
            "job {} waits: no worker is listening on redis://127.0.0.1:6379/0; it starts when one does{}",
        ),
        ({"state": "queued", "why": "no live host has disk=ssd"}, None, "job {} waits: no live host has disk=ssd"),
        ({"state": "queued"}, Queued(3, 3, 1, is_served=True), ""),  # a slot becomes free
        ({"state": "queued"}, None, ""),
        ({"state": "waiting"}, None, ""),
        ({"state": "running"}, None, ""),
    ],
)
def test_run_says_why_its_job_waits(
    use: Use, monkeypatch: Patch, capfd: Capture, *, facts: dict[str, Any], place: Queued | None, note: str
) -> None:
    fleet = use(lambda _: None)
    monkeypatch.setattr("sandfleet.cli.run.WAIT_NOTE_SECONDS", 0.01)

    def view(job_id: str, *, counts: bool) -> JobView:
        assert not counts, "the queue is not searched for a note"
        # The job ends only after the question, and the note is printed during the wait.
        threading.Timer(0.3, fleet.finish, (job_id, Outcome.of(ErrorCode.OK, "", exit_code=0))).start()
        return JobView(JobFacts(job_id, **facts), queued=place)

    monkeypatch.setattr(fleet, "view", view)
    assert main(["run", "--", "x"]) == 0
    assert capfd.readouterr().err == (f"sandfleet: {note}\n".format(*fleet.job_ids, START_ONE) if note else "")


def test_run_names_the_option_beside_a_limit(use: Use, capfd: Capture) -> None:
    for code, message, shown in (
        (ErrorCode.OUT_OF_MEMORY, "raise resources.memory_bytes", "raise resources.memory_bytes (--memory)"),
        (ErrorCode.DISK_LIMIT, "into resources.disk_bytes of 1 MiB", "into resources.disk_bytes (--disk) of 1 MiB"),
        (ErrorCode.PIDS_LIMIT, "raise resources.pids_limit", "raise resources.pids_limit (--pids)"),
        (ErrorCode.DISK_LIMIT, "of a later release: resources.inodes", "of a later release: resources.inodes"),
    ):
        use(end(code, message))
        main(["run", "--", "x"])
        assert capfd.readouterr().err == f"sandfleet: {code.value}: {shown}\n"


def test_a_fleet_out_of_reach_is_one_line_and_125(use: Use, capfd: Capture) -> None:
    def fail(_: SandboxSpec) -> Ending:
        raise FleetUnavailable("cannot reach Redis at redis://host:1: start it")

    use(fail)
    assert main(["run", "--", "x"]) == 125
    assert capfd.readouterr().err == "sandfleet: cannot reach Redis at redis://host:1: start it\n"
