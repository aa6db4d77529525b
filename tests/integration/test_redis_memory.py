"""A Redis out of memory loses no job and no outcome: output is dropped, and the outcome says so."""

from __future__ import annotations

import re
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest
import redis
from havoc import Havoc
from pydantic import SecretStr
from sandfleet import Fleet, QueueFull, SandboxSpec, Settings
from sandfleet.cli import main
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.settings import WorkerSettings
from sandfleet_worker.commands.checks import State, check_redis
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet import Job

OUTPUT_DROPPED = "its output was dropped: Redis was at its maxmemory when the job ended"
MIB = 1 << 20
KIB = 1 << 10


@pytest.fixture
def fleet(havoc: Havoc, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    monkeypatch.setenv("SANDFLEET_REDIS_URL", havoc.server.url)  # for the command, too
    with Fleet(Settings(redis_url=SecretStr(havoc.server.url), memory_high_percent=0)) as fleet:
        yield fleet


def used(havoc: Havoc) -> int:
    return int(havoc.redis.info("memory")["used_memory"])


@contextmanager
def filled(havoc: Havoc, percent: float) -> Iterator[None]:
    """Let Redis use that share of its maxmemory, and raise maxmemory at the end."""
    havoc.redis.config_set("maxmemory", int(used(havoc) * 100 / percent))
    try:
        yield
    finally:
        havoc.redis.config_set("maxmemory", 1 << 30)


def new_spec(script: str, max_bytes: str = "1MiB") -> SandboxSpec:
    command = ["sh", "-c", script]
    return SandboxSpec.model_validate({"image": "busybox", "command": command, "output": {"max_bytes": max_bytes}})


def show(job: Job, capsys: pytest.CaptureFixture[str]) -> str:
    """Return what `sandfleet show` prints of the job."""
    assert main(["show", job.id]) == 0
    return capsys.readouterr().out


def test_a_running_job_ends_at_maxmemory_with_its_outcome_but_without_large_output(
    havoc: Havoc, fleet: Fleet, capsys: pytest.CaptureFixture[str]
) -> None:
    # With a maxmemory from the start the worker polls once a second, so it has stopped before a job ends.
    havoc.redis.config_set("maxmemory", 1 << 30)
    worker, settings = havoc.start(3), WorkerSettings(redis_url=SecretStr(havoc.server.url))
    large = fleet.submit(new_spec("sleep 4; yes | head -c 600000; yes | head -c 500000 >&2; exit 3"))
    small = fleet.submit(new_spec("sleep 4; echo kept"))
    failed = fleet.submit(new_spec("sleep 4; yes | head -c 700000; kill -9 $$"))
    havoc.wait_started(large.id, small.id, failed.id)
    queued = fleet.submit(new_spec("echo later"))

    with filled(havoc, 101):
        outcome = large.outcome(30)
        assert (outcome.code, outcome.exit_code) == ("EXIT_NONZERO", 3)
        for stream, total in ((outcome.stdout, 600_000), (outcome.stderr, 500_000)):
            assert (stream.text, stream.truncated, stream.total_bytes) == ("", True, total)
        assert outcome.message == f"the program exited 3; {OUTPUT_DROPPED}"
        outcome = failed.outcome(30)
        assert (outcome.code, outcome.signal, outcome.stdout.truncated) == ("SIGNALED", 9, True)
        assert outcome.message.endswith(f"; {OUTPUT_DROPPED}")
        outcome = small.outcome(30)
        assert (outcome.code, outcome.stdout.text, outcome.message) == ("OK", "kept\n", "")
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            havoc.redis.set("more", "x")
        assert worker.log.count("action=output_dropped") == 2
        wait_until(lambda: "action=claims_stopped" in worker.log, 12, "the worker says that it claims nothing")
        time.sleep(1.5)
        assert not havoc.starts(queued.id)
        assert "of its maxmemory: workers claim nothing above 90 %" in show(queued, capsys)
        (finding,) = (item for item in check_redis(settings) if item.name == "redis memory")
        assert finding.state is State.WARNING
        assert "workers claim nothing above 90 %" in finding.detail
        assert "600000 bytes" in show(large, capsys)

    assert {item.state for item in check_redis(settings) if item.name == "redis memory"} == {State.OK}
    assert queued.outcome(30).stdout.text == "later\n"
    assert "action=claims_resumed" in worker.log
    assert worker.log.count("action=claims_stopped") == 1
    assert havoc.duplicates() == []
    for job in (large, small, failed, queued):
        havoc.assert_ended_once(job.id)


def test_workers_claim_nothing_before_maxmemory_so_that_running_jobs_keep_their_output(
    havoc: Havoc, fleet: Fleet
) -> None:
    """The outputs are larger than Redis. No job is lost, and Redis never exceeds its maxmemory."""
    maximum = used(havoc) + 48 * MIB
    havoc.redis.set("other", "x" * 30 * MIB, ex=3600)
    havoc.redis.config_set("maxmemory", maximum)
    worker = havoc.start(4)
    jobs = fleet.submit_many([new_spec("head -c 600000 /dev/zero | tr '\\0' x")] * 40)

    wait_until(lambda: "action=claims_stopped" in worker.log, 60, "the worker stops")
    wait_until(lambda: havoc.redis.keys(f"{KEY_PREFIX}claims:*") == [], 30, "what runs has ended")
    ended = [job for job in jobs if job.is_done]
    assert 10 < len(ended) < 40
    assert used(havoc) > maximum * 0.9
    assert [len(job.outcome(0).stdout.text) for job in ended] == [600_000] * len(ended), "no output is dropped"
    assert used(havoc) < maximum
    with filled(havoc, 95):
        time.sleep(1.2)
        assert sum(job.is_done for job in jobs) == len(ended), "nothing begins above the mark"

    assert {outcome.code for outcome in fleet.as_completed(jobs, timeout=60)} == {"OK"}
    assert [len(job.outcome(0).stdout.text) for job in jobs] == [600_000] * 40
    assert [havoc.starts(job.id) for job in jobs] == [1] * 40


def test_a_producer_counts_the_outcomes_of_queued_jobs(havoc: Havoc, fleet: Fleet) -> None:
    guarded = Fleet(Settings(redis_url=SecretStr(havoc.server.url)))
    havoc.redis.config_set("maxmemory", used(havoc) + 32 * MIB)
    first = guarded.submit_many([new_spec("true")] * 200)
    # So large are outcomes here; the guard looks at those that there are.
    for job in first[:100]:
        havoc.redis.set(f"{KEY_PREFIX}celery-task-meta-{job.id}", "x" * 100 * KIB, ex=3600)
        havoc.redis.zrem(f"{KEY_PREFIX}expiring", job.id)

    def is_refused() -> bool:
        time.sleep(0.1)  # the guard looks once a second: what is queued between two looks is small here
        try:
            guarded.submit_many([new_spec("true")] * 5)
        except QueueFull as error:
            said.append(str(error))
        return bool(said)

    said: list[str] = []
    wait_until(is_refused, 30, "the producer is refused")
    assert re.search(r"the outcomes of \d+ queued jobs need about .*; the limit is 80 %", said[0])
    maximum = int(havoc.redis.config_get("maxmemory")["maxmemory"])
    queued = havoc.redis.zcard(f"{KEY_PREFIX}expiring")
    assert used(havoc) < maximum * 0.6, "what Redis holds now is not the reason"
    assert used(havoc) + queued * 100 * KIB < maximum, "all of them can end"
    guarded.close()
