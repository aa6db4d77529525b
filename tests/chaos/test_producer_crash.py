"""A producer that is killed in the middle of a batch, again and again, and then runs to its end."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
import redis
from pydantic import SecretStr
from sandfleet import Fleet, Settings
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.scripts import PRIORITY_STEPS
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

JOBS = 10_000
KILLS = 5
BATCH = "crash"
PROGRAM = f"""
from sandfleet import Fleet, SandboxSpec
specs = (SandboxSpec(image="x", command=["echo", str(n)], priority=n % 10) for n in range({JOBS}))
with Fleet() as fleet:
    print(len(fleet.submit_many(specs, batch="{BATCH}", idempotent=True)))
"""


@pytest.fixture
def client(redis_server: Any) -> Iterator[redis.Redis]:
    """A database of the test's own."""
    with redis.Redis.from_url(redis_server.url.replace("db=0", "db=2"), protocol=2) as client:
        client.flushdb()
        yield client
        client.flushdb()


def read_queue(client: redis.Redis) -> list[str]:
    """Return the ids in the queue, first come first, each list after the other."""
    found: list[str] = []
    for step in PRIORITY_STEPS:
        raw: Any = client.lrange(f"{KEY_PREFIX}sandfleet" + (f"\x06\x16{step}" if step else ""), 0, -1)
        found += [json.loads(message)["headers"]["id"] for message in reversed(raw)]
    return found


def test_a_producer_killed_at_random_moments_queues_each_job_once(redis_server: Any, client: redis.Redis) -> None:
    url = redis_server.url.replace("db=0", "db=2")
    env = os.environ | {"SANDFLEET_REDIS_URL": url}
    chance = random.Random()  # noqa: S311  any moment will do
    fleet = Fleet(Settings(redis_url=SecretStr(url)))
    queued = [0]
    for _ in range(KILLS):
        process = subprocess.Popen([sys.executable, "-c", PROGRAM], env=env, stdout=subprocess.DEVNULL)
        # At any moment of the submit itself: after the start of Python, and long before what it has
        # left to do is done, since it queues some hundred jobs between our look and its death.
        goal = chance.randrange(queued[-1], queued[-1] + (JOBS - queued[-1]) // 5)
        wait_until(lambda goal=goal: fleet._channel.read_batch(BATCH).total > goal, 60, "the producer is at work")  # type: ignore[misc]
        time.sleep(chance.uniform(0, 0.02))
        process.kill()
        assert process.wait(10) == -9
        queued.append(len(read_queue(client)))
    assert queued[-1] < JOBS, "the last kill came before the end"
    assert sorted(set(queued)) == queued, "each run came further than the one before"

    ended = subprocess.run([sys.executable, "-c", PROGRAM], env=env, capture_output=True, text=True, check=True)

    assert ended.stdout == f"{JOBS}\n"
    ids = read_queue(client)
    assert len(ids) == len(set(ids)) == JOBS
    assert set(fleet.batch(BATCH).job_ids) == set(ids)
    assert fleet.batch(BATCH).counts == (JOBS, 0)
    assert len(list(client.scan_iter(f"{KEY_PREFIX}job:*", count=5000))) == JOBS
    commands = {json.loads(record)["line"] for record in read_records(client, ids)}
    assert commands == {f"x echo {number}" for number in range(JOBS)}
    fleet.close()


def read_records(client: redis.Redis, ids: list[str]) -> list[bytes]:
    pipe: Any = client.pipeline(transaction=False)
    for job_id in ids:
        pipe.hget(f"{KEY_PREFIX}job:{job_id}", "record")
    found: list[bytes] = pipe.execute()
    return found
