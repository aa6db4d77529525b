"""Live output when a worker dies, and when Redis is full or away: no job is harmed."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from havoc import Havoc
from pydantic import SecretStr
from sandfleet import Fleet, SandboxSpec, Settings
from sandfleet_config.live import MAX_ALL_LIVE_BYTES, MAX_LIVE_BYTES, live_key
from sandfleet_config.queues import KEY_PREFIX
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet import OutputChunk


def live(script: str, **fields: Any) -> SandboxSpec:
    command = ["sh", "-c", script]
    return SandboxSpec.model_validate(
        {"image": "busybox", "command": command, "timeout": 40, "output": {"live": True}, **fields}
    )


@pytest.fixture
def fleet(havoc: Havoc) -> Iterator[Fleet]:
    with Fleet(Settings(redis_url=SecretStr(havoc.server.url), memory_high_percent=0)) as fleet:
        yield fleet


def test_the_next_attempt_of_a_job_whose_worker_was_killed_begins_anew(havoc: Havoc, fleet: Fleet) -> None:
    first = havoc.start()
    job = fleet.submit(live("echo begin; sleep 3; echo end"))
    seen: list[OutputChunk] = []
    reader = threading.Thread(target=lambda: seen.extend(job.stream(timeout=50)))
    reader.start()
    wait_until(lambda: seen or havoc.redis.exists(live_key(job.id)), 20, "it prints")
    assert 0 < havoc.redis.ttl(live_key(job.id)) <= 600, "the stream does not stay for ever"
    havoc.kill(first)
    havoc.start()
    reader.join(50)

    assert [(chunk.text, chunk.offset, chunk.attempt, chunk.skipped) for chunk in seen] == [
        ("begin\n", 0, 1, 0),
        ("begin\n", 0, 2, 0),
        ("end\n", 6, 2, 0),
    ]
    assert len(job.outcome(5).attempts) == 2
    assert [(chunk.attempt, chunk.text) for chunk in job.stream()] == [(2, "begin\n"), (2, "end\n")]


def test_a_worker_that_lost_its_claim_writes_nothing_more(havoc: Havoc, fleet: Fleet) -> None:
    worker = havoc.start()
    job = fleet.submit(live("while true; do echo x; sleep 0.1; done", timeout=30))
    wait_until(lambda: havoc.redis.exists(live_key(job.id)), 20, "it prints")
    havoc.redis.hset(f"{KEY_PREFIX}job:{job.id}", "claim", "of-another-worker")
    time.sleep(0.3)
    count = havoc.redis.xlen(live_key(job.id))
    time.sleep(1)
    assert havoc.redis.xlen(live_key(job.id)) == count
    havoc.kill(worker)
    havoc.redis.delete(f"{KEY_PREFIX}job:{job.id}")


def test_a_full_redis_skips_chunks_and_harms_no_job(havoc: Havoc, fleet: Fleet) -> None:
    worker = havoc.start()
    job = fleet.submit(
        live("echo before; sleep 1; for i in 1 2 3 4 5; do echo $i; sleep 0.4; done; sleep 2; echo after")
    )
    wait_until(lambda: havoc.redis.exists(live_key(job.id)), 20, "it prints")
    with havoc.no_memory():
        time.sleep(3)
    chunks = list(job.stream(timeout=30))
    assert (chunks[0].text, chunks[-1].text) == ("before\n", "after\n")
    assert sum(chunk.skipped for chunk in chunks) > 0
    assert "action=live_output_skipped" in worker.log
    assert "before" not in worker.log
    outcome = job.outcome(5)
    assert (outcome.code, outcome.stdout.text) == ("OK", "before\n1\n2\n3\n4\n5\nafter\n")


def test_a_redis_that_is_away_skips_chunks_and_harms_no_job(havoc: Havoc, fleet: Fleet) -> None:
    havoc.start()
    job = fleet.submit(live("echo before; for i in 1 2 3 4 5 6 7 8; do sleep 0.5; echo $i; done; sleep 1; echo after"))
    wait_until(lambda: havoc.redis.exists(live_key(job.id)), 20, "it prints")
    havoc.stop_redis_for(1.0)
    assert job.outcome(30).stdout.text == "before\n1\n2\n3\n4\n5\n6\n7\n8\nafter\n"
    chunks = list(job.stream(timeout=30))
    assert (chunks[0].text, chunks[-1].text) == ("before\n", "after\n")
    assert len(job.outcome(0).attempts) == 1


def test_the_streams_of_all_jobs_are_bounded_together(havoc: Havoc, fleet: Fleet) -> None:
    """Streams of ended jobs go first. What their keys count is what Redis has."""
    havoc.start(4)
    sizes, expiring = f"{KEY_PREFIX}live_streams:bytes", f"{KEY_PREFIX}live_streams:expiring"
    havoc.redis.xadd(live_key("older"), {"data": b"x" * 1000}, id="1-1")
    havoc.redis.hset(
        sizes, mapping={"older": MAX_ALL_LIVE_BYTES - MAX_LIVE_BYTES // 2, "": MAX_ALL_LIVE_BYTES - MAX_LIVE_BYTES // 2}
    )
    havoc.redis.zadd(expiring, {"older": (time.time() + 60) * 1000})
    for key in (sizes, expiring, live_key("older")):
        havoc.redis.expire(key, 60)
    jobs = fleet.submit_many([live("timeout 3 yes; true", output={"live": True, "max_bytes": 1000})] * 4)
    assert {outcome.code for outcome in fleet.as_completed(jobs, timeout=40)} == {"OK"}
    assert not havoc.redis.exists(live_key("older"))
    found = {name.decode(): int(value) for name, value in havoc.redis.hgetall(sizes).items()}
    assert found.keys() == {"", *(job.id for job in jobs)}
    assert found[""] == sum(value for name, value in found.items() if name)
    assert havoc.redis.zcard(expiring) == 4
