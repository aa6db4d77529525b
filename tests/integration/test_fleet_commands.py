"""``sandfleet hosts|queues|audit`` and ``jobs cancel|retry`` on a real Redis."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from claims import claim_next
from sandfleet import ErrorCode, Fleet, Outcome, SandboxSpec
from sandfleet.actions import Actor
from sandfleet.cli import main
from sandfleet.overview.fields import audit_fields, host_fields
from sandfleet.overview.hosts import group_hosts
from sandfleet_config.queues import CORDONS, DEFAULT_QUEUE, KEY_PREFIX, PAUSED, job_key, status_key
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_worker.delivery.ledger import Ledger

    Capture = pytest.CaptureFixture[str]

TRUE = SandboxSpec(image="x", command=["true"])
EVIL = "\x1b[2J\u202e<script>\n"
STATUS = {
    "state": "up",
    "queues": ["*"],
    "slots": 4,
    "busy": 1,
    "running": 1,
    "waiting": 1,
    "load": 0.5,
    "warm": {"python": 2},
    "memory_free": 1 << 30,
    "memory_budget": 2 << 30,
    "disk_free": 3 << 30,
    "version": "0.1.0",
    "runsc": "20260905",
    "platform": "systrap",
    "labels": {"zone": "a"},
    "started": 1.7e9,
}


@pytest.fixture(autouse=True)
def _worker(fleet: Fleet, client: Any, ledger: Ledger) -> Iterator[None]:
    """One worker on `host`; marks are taken away afterwards."""
    ledger.beat(6, [], json.dumps(STATUS), json.dumps([["job-1", 0, 1_700_000_000], ["job-2", -1, 0]]))
    yield
    client.delete(CORDONS, PAUSED)


def run(capsys: Capture, *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    status = main(list(words))
    found = capsys.readouterr()
    return status, found.out, found.err


def test_hosts_are_listed_in_each_form(fleet: Fleet, capsys: Capture) -> None:
    status, table, _ = run(capsys, "hosts")
    assert status == 0
    head, row = table.splitlines()
    assert head.split() == [
        "HOST",
        "STATE",
        "BUSY",
        "WAIT",
        "LOAD",
        "MEMORY",
        "FREE",
        "SPARES",
        "SEEN",
        "FAILED",
        "1H",
        "MARK",
    ]
    assert row.split()[:5] == ["host", "up", "1/4", "1", "0.5"]
    assert "python:2" in row
    _, wide, _ = run(capsys, "hosts", "-o", "wide")
    assert "zone=a" in wide
    assert run(capsys, "hosts", "-q")[1] == "host\n"
    (found,) = json.loads(run(capsys, "hosts", "-o", "json")[1])
    (expected,) = [host_fields(host) for host in group_hosts(fleet.state.read_summary())]
    for fields in (found, expected):
        fields["workers"][0].pop("lease_seconds")
    assert found == expected
    assert json.loads(run(capsys, "hosts", "-o", "jsonl")[1])["slots"] == 4
    (line,) = csv.DictReader(io.StringIO(run(capsys, "hosts", "-o", "csv")[1]))
    assert (line["host"], line["running"]) == ("host", "1")


def test_a_host_is_shown_with_its_jobs_and_images(client: Any, capsys: Capture) -> None:
    images = json.dumps([["python", "sha256:1", 5 << 20, time.time() - 60]])
    client.set(f"{KEY_PREFIX}host_images:host", images, ex=60)
    status, text, _ = run(capsys, "hosts", "show", "host")
    assert status == 0
    for part in ("1 of 4 busy", "job-1 since", "job-2 waits", "python 5MiB", "runsc 20260905", "zone=a"):
        assert part in text
    found = json.loads(run(capsys, "hosts", "show", "host", "-o", "json")[1])
    assert [job["job_id"] for job in found["jobs"]] == ["job-1", "job-2"]
    assert found["images"][0]["image"] == "python"
    assert run(capsys, "hosts", "show", "host", "-o", "ids")[1] == "job-1\njob-2\n"
    status, _, error = run(capsys, "hosts", "show", "nowhere")
    assert (status, "there is no host nowhere; there are: host" in error) == (1, True)


def test_a_host_is_cordoned_drained_and_let_go(fleet: Fleet, capsys: Capture) -> None:
    assert run(capsys, "hosts", "cordon", "host")[0] == 2, "a reason is needed"
    status, text, _ = run(capsys, "hosts", "cordon", "host", "--reason", "a sick disk", "--dry-run")
    assert "would cordon: host has 1 worker; 1 job runs there" in text
    assert fleet.state.read_summary().cordons == ()

    assert run(capsys, "hosts", "cordon", "host", "-r", "a sick disk")[0] == 0
    assert "cordoned by " in run(capsys, "hosts")[1]
    assert run(capsys, "hosts", "drain", "host", "--reason", "a new kernel", "--deadline", "90s")[0] == 0
    _, text, _ = run(capsys, "hosts", "show", "host")
    assert "draining" in text
    assert "deadline in 1m" in text or "deadline in 89s" in text or "deadline in 90s" in text
    status, _, error = run(capsys, "hosts", "drain", "host", "--reason", "x", "--deadline", "soon")
    assert (status, "such as 90s" in error) == (2, True)
    status, _, error = run(capsys, "hosts", "cordon", "a b", "-r", "x")
    assert (status, "no name of a host" in error) == (2, True)

    assert run(capsys, "hosts", "uncordon", "host")[1] == "host starts jobs again\n"
    assert run(capsys, "hosts", "uncordon", "host")[1] == "host was not cordoned\n"
    _, audit, _ = run(capsys, "audit", "-o", "json")
    found = json.loads(audit)
    assert [entry["action"] for entry in found] == ["uncordon", "uncordon", "drain", "cordon"]
    assert found == [audit_fields(entry) for entry in fleet.state.read_audit(10)]
    assert found[-1]["reason"] == "a sick disk"
    assert "@" in found[-1]["by"]


def test_a_drain_is_waited_for(fleet: Fleet, ledger: Ledger, capsys: Capture) -> None:
    ledger.beat(6, [], json.dumps(STATUS | {"state": "drained"}))
    _, text, _ = run(capsys, "hosts", "drain", "host", "-r", "x", "--deadline", "5s", "--wait")
    assert text.endswith("host is drained\n")


def test_queues_say_what_waits_and_who_takes_it(fleet: Fleet, client: Any, capsys: Capture) -> None:
    jobs = fleet.submit_many([TRUE] * 3)
    client.hset(job_key(jobs[0].id), "expires", round((time.time() + 60) * 1000))
    client.sadd(f"{KEY_PREFIX}queues", "gpu")
    client.rpush(f"{KEY_PREFIX}gpu", "{}")
    client.set(status_key("host:one:one"), json.dumps(STATUS | {"queues": [DEFAULT_QUEUE]}), ex=60)

    status, table, error = run(capsys, "queues")

    assert status == 0
    rows = {line.split()[0]: line.split() for line in table.splitlines()[1:]}
    assert rows[DEFAULT_QUEUE][1:3] == ["served", "3"]
    assert rows["gpu"][1:4] == ["no", "worker", "1"]
    assert "no live worker takes jobs of the queue gpu" in error
    found = {row["queue"]: row for row in json.loads(run(capsys, "queues", "-o", "json")[1])}
    assert found[DEFAULT_QUEUE]["by_priority"] == {"0": 0, "3": 0, "6": 3, "9": 0}
    assert found["gpu"]["served"] is False
    _, text, _ = run(capsys, "queues", "show", DEFAULT_QUEUE)
    assert "1 within an hour" in text
    assert run(capsys, "queues", "show", DEFAULT_QUEUE, "-o", "ids", "-n", "2")[1].split() == [
        jobs[0].id,
        jobs[1].id,
    ]
    assert run(capsys, "queues", "show", "nothing")[0] == 1


def test_a_pause_says_what_expires_meanwhile(fleet: Fleet, client: Any, capsys: Capture) -> None:
    (job,) = fleet.submit_many([TRUE])
    client.hset(job_key(job.id), "expires", round((time.time() + 60) * 1000))
    assert run(capsys, "queues", "pause", DEFAULT_QUEUE)[0] == 2, "a note is needed"
    _, text, _ = run(capsys, "queues", "pause", DEFAULT_QUEUE, "--note", "a bad release")
    assert "1 would expire within an hour of pause" in text
    _, text, _ = run(capsys, "queues")
    assert "paused by " in text
    _, text, _ = run(capsys, "show", job.id)
    assert "its queue is paused by " in text
    assert "a bad release" in text
    assert run(capsys, "queues", "resume", DEFAULT_QUEUE)[1] == f"jobs of {DEFAULT_QUEUE} start again\n"
    assert "paused" not in run(capsys, "show", job.id)[1]


def test_a_job_says_that_all_its_hosts_are_cordoned(fleet: Fleet, capsys: Capture) -> None:
    job = fleet.submit(TRUE)
    run(capsys, "hosts", "cordon", "host", "-r", "a sick disk")
    _, text, _ = run(capsys, "show", job.id)
    assert "all hosts that take it are cordoned: host, by " in text
    assert "a sick disk" in text


def test_jobs_are_cancelled_by_the_filters_of_their_list(fleet: Fleet, ledger: Ledger, capsys: Capture) -> None:
    specs = [TRUE.model_copy(update={"labels": {"suite": f"s{at % 2}"}}) for at in range(4)]
    fleet.submit_many(specs, batch="b")
    status, _, error = run(capsys, "jobs", "cancel", "--batch", "b")
    assert (status, "say --yes" in error) == (2, True)
    status, _, error = run(capsys, "jobs", "cancel", "--yes")
    assert (status, "An empty filter would be every job" in error) == (2, True)
    _, text, _ = run(capsys, "jobs", "cancel", "--batch", "b", "-l", "suite=s1", "--dry-run")
    assert text.startswith("would cancel 2 jobs: batch:b label.suite=s1\n")
    status, text, _ = run(capsys, "jobs", "cancel", "--batch", "b", "-l", "suite=s1", "--yes", "-r", "too slow")
    assert (status, text.splitlines()[0]) == (0, "2 done, 0 skipped, 0 gone")
    assert fleet.batch("b").codes == {"CANCELLED": 2}
    assert run(capsys, "jobs", "--batch", "b", "--code", "CANCELLED", "-q")[1].count("\n") == 2, (
        "the list works as ever"
    )


def test_jobs_run_again_by_the_filters_of_their_list(fleet: Fleet, ledger: Ledger, capsys: Capture) -> None:
    fleet.submit_many([TRUE] * 3, batch="b")
    for code in (ErrorCode.OK, ErrorCode.TIMEOUT, ErrorCode.SIGNALED):
        claim, _ = claim_next(ledger, code.value)
        assert claim is not None
        assert ledger.finish(claim, Outcome.of(code, claim.job_id))
    status, text, _ = run(capsys, "jobs", "retry", "--batch", "b", "--code", "TIMEOUT", "--yes")
    assert (status, text) == (0, "1 done, 0 skipped, 0 gone\n1  are queued again\n")
    status, _, error = run(capsys, "jobs", "retry", "--batch", "b", "--code", "TIMEOUT", "--yes")
    assert (status, "no job matches" in error) == (0, True)
    _, text, _ = run(capsys, "jobs", "retry", "--batch", "b", "--dry-run")
    assert text.startswith("would run again 1 job:"), "not what ended OK"
    status, text, _ = run(capsys, "jobs", "retry", "no-such-job", "--yes")
    assert (status, text) == (1, "0 done, 0 skipped, 1 gone\n1  have no record any more\n")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("cancel", ("-f", "since:1h")), ("cancel", ("-f", "exit:3")), ("cancel", ("-f", "state:running code:TIMEOUT")),
        ("cancel", ("-f", "newest:yes")), ("cancel", ("-f", '""')), ("cancel", ("--text", "", "-f", "")),
        ("retry", ("-f", "state:running")), ("retry", ("-f", "state:ended")), ("retry", ("-f", "newest:yes")),
    ],
)  # fmt: skip
def test_words_that_name_no_such_job_are_refused(
    fleet: Fleet, capsys: Capture, command: str, words: tuple[str, ...]
) -> None:
    job = fleet.submit(TRUE)

    status, text, _ = run(capsys, "jobs", command, *words, "--yes")

    assert (status, text) == (2, "")
    assert not job.is_done


def test_a_text_may_look_like_a_word_of_a_filter(fleet: Fleet, capsys: Capture) -> None:
    job = fleet.submit(SandboxSpec(image="x", command=["echo", "label.suite"]))
    assert run(capsys, "jobs", "--text", "label.suite", "-q")[1] == f"{job.id}\n"


def test_texts_of_strangers_stay_texts(fleet: Fleet, client: Any, capsys: Capture) -> None:
    mark = json.dumps({"by": EVIL, "reason": EVIL, "note": EVIL, "at": 9e12, "deadline": 1e14})
    client.hset(CORDONS, mapping={"host": mark, EVIL: mark})
    client.hset(PAUSED, DEFAULT_QUEUE, mark)
    client.set(status_key("host:one:one"), json.dumps(STATUS | {"runsc": EVIL, "labels": {EVIL: EVIL}}), ex=60)
    fleet.operator(Actor("ann")).uncordon("nowhere")
    client.xadd(f"{KEY_PREFIX}audit", {"by": EVIL, "action": EVIL, "target": EVIL, "reason": EVIL, "result": EVIL})
    for words in (["hosts"], ["hosts", "show", "host"], ["queues"], ["queues", "show", DEFAULT_QUEUE], ["audit"]):
        for form in ("table", "wide", "json", "jsonl", "csv", "ids"):
            if words[0] != "audit" and form in {"csv", "wide"} and len(words) > 1:
                continue
            status, out, error = run(capsys, *words, "-o", form)
            assert status == 0, (words, form)
            assert "\x1b" not in out + error
            assert "\u202e" not in out + error or form == "csv", (words, form)


def test_a_watched_list_is_redrawn_on_a_terminal(fleet: Fleet) -> None:
    main_fd, child_fd = pty.openpty()
    command = [sys.executable, "-m", "sandfleet.cli", "hosts", "-w", "0.3"]
    process = subprocess.Popen(command, stdin=child_fd, stdout=child_fd, stderr=child_fd, env=dict(os.environ))
    os.close(child_fd)
    seen, end = b"", time.monotonic() + 15
    while seen.count(b"\x1b[H\x1b[J") < 2 and time.monotonic() < end:
        if select.select([main_fd], [], [], 1)[0]:
            seen += os.read(main_fd, 65536)
    assert seen.count(b"\x1b[H\x1b[J") >= 2, seen
    assert b"python:2" in seen
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 130
    os.close(main_fd)


def test_a_watched_list_is_appended_as_lines_and_printed_once_otherwise(capsys: Capture) -> None:
    assert run(capsys, "hosts", "-w")[1].count("HOST") == 1, "a table without a terminal is printed once"
    command = [sys.executable, "-m", "sandfleet.cli", "hosts", "-w", "0.2", "-o", "jsonl"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, env=dict(os.environ))
    assert process.stdout is not None
    lines = [json.loads(process.stdout.readline()) for _ in range(3)]
    assert {line["host"] for line in lines} == {"host"}
    process.send_signal(signal.SIGINT)
    wait_until(lambda: process.poll() is not None, 10, "it ends")
    assert process.returncode == 130
    process.stdout.close()
