"""`sandfleet jobs`, `failures`, `usage` and `images` over history and Redis."""

from __future__ import annotations

import csv
import io
import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from api_server import serve_history
from sandfleet import SandboxSpec
from sandfleet.cli import main
from sandfleet.history.fields import run_fields
from sandfleet.history.questions import HistoryFilter
from sandfleet_config.codes import ErrorCode
from sandfleet_config.outcome import Usage
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX
from sandfleet_web.cli import main as web_main
from waiting import wait_until

if TYPE_CHECKING:
    from past import Past

    Capture = pytest.CaptureFixture[str]

SPEC = SandboxSpec(image="python", command=["python3", "run.py"], labels={"suite": "s7"}, env=["KEY=s3cret"])
OTHER = SandboxSpec(image="node", command=["node", "run.js"], labels={"suite": "s8", "name": "sieve"})
STATUS = {"state": "up", "queues": ["*"], "slots": 4, "busy": 1, "running": 1}


def run(capsys: Capture, *words: str) -> tuple[int, str, str]:
    status = main(list(words))
    printed = capsys.readouterr()
    assert "s3cret" not in printed.out + printed.err
    return status, printed.out, printed.err


def ids(capsys: Capture, *words: str) -> list[str]:
    status, out, err = run(capsys, "jobs", "-o", "ids", *words)
    assert status == 0, err
    return out.split()


def test_jobs_that_run_come_first_then_those_that_wait_then_the_newest_ends(past: Past, capsys: Capture) -> None:
    ended = past.end([SPEC, SPEC], batch="a") + past.end([OTHER], ErrorCode.TIMEOUT)
    past.write_all()
    waiting = past.fleet.submit(SPEC)
    running = past.fleet.submit(OTHER)
    claim, _ = past.ledger.claim("running", [DEFAULT_QUEUE])
    assert claim is not None
    order = [waiting.id, running.id] if claim.job_id == waiting.id else [running.id, waiting.id]
    past.ledger.beat(60, [claim], json.dumps(STATUS), json.dumps([[claim.job_id, 1, time.time()]]))

    assert ids(capsys) == [*order, *reversed(ended)]
    assert ids(capsys, "--state", "ended") == ended[::-1]
    assert ids(capsys, "--state", "queued") == order[1:]
    assert ids(capsys, "--code", "timeout") == [ended[2]]
    assert ids(capsys, "--image", "node") == [running.id, ended[2]]
    assert ids(capsys, "-l", "suite=s7", "--until", "1h") == []
    assert ids(capsys, "-l", "suite=s7") == [waiting.id, ended[1], ended[0]]
    assert ids(capsys, "--text", "RUN.JS") == [running.id, ended[2]]
    assert ids(capsys, "-f", "category:limit since:1h") == [ended[2]]
    assert ids(capsys, "-n", "2") == order
    assert ids(capsys, "--queue", "nowhere") == []


def test_all_forms_of_the_list_have_the_same_names(past: Past, capsys: Capture) -> None:
    past.end([SPEC], ErrorCode.EXIT_NONZERO, exit_code=3, message="the program exited 3")
    past.write_all()
    past.fleet.submit(OTHER)

    rows = json.loads(run(capsys, "jobs", "-o", "json")[1])
    assert [row["state"] for row in rows] == ["queued", "ended"]
    assert rows[0].keys() == rows[1].keys()
    assert rows[1] == run_fields(past.history.find_runs(HistoryFilter()).rows[0])
    lines = list(csv.DictReader(io.StringIO(run(capsys, "jobs", "-o", "csv")[1])))
    assert [line["code"] for line in lines] == ["", "EXIT_NONZERO"]
    _, table, _ = run(capsys, "jobs")
    assert [line.split()[1] for line in table.splitlines()] == ["STATE", "queued", "EXIT_NONZERO"]
    assert "the program exited 3" in run(capsys, "jobs", "-o", "wide", "--no-trunc")[1]


def test_a_batch_that_redis_has_not_any_more_is_listed_from_the_history(past: Past, capsys: Capture) -> None:
    ended = past.end([SPEC] * 3, batch="old")
    past.write_all()
    assert ids(capsys, "--batch", "old") == ended
    for key in (f"batch:{'old'}", "ends:old", "counts:old", "done:old", *(f"job:{job_id}" for job_id in ended)):
        past.redis.delete(KEY_PREFIX + key)

    assert ids(capsys, "--batch", "old") == ended[::-1]


