"""A program's own end comes back through the queue unchanged."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from stage import Stage, Stock

FATAL_SIGNALS = [
    number
    for number in signal.valid_signals()
    if number < 32
    and number not in {signal.SIGCHLD, signal.SIGCONT, signal.SIGURG, signal.SIGWINCH}
    and number not in {signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU}
]


@pytest.mark.timeout(300)
def test_every_exit_code_comes_back_as_itself(module_stage: Stage, stock: Stock) -> None:
    jobs = {code: stock.submit("sh", "-c", f"exit {code}") for code in range(256)}

    ends = {code: stock.outcome(job_id, 200) for code, job_id in jobs.items()}

    assert {code: end["exit_code"] for code, end in ends.items()} == {code: code for code in range(256)}
    assert ends[0]["code"] == "OK"
    assert {ends[code]["code"] for code in range(1, 256)} == {"EXIT_NONZERO"}
    assert {stock.wait(job_id)["status"] for job_id in jobs.values()} == {"SUCCESS"}


@pytest.mark.timeout(180)
def test_every_fatal_signal_is_named(module_stage: Stage, stock: Stock) -> None:
    # Not the shell itself: busybox's ignores SIGQUIT.
    script = "(sleep 0.2; kill -{} $$) & exec sleep 20"
    jobs = {int(number): stock.submit("sh", "-c", script.format(int(number))) for number in FATAL_SIGNALS}

    ends = {number: stock.outcome(job_id, 120) for number, job_id in jobs.items()}

    assert {number: end["signal"] for number, end in ends.items()} == {number: number for number in jobs}
    assert {end["code"] for end in ends.values()} == {"SIGNALED"}


def test_output_of_any_bytes_arrives_unchanged(module_stage: Stage, stock: Stock) -> None:
    outcome = stock.outcome(stock.submit("sh", "-c", r"printf '\377\000x'; echo err >&2; exit 7"))

    expected = {"data": "/wB4", "encoding": "base64", "total_bytes": 3, "truncated": False, "stored": None}
    assert outcome["stdout"] == expected
    assert outcome["stderr"]["data"] == "err\n"
    assert outcome["attempts"][0]["code"] == "EXIT_NONZERO"
    assert outcome["timing"]["queued"] >= 0


def test_a_job_that_crashes_every_sandbox_is_tried_again_once(module_stage: Stage, stock: Stock) -> None:
    """Releases before 20260601 crash here, and would crash again in each new sandbox.

    On later ones the program ends well.
    """
    script = "mkdir -p /tmp/a/b; cd /tmp/a/b; rmdir /tmp/a/b /tmp/a; cd -P ..; true"
    outcome = stock.outcome(stock.submit("sh", "-c", script, fields={"max_attempts": 10}))

    if outcome["code"] != "OK":
        assert [attempt["code"] for attempt in outcome["attempts"]] == ["SANDBOX_EXECUTION_FAILED"] * 2
        assert "crashed its sandbox" in outcome["message"]
    else:
        assert len(outcome["attempts"]) == 1


@pytest.mark.parametrize(
    ("fields", "command", "code"),
    [
        ({"timeout": 0.5}, ["sleep", "30"], "TIMEOUT"),
        ({"timeout": 0.5, "grace": 0.5}, ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], "TIMEOUT"),
        ({"image": "nowhere"}, ["true"], "IMAGE_NOT_FOUND"),
        ({}, ["/no/such/program"], "COMMAND_NOT_FOUND"),
        ({}, ["/etc/passwd"], "COMMAND_NOT_EXECUTABLE"),
        ({"working_dir": "/no/such"}, ["true"], "WORKING_DIR_INVALID"),
        ({"security": {"user": "nobody-of-that-name"}}, ["true"], "USER_INVALID"),
        ({"output": {"max_bytes": 10, "on_limit": "kill"}}, ["yes"], "OUTPUT_LIMIT"),
        ({"platform": "kvm", "max_attempts": 1}, ["true"], "GVISOR_NOT_AVAILABLE"),
    ],
)
def test_every_ending_but_the_programs_own_is_a_celery_failure(
    module_stage: Stage, stock: Stock, fields: dict[str, object], command: list[str], code: str
) -> None:
    record = stock.wait(stock.submit(*command, fields=fields))

    assert record["status"] == "FAILURE"
    assert record["result"]["exc_message"][0] == code
    assert record["result"]["exc_message"][2]["code"] == code
