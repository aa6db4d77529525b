"""Image code that runs ahead of its job attacks init; nothing it does is believed, and all is contained.

The interpreter is a C program (`attacks.c`). It attacks while init waits for the preparation, or as
the job that it has become.
"""

from __future__ import annotations

import contextlib
import errno
import resource
import signal
import struct
import time
from typing import TYPE_CHECKING

import pytest
from initbox import CFLAGS, MIB, NOBODY, Sandbox, close_control, compile_c, job, limit
from sandfleet_worker.sandbox.process import init_job
from sandfleet_worker.sandbox.process.init_reports import (
    Exited,
    Fault,
    PreparationFailed,
    Prepared,
    ProtocolFault,
    Signaled,
    Started,
)
from sandfleet_worker.sandbox.process.runsc import NATIVE

if TYPE_CHECKING:
    from pathlib import Path

    from initbox import NewSandbox
    from sandfleet_worker.sandbox.process.init_reports import Report
    from sandfleet_worker.sandbox.process.runsc import RunscBinary

REFUSED = {str(errno.EPERM), str(errno.EACCES), str(errno.ENOSYS)}
WHEN = ("ahead", "as-job")


@pytest.fixture
def sandbox(new_sandbox: NewSandbox) -> Sandbox:
    return new_sandbox(is_prepared=True)


def prepare(sandbox: Sandbox, *argv: str, uid: int = NOBODY) -> Report | None:
    """Start the attacker as an interpreter; return init's first report about it."""
    limits = [limit(resource.RLIMIT_NPROC, 255), limit(resource.RLIMIT_NOFILE, 1000)]
    return sandbox.start(job("attacks", *argv, uid=uid, disk_bytes=MIB, rlimits=limits, is_preparation=True))


def give_job(sandbox: Sandbox, **fields: object) -> Report | None:
    limits = [limit(resource.RLIMIT_NPROC, 19), limit(resource.RLIMIT_NOFILE, 1000), limit(resource.RLIMIT_CPU, 30)]
    sandbox.send(init_job.encode_job(job("attacks", "x", **({"rlimits": limits} | fields))))
    return sandbox.next_report()


def answers(sandbox: Sandbox) -> dict[str, str]:
    return dict(zip(*[iter(sandbox.stdout.split())] * 2, strict=True))


def test_an_interpreter_that_behaves_becomes_the_job(sandbox: Sandbox) -> None:
    assert prepare(sandbox, "prepare-well") == Prepared()
    assert give_job(sandbox) == Started()
    assert sandbox.finish() == Exited(0, disk_full=False)


@pytest.mark.parametrize("when", WHEN)
def test_init_cannot_be_traced(sandbox: Sandbox, when: str) -> None:
    assert prepare(sandbox, when, "trace-init") == Prepared()
    assert give_job(sandbox) == Started()
    assert isinstance(sandbox.finish(), Exited)
    assert set(answers(sandbox)) == {"seize", "attach", "mem", "fd", "pidfd", "kill"}
    assert set(answers(sandbox).values()) <= REFUSED


@pytest.mark.parametrize("when", WHEN)
def test_init_cannot_be_killed(sandbox: Sandbox, when: str) -> None:
    assert prepare(sandbox, when, "kill-init") == Prepared()
    assert give_job(sandbox) == Started()
    assert sandbox.finish() == Exited(9, disk_full=False)
    assert answers(sandbox) == dict.fromkeys(("kill", "term", "stop"), str(errno.EPERM))


@pytest.mark.parametrize("when", WHEN)
def test_init_cannot_be_signalled_by_a_descriptor(sandbox: Sandbox, when: str) -> None:
    assert prepare(sandbox, when, "signal-init") == Prepared()
    assert give_job(sandbox) == Started()
    assert sandbox.finish() == Exited(9, disk_full=False)
    assert set(answers(sandbox)) == {"own", "group", "ex", "fio", "sio"}


@pytest.mark.parametrize("when", WHEN)
def test_the_report_cannot_be_forged(sandbox: Sandbox, when: str) -> None:
    assert prepare(sandbox, when, "forge-status") == Prepared()
    assert give_job(sandbox) == Started()
    assert sandbox.finish() == Exited(9, disk_full=False)
    assert sandbox.stdout == f"open {errno.EACCES} open {errno.EACCES} \n"