def test_without_a_history_it_says_so_and_answers_from_redis(past: Past, capsys: Capture) -> None:
    past.end([SPEC], batch="a")
    waiting = past.fleet.submit(OTHER)

    status, out, err = run(capsys, "jobs", "-o", "ids")
    assert (status, out) == (0, f"{waiting.id}\n")
    assert "ended jobs are not listed: there is no history in reach: set SANDFLEET_WEB_URL" in err
    assert len(ids(capsys, "--batch", "a")) == 1
    status, _, err = run(capsys, "failures")
    assert (status != 0, "there is no history in reach" in err) == (True, True)


def test_only_the_newest_run_of_a_job_is_listed(past: Past, capsys: Capture) -> None:
    (job_id,) = past.end([SPEC], ErrorCode.TIMEOUT, batch="a")
    past.fleet.batch("a").retry()
    claim, _ = past.ledger.claim("again", [DEFAULT_QUEUE])
    assert claim is not None
    from sandfleet_config.outcome import Outcome

    assert past.ledger.finish(claim, Outcome.of(ErrorCode.OK, job_id, batch="a", exit_code=0))
    past.write_all()

    assert ids(capsys) == [job_id]
    assert json.loads(run(capsys, "jobs", "-o", "json")[1])[0]["run"] == 2
    assert [found.run for found in past.history.runs_of(job_id)] == [2, 1]


def test_a_job_that_redis_does_not_know_any_more_is_shown_from_the_history(past: Past, capsys: Capture) -> None:
    (job_id,) = past.end(
        [OTHER], ErrorCode.TIMEOUT, batch="a", message="the program ran longer than its timeout of 3 s"
    )
    assert "from the history" not in run(capsys, "show", job_id)[2]
    past.write_all()
    past.redis.delete(f"{KEY_PREFIX}job:{job_id}", f"{KEY_PREFIX}celery-task-meta-{job_id}")

    status, out, err = run(capsys, "show", job_id)
    assert (status, "this is from the history" in err) == (0, True)
    for part in (job_id, "TIMEOUT", "its timeout of 3 s", "sieve: node node run.js", "suite=s8"):
        assert part in out
    assert json.loads(run(capsys, "show", job_id, "--json")[1])["code"] == "TIMEOUT"
    assert "there is no job other" in run(capsys, "show", "other")[2]
    assert "there is no job" in run(capsys, "show", job_id, "--run", "7")[2]


def test_failures_are_grouped(past: Past, capsys: Capture) -> None:
    for number in range(3):
        past.end([SPEC], ErrorCode.WORKER_LOST, batch="a", message=f"worker host.{number} died with the job")
    past.end([OTHER] * 2, ErrorCode.EXIT_NONZERO, batch="b", message="the program exited 2", exit_code=2)
    past.end([SPEC] * 5)
    past.write_all()

    groups = json.loads(run(capsys, "failures", "-o", "json")[1])
    assert [(group["code"], group["count"], group["top_batch"]) for group in groups] == [
        ("WORKER_LOST", 3, "a"),
        ("EXIT_NONZERO", 2, "b"),
    ]
    table = run(capsys, "failures")[1].splitlines()
    assert table[1].split()[:2] == ["3", "WORKER_LOST"]
    assert "▁" in run(capsys, "failures", "-o", "wide")[1] or "█" in run(capsys, "failures", "-o", "wide")[1]
    assert len(run(capsys, "failures", "--by", "batch", "-o", "jsonl")[1].splitlines()) == 2
    found = run(capsys, "failures", "--batch", "b", "--exit", "2", "-o", "json")
    assert found[0] == 0, found
    (only,) = json.loads(found[1])
    assert only["message"] == "the program exited 2"
    assert run(capsys, "failures", "-q", "--code", "WORKER_LOST")[1].strip() == groups[0]["example"]
    assert run(capsys, "failures", "--by", "label")[0] == 2
    assert "no failure matches" in run(capsys, "failures", "--batch", "c")[2]


def test_use_is_summed_by_batch_and_label(past: Past, capsys: Capture) -> None:
    past.end([SPEC] * 2, batch="a", usage=Usage(cpu_seconds=1800.0))
    past.end([OTHER], ErrorCode.TIMEOUT, batch="b", usage=Usage(cpu_seconds=7200.0))
    past.write_all()

    rows = json.loads(run(capsys, "usage", "-o", "json")[1])
    assert [(row["key"], row["jobs"], row["ok"], row["cpu_hours"]) for row in rows] == [
        ("b", 1, 0, 2.0),
        ("a", 2, 2, 1.0),
    ]
    assert rows[0]["failures"] == {"TIMEOUT": 1}
    by_label = json.loads(run(capsys, "usage", "--by", "label:suite", "-o", "json")[1])
    assert [(row["key"], row["cpu_hours"]) for row in by_label] == [("s8", 2.0), ("s7", 1.0)]
    assert run(capsys, "usage", "--by", "label:")[0] == 2
    assert "1 TIMEOUT" in run(capsys, "usage")[1]


