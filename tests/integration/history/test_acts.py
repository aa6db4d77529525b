"""`sandfleet jobs retry` and `jobs cancel` by filters that the history answers."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import pytest
from sandfleet import SandboxSpec
from sandfleet.cli import main
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Outcome
from sandfleet_config.queues import DEFAULT_QUEUE

if TYPE_CHECKING:
    from past import Past

    Capture = pytest.CaptureFixture[str]

S7 = SandboxSpec(image="python", command=["true"], labels={"suite": "s7"})
S8 = SandboxSpec(image="node", command=["true"], labels={"suite": "s8"})


def run(capsys: Capture, *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(list(words))
    printed = capsys.readouterr()
    return status, printed.out, printed.err


def test_failed_jobs_of_all_batches_run_again_by_a_filter(past: Past, capsys: Capture) -> None:
    wanted = past.end([S7], ErrorCode.TIMEOUT, batch="a") + past.end([S7], ErrorCode.TIMEOUT)
    past.end([S7])
    others = past.end([S8], ErrorCode.TIMEOUT)
    past.write_all()

    words = ("jobs", "retry", "-l", "suite=s7", "--since", "2h")
    _, text, _ = run(capsys, *words, "--dry-run")
    assert text.startswith("would run again 2 jobs: label.suite=s7 since:"), "not what ended OK"
    status, text, _ = run(capsys, *words, "--yes", "-r", "the data was wrong")
    assert (status, text.splitlines()[0]) == (0, "2 done, 0 skipped, 0 gone")
    assert sorted(past.fleet.state.queued_ids(DEFAULT_QUEUE, 0, 10)) == sorted(wanted)
    status, text, _ = run(capsys, *words, "--yes")
    assert (status, text.splitlines()[0]) == (0, "0 done, 2 skipped, 0 gone"), "a second click changes nothing"
    (second, first) = past.fleet.state.read_audit(2)
    assert (first.action, first.count, first.reason) == ("retry", 2, "the data was wrong")
    assert first.target.startswith("label.suite=s7 since:")
    assert second.count == 0
    assert run(capsys, "jobs", "retry", "--image", "node", "--dry-run")[1].splitlines()[1] == others[0]


def test_open_jobs_of_all_batches_are_cancelled_by_a_filter(past: Past, capsys: Capture) -> None:
    waiting = [past.fleet.submit(S7, batch="a").id, past.fleet.submit(S7).id]
    other = past.fleet.submit(S8).id
    past.ledger.beat(60, [], json.dumps({"state": "up"}), json.dumps([[waiting[0], 0, time.time()]]))
    _, text, error = run(capsys, "jobs", "cancel", "-l", "suite=s7", "--dry-run")
    assert text.startswith("would cancel 2 jobs: label.suite=s7")
    assert "100,000 that wait in queues" in error
    status, text, _ = run(capsys, "jobs", "cancel", "-f", "label.suite=s7", "--yes")
    assert (status, text.splitlines()[0]) == (0, "2 done, 0 skipped, 0 gone")
    assert past.fleet.state.queued_ids(DEFAULT_QUEUE, 0, 10) == [other]


def test_a_host_whose_tries_fail_is_marked_though_the_jobs_end_ok_elsewhere(past: Past, capsys: Capture) -> None:
    past.ledger.beat(60, [], json.dumps({"state": "up"}))
    assert "-" in run(capsys, "hosts")[1].splitlines()[1], "without a history there is no share"
    assert json.loads(run(capsys, "hosts", "-o", "json")[1])[0]["failures"] is None
    tries = [["host", "1", "HOST_RESOURCES", 1, 2, 1], ["other", "1", "OK", 3, 4, 1]]
    past.add(*(json.dumps({"id": f"retried-{at}", "code": "OK", "host": "other", "tries": tries}) for at in range(25)))
    past.write_all()
    assert "odd: 100.0% of 25 attempts" in run(capsys, "hosts")[1]
    assert "odd: 100.0% of 25 attempts" in run(capsys, "hosts", "show", "host")[1]
    (found,) = json.loads(run(capsys, "hosts", "-o", "json")[1])
    counts = {"tries": 25, "failed": 25, "others_tries": 25, "others_failed": 0, "is_odd": True}
    assert found["failures"] == counts


def test_cancels_of_batches_and_dead_letters_leave_lines_in_the_audit(past: Past, capsys: Capture) -> None:
    dead = [past.fleet.submit(S7, batch="sick").id for _ in range(2)]
    for number, job_id in enumerate(dead):
        claim, _ = past.ledger.claim(f"dead-{number}", [DEFAULT_QUEUE])
        assert claim is not None
        assert past.ledger.finish(claim, Outcome.of(ErrorCode.WORKER_LOST, claim.job_id, "lost"), reason="no try")
        assert claim.job_id == job_id
    assert run(capsys, "dead", "requeue", dead[0])[0] == 0
    assert run(capsys, "dead", "purge")[0] == 0
    assert run(capsys, "batch", "cancel", "sick")[0] == 0
    lines = [(line.action, line.target, line.count) for line in past.fleet.state.read_audit(3)]
    assert lines == [("cancel", "batch:sick", 1), ("purge dead", "all dead letters", 1), ("requeue dead", dead[0], 1)]
    assert run(capsys, "dead", "requeue", "--all")[0] == 0
    assert past.fleet.state.read_audit(1)[0].target == "all dead letters"


def test_what_cannot_be_meant_is_refused(past: Past, capsys: Capture) -> None:
    for words, why in (
        (("cancel", "--yes"), "An empty filter would be every job"),
        (("retry", "--yes"), "An empty filter would be every job"),
        (("cancel", "--code", "TIMEOUT", "--yes"), "there is nothing to cancel"),
        (("retry", "some-id", "--queue", "q", "--yes"), "not both"),
    ):
        status, out, error = run(capsys, "jobs", *words)
        assert (status, out) == (2, "")
        assert why in error
    status, _, error = run(capsys, "jobs", "retry", "--queue", "q", "--yes")
    assert (status, "set SANDFLEET_WEB_URL" in error) != (0, True), "without a history it says so"