@pytest.mark.parametrize("when", WHEN)
def test_a_user_namespace_lifts_no_limit(sandbox: Sandbox, when: str) -> None:
    if when == "ahead":
        assert prepare(sandbox, when, "make-namespaces") == PreparationFailed("an import left a process")
        assert sandbox.finish() is None
    else:
        assert prepare(sandbox, when, "make-namespaces") == Prepared()
        assert give_job(sandbox) == Started()
        assert isinstance(sandbox.finish(), Exited)
    assert sandbox.stdout.startswith("clone 1 unshare 1 mount 1 forks ")
    # As the job it has the job's limit, ahead of it that of the preparation.
    assert int(sandbox.stdout.split()[7]) <= (19 if when == "as-job" else 255)


@pytest.mark.parametrize("when", WHEN)
def test_init_never_shares_its_uid(sandbox: Sandbox, when: str) -> None:
    ours = 0x7FFFFFFE
    assert prepare(sandbox, when, "kill-init", uid=ours) == Prepared()
    assert give_job(sandbox, uid=ours) == Started()
    assert sandbox.finish() == Exited(9, disk_full=False)
    assert answers(sandbox) == dict.fromkeys(("kill", "term", "stop"), str(errno.EPERM))


@pytest.mark.parametrize(("when", "code"), [("ahead", 9), ("as-job", 4)])
def test_closed_output_does_not_confuse_anyone(sandbox: Sandbox, when: str, code: int) -> None:
    assert prepare(sandbox, when, "close-streams") == Prepared()
    assert give_job(sandbox) == Started()
    assert sandbox.finish() == Exited(code, disk_full=False)
    assert sandbox.stdout == ""


@pytest.mark.parametrize(("attack", "code"), [("leave-daemons", 5), ("leave-stopped-children", 6)])
def test_children_left_behind_do_not_delay_the_end(sandbox: Sandbox, attack: str, code: int) -> None:
    assert prepare(sandbox, "as-job", attack) == Prepared()
    limits = [limit(resource.RLIMIT_NPROC, 60)]
    assert give_job(sandbox, rlimits=limits) == Started()
    assert sandbox.finish() == Exited(code, disk_full=False)


@pytest.mark.parametrize("attack", ["leave-daemons", "leave-stopped-children"])
def test_children_left_behind_ahead_of_the_job_are_found(sandbox: Sandbox, attack: str) -> None:
    """The interpreter cannot see daemons: they are init's children by then."""
    assert prepare(sandbox, "ahead", attack) == PreparationFailed("an import left a process")
    assert sandbox.finish() is None


def test_a_fork_bomb_is_stopped(sandbox: Sandbox) -> None:
    assert prepare(sandbox, "as-job", "bomb") == Prepared()
    assert give_job(sandbox) == Started()
    time.sleep(1)
    sandbox.send(init_job.TERMINATE)
    assert sandbox.finish() == Signaled(signal.SIGTERM, disk_full=False)


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        ("forge-reports", "the interpreter's report is not understood"),
        ("endless-report", "the interpreter's report is too long"),
        ("control-characters", "?[31mno?\N{REPLACEMENT CHARACTER} good"),
        ("exit-without-report", "the interpreter exited 3"),
        ("close-report", "the interpreter has closed its report without one"),
    ],
)
def test_a_preparation_that_does_not_report_as_it_must_has_failed(sandbox: Sandbox, attack: str, reason: str) -> None:
    failed = prepare(sandbox, attack)
    assert isinstance(failed, PreparationFailed)
    assert failed.reason.replace("??", "?") == reason.replace("??", "?")
    assert sandbox.finish() is None


def test_an_interpreter_that_dies_while_idle_is_told(sandbox: Sandbox) -> None:
    assert prepare(sandbox, "die-while-idle") == Prepared()
    assert sandbox.next_report() == PreparationFailed("the interpreter was ended by signal 9")
    assert sandbox.finish() is None


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        ("report-later", "I changed my mind"),
        ("refuse-the-job", "not this one"),
        ("lower-limits", f"the interpreter cannot be limited in resource {resource.RLIMIT_NOFILE}"),
    ],
)
def test_a_job_that_is_not_taken_has_not_started(sandbox: Sandbox, attack: str, reason: str) -> None:
    assert prepare(sandbox, attack) == Prepared()
    time.sleep(0.3)
    assert give_job(sandbox) == PreparationFailed(reason)
    assert sandbox.finish() is None


