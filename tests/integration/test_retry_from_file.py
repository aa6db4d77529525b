"""`batch retry --from FILE`: jobs whose specs are no longer kept run again as they were submitted."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from sandfleet import ErrorCode, Outcome
from sandfleet.channel.message import read_request
from sandfleet.cli import main
from sandfleet.files.reference import list_objects
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, job_key, spec_key
from sandfleet_config.store.redis_store import object_key

if TYPE_CHECKING:
    from pathlib import Path

    from sandfleet import Fleet, SandboxSpec
    from sandfleet_worker.delivery.ledger import Ledger

    Capture = pytest.CaptureFixture[str]

QUEUED = f"{KEY_PREFIX}{DEFAULT_QUEUE}\x06\x166"
DELIVERY = ("step", "queue_ttl", "max_attempts")


def write_lines(path: Path, *lines: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps({"image": "x", "command": ["true"], **line}) + "\n" for line in lines))
    return str(path)


def fail_all(ledger: Ledger, client: Any, fleet: Fleet) -> list[str]:
    """End each job of batch `b` with TIMEOUT, and forget what it ran; return the ids."""
    ids = [*fleet.batch("b").iter_ids()]
    for _ in ids:
        take(ledger)
    for job_id in ids:
        client.delete(spec_key(job_id))
    return ids


def announce(ledger: Ledger, contract: int) -> None:
    facts = {"host": "host", "queues": ["*"], "contract": contract, "ceilings": {}, "labels": {}}
    assert ledger.announce(json.dumps(facts), [], 600)


def take(ledger: Ledger) -> SandboxSpec:
    """End the next job with TIMEOUT; return the spec of its message."""
    claim, _ = ledger.claim("next", [DEFAULT_QUEUE])
    assert claim is not None
    assert ledger.finish(
        claim, Outcome.of(ErrorCode.TIMEOUT, claim.job_id, attempts=claim.end_attempts(ErrorCode.TIMEOUT))
    )
    request = read_request(claim.message)
    assert request is not None
    return request.spec


def test_a_job_keeps_the_delivery_of_its_submit(
    client: Any, fleet: Fleet, ledger: Ledger, tmp_path: Path, capfd: Capture
) -> None:
    """A job that may start once does not start again after a worker's death."""
    file = write_lines(tmp_path / "jobs.jsonl", {})
    options = ["--max-attempts", "1", "--priority", "0", "--queue-ttl", "7200"]
    assert main(["submit", file, "--batch", "b", *options]) == 0
    (job_id,) = fail_all(ledger, client, fleet)
    assert main(["batch", "retry", "b", "--from", file]) == 0
    assert client.hmget(job_key(job_id), *DELIVERY) == [b"0", b"7200000", b"1"]
    spec = take(ledger)
    assert (spec.priority, spec.queue_ttl, spec.max_attempts) == (0, 7200, 1)
    client.delete(spec_key(job_id))
    assert main(["batch", "retry", "b", "--from", file, "--set", "max_attempts=2", "--set", "priority=9"]) == 0
    assert client.hmget(job_key(job_id), *DELIVERY) == [b"9", b"7200000", b"2"]
    assert capfd.readouterr().out == "1 queued\n1 queued\n"


def test_of_lines_that_differ_in_their_delivery_each_job_gets_its_own(
    client: Any, fleet: Fleet, ledger: Ledger, tmp_path: Path
) -> None:
    announce(ledger, 5)
    file = write_lines(tmp_path / "jobs.jsonl", {}, {"retry_on": ["WORKER_LOST"]}, {"retry_with": {"timeout": 60}})
    assert main(["submit", file, "--batch", "b"]) == 0
    fail_all(ledger, client, fleet)
    assert main(["batch", "retry", "b", "--from", file]) == 0
    specs = [take(ledger) for _ in range(3)]
    assert [len(spec.retry_on) for spec in specs] == [10, 1, 10]
    assert [spec.retry_with.timeout for spec in specs] == [0, 0, 60]