def test_what_the_history_lost_is_said(past: Past, capsys: Capture) -> None:
    past.end([SPEC])
    past.write_all()
    past.redis.incrby(f"{KEY_PREFIX}ended_runs:last", 7)
    past.end([SPEC])
    past.write_all()

    assert "the history lacks 7 runs" in run(capsys, "usage")[2]


def test_images_of_all_hosts_are_listed_and_what_differs_is_said(past: Past, capsys: Capture) -> None:
    past.ledger.beat(60, [], json.dumps(STATUS), "[]")
    hosts = {
        "host": [["python", f"sha256:{'1' * 64}", 5 << 20, time.time()], ["busybox", f"sha256:{'3' * 64}", 1 << 20, 0]]
    }
    from sandfleet_worker.delivery.identity import Identity
    from sandfleet_worker.delivery.ledger import Ledger

    for name, digest in (("two", "1"), ("three", "2")):
        other = Ledger(past.redis, Identity(name, name, f"{name}:1:1"), 3600)
        other.register(7200)
        other.beat(60, [], json.dumps(STATUS), "[]")
        hosts[name] = [["python", f"sha256:{digest * 64}", 6 << 20, 0]]
    for name, images in hosts.items():
        past.redis.set(f"{KEY_PREFIX}host_images:{name}", json.dumps(images), ex=60)

    status, out, err = run(capsys, "images")
    assert status == 0
    assert [line.split()[:3] for line in out.splitlines()[1:]] == [
        ["busybox", "1", "sha256:333333333333"],
        ["python", "3", "differs"],
    ]
    assert "python is not the same on all hosts: sha256:222222222222 on three" in err
    rows = json.loads(run(capsys, "images", "-o", "json")[1])
    assert rows[1]["digests"] == {f"sha256:{'1' * 64}": ["host", "two"], f"sha256:{'2' * 64}": ["three"]}


def test_the_lists_are_the_same_over_http(past: Past, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    past.end([SPEC] * 3, ErrorCode.TIMEOUT, batch="a")
    past.write_all()
    words: list[tuple[str, ...]] = [("jobs", "-o", "json"), ("failures", "-o", "json"), ("usage", "-o", "json")]
    local = [run(capsys, *line)[1] for line in words]
    with serve_history(past.history) as url:
        monkeypatch.setenv("SANDFLEET_WEB_URL", url)
        assert [run(capsys, *line)[1] for line in words] == local


def test_a_batch_that_redis_has_not_any_more_is_forgotten(past: Past, capsys: Capture) -> None:
    past.add(json.dumps({"id": "job-1", "run": 1, "code": "OK", "batch": "old"}))
    past.write_all()
    with pytest.raises(SystemExit):
        web_main(["history", "forget", "old"])
    assert "old is forgotten" in capsys.readouterr().out
    with past.writing():
        wait_until(lambda: past.history.status().rows == 0, 10, "its runs are deleted")
    past.end([SPEC], batch="new")
    with pytest.raises(SystemExit) as ended:
        web_main(["history", "forget", "new"])
    assert ended.value.code == 2
    assert "sandfleet batch forget deletes them, too" in capsys.readouterr().err


def test_the_list_is_printed_again_with_w(past: Past, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    past.end([SPEC])
    past.write_all()
    pauses: list[float] = []

    def stop(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("sandfleet.cli.watching.time.sleep", stop)
    printed: Any = run(capsys, "jobs", "-w", "-o", "jsonl")
    assert len(printed[1].splitlines()) == 3
    assert pauses == [2.0] * 3


def test_bytes_that_are_no_utf8_are_told_as_such(past: Past, capsys: Capture) -> None:
    past.end([SPEC])
    past.write_all()
    half = "\udcff\udcfe"  # as Python reads $'\xff\xfe' from argv
    for words in (["jobs", "--batch", half], ["jobs", "--label", f"a={half}"], ["failures", "--image", half]):
        status, _, err = run(capsys, *words)
        assert (status, err) == (2, "sandfleet: not valid UTF-8: \\udcff\\udcfe\n")
    status, _, err = run(capsys, "show", half)
    assert status == 1
    assert err.startswith("sandfleet: there is no job")