def test_a_program_that_cannot_be_executed_is_told(sandbox: Sandbox) -> None:
    report = sandbox.start(job("garbage", disk_bytes=MIB, is_preparation=True))
    assert type(report).__name__ == "ExecFailed"


@pytest.mark.parametrize("fields", [{"uid": 1000}, {"gid": 1000}, {"is_root_writable": True}, {"is_preparation": True}])
def test_init_refuses_a_job_that_the_interpreter_cannot_be(sandbox: Sandbox, fields: dict[str, object]) -> None:
    assert prepare(sandbox, "prepare-well") == Prepared()
    assert give_job(sandbox, **fields) == ProtocolFault(Fault.LAYOUT)


def test_root_is_not_prepared(sandbox: Sandbox) -> None:
    report = sandbox.start(job("attacks", "prepare-well", uid=0, gid=0, disk_bytes=MIB, is_preparation=True))
    assert report == ProtocolFault(Fault.LAYOUT)


def test_a_folder_from_before_the_job_passes_no_disk_limit(sandbox: Sandbox) -> None:
    assert prepare(sandbox, "keep-folder") == Prepared()
    assert give_job(sandbox) == Started()
    assert sandbox.finish() == Exited(0, disk_full=False)
    assert sandbox.stdout.startswith("open 1 written ")
    assert int(sandbox.stdout.split()[3]) <= MIB


@pytest.mark.parametrize("attack", ["leave-daemons-late", "fork-late"])
def test_processes_that_come_before_the_job_are_found(sandbox: Sandbox, attack: str) -> None:
    """They have the limits of the preparation: only the interpreter gets those of the job."""
    assert prepare(sandbox, attack) == Prepared()
    time.sleep(2)  # it forks 0.1 s after that
    assert give_job(sandbox) == PreparationFailed("a process came beside the interpreter")
    assert sandbox.finish() is None


def hunt_while_files_come(sandbox: Sandbox) -> str:
    """Return what an interpreter tells that looks at all processes meanwhile."""
    assert prepare(sandbox, "hunt-others") == Prepared()
    time.sleep(0.2)
    limits = [limit(resource.RLIMIT_NPROC, 19)]
    sandbox.send(init_job.encode_job(job("attacks", "x", rlimits=limits, has_files=True)))
    path = b"/tmp/file"
    sandbox.send(struct.pack("<IIQ", len(path), 0o644, 4) + path + b"ab")
    time.sleep(1.5)  # the hunter has seen the process meanwhile, which waits for the rest
    told = sandbox.stderr
    sandbox.send(b"cd" + init_job.END_OF_FILES)
    seen = [line for line in told.splitlines() if line.startswith("seen ")]
    assert max(int(line.split()[1]) for line in seen) >= 3, seen  # init 1, the interpreter 2
    return told


def test_the_process_that_writes_the_job_s_files_is_out_of_reach(sandbox: Sandbox) -> None:
    """It shares init's memory: who could trace or signal it would own init."""
    told = hunt_while_files_come(sandbox)
    assert sandbox.next_report() == Started()
    assert sandbox.finish() == Exited(0, disk_full=False)
    assert "reached" not in told


def test_that_attack_is_a_real_one(tmp_path: Path, init_image: Path, runsc: RunscBinary) -> None:
    """An init whose process takes all ids of the job is reached."""
    open_init = compile_c(NATIVE / "init.c", tmp_path / "init", *CFLAGS, "-DWRITE_FILES_AS_JOB")
    with contextlib.closing(Sandbox(tmp_path / "sandbox", init_image, open_init, runsc, is_prepared=True)) as sandbox:
        assert "reached 3" in hunt_while_files_come(sandbox)


def test_the_end_of_the_worker_ends_a_preparation(sandbox: Sandbox) -> None:
    assert prepare(sandbox, "take-nothing") == Prepared()
    close_control(sandbox)
    assert sandbox.finish() is None