def test_lines_that_only_their_delivery_tells_apart_are_refused_in_a_batch_of_other_files(
    client: Any, fleet: Fleet, ledger: Ledger, tmp_path: Path, capfd: Capture
) -> None:
    file = write_lines(tmp_path / "jobs.jsonl", {}, {"retry_on": ["WORKER_LOST"]})
    for _ in range(2):
        assert main(["submit", file, "--batch", "b"]) == 0
    first, *_ = fail_all(ledger, client, fleet)
    capfd.readouterr()
    assert main(["batch", "retry", "b", "--from", file]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert f"nothing was queued: {file}: lines 1 and 2 differ only in retry_on or retry_with. Which of them" in err
    assert f"job {first} had is told only by a file with all jobs of batch b, in the order of their submit" in err


@pytest.mark.parametrize("how", [["--set", "timeout=60"], ["--resolve-images"], ["--from"]])
def test_a_job_of_a_limited_batch_is_not_for_workers_that_do_not_know_limits(
    client: Any, fleet: Fleet, ledger: Ledger, tmp_path: Path, how: list[str]
) -> None:
    announce(ledger, 5)
    file = write_lines(tmp_path / "jobs.jsonl", {})
    assert main(["submit", file, "--batch", "b", "--at-most", "1"]) == 0
    if how == ["--from"]:
        (job_id,) = fail_all(ledger, client, fleet)
        how = ["--from", file]
    else:
        (job_id,) = fleet.batch("b").iter_ids()
        take(ledger)
    assert main(["batch", "retry", "b", *how]) == 0
    assert json.loads(client.hget(job_key(job_id), "needs"))["contract"] == 5
    claim, _ = ledger.claim("next", [DEFAULT_QUEUE])
    assert claim is not None
    request = read_request(claim.message)
    assert request is not None
    assert request.contract == 5


@pytest.mark.parametrize("setting", ["whole", "redacted"])
def test_a_changed_job_shows_its_command_as_at_its_submit(
    fleet: Fleet, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str
) -> None:
    file = write_lines(tmp_path / "jobs.jsonl", {"command": ["solve", "--token=abc"]})
    with monkeypatch.context() as patch:
        patch.setenv("SANDFLEET_SHOW_COMMANDS", setting)
        assert main(["submit", file, "--batch", "b"]) == 0
    take(ledger)
    shown = {"whole": "abc", "redacted": "***"}[setting]
    assert [job.line for job in fleet.batch("b").find_jobs()] == [f"x solve --token={shown}"]
    assert main(["batch", "retry", "b", "--set", "timeout=60"]) == 0
    assert [job.line for job in fleet.batch("b").find_jobs()] == [f"x solve --token={shown}"]
    take(ledger)
    assert main(["batch", "retry", "b", "--set", 'command=["other", "--token=abc"]']) == 0
    assert [job.line for job in fleet.batch("b").find_jobs()] == [f"x other --token={shown}"]


LARGE = (
    {"files": [{"path": name, "content": name * 20480} for name in "ab"]},
    {"stdin": "i" * 900_000},
)


@pytest.mark.parametrize("line", LARGE, ids=("files", "stdin"))
def test_contents_that_a_submit_moves_to_the_store_are_moved_again(
    client: Any, fleet: Fleet, ledger: Ledger, tmp_path: Path, line: dict[str, Any]
) -> None:
    """Also if the store has dropped them meanwhile."""
    announce(ledger, 4)
    file = write_lines(tmp_path / "jobs.jsonl", line)
    assert main(["submit", file, "--batch", "b"]) == 0
    request = read_request(client.lindex(QUEUED, 0))
    assert request is not None
    names = [sha256 for sha256, *_ in list_objects(request.spec)]
    assert names
    fail_all(ledger, client, fleet)
    for name in names:
        assert client.delete(object_key(name))
    assert list(fleet._channel.objects.find_missing(names, 60)) == names
    assert main(["batch", "retry", "b", "--from", file, "--dry-run"]) == 0
    assert list(fleet._channel.objects.find_missing(names, 60)) == names, "a dry run uploads nothing"
    assert main(["batch", "retry", "b", "--from", file]) == 0
    assert list(fleet._channel.objects.find_missing(names, 60)) == []
    spec = take(ledger)
    assert [sha256 for sha256, *_ in list_objects(spec)] == names


def test_a_file_of_jobs_that_options_changed_at_the_submit_is_refused_with_the_remedy(
    client: Any, fleet: Fleet, ledger: Ledger, tmp_path: Path, capfd: Capture
) -> None:
    file = write_lines(tmp_path / "jobs.jsonl", {})
    assert main(["submit", file, "--batch", "b", "--memory", "64MiB", "-l", "suite=a"]) == 0
    fail_all(ledger, client, fleet)
    assert main(["batch", "retry", "b", "--from", file]) == 2
    assert "If options of that submit changed its jobs (--memory, --env, --label ...), write them into the lines" in (
        capfd.readouterr().err
    )
    file = write_lines(tmp_path / "jobs.jsonl", {"resources": {"memory_bytes": "64MiB"}, "labels": {"suite": "a"}})
    assert main(["batch", "retry", "b", "--from", file]) == 0
