"""Redis without a worker: what a producer leaves there."""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr
from sandfleet import Fleet, SandboxSpec, Settings
from sandfleet_config.queues import job_key

if TYPE_CHECKING:
    from collections.abc import Iterator

    import redis

SPEC = SandboxSpec.model_validate(
    {
        "image": "x",
        "command": ["sh", "-c", "true"],
        "env": ["KEY=s3cret-env"],
        "stdin": "s3cret-stdin",
        "labels": {"name": "n"},
        "timeout": 1.5,
        "grace": 0.25,
    }
)
LIST = "sandfleet:sandfleet\x06\x166"
"""The queue's list of priority 6, the default."""


@contextmanager
def open_bare_fleet(server: Any) -> Iterator[Fleet]:
    """Return a fleet without workers; its jobs are deleted afterwards."""
    with Fleet(Settings(redis_url=SecretStr(server.url))) as fleet:
        yield fleet
    forget_jobs(server.client)


def forget_jobs(client: redis.Redis) -> None:
    """Delete all jobs: without a worker they would wait for ever."""
    for key in [key for key in client.scan_iter("sandfleet:*") if b"_kombu" not in key]:
        client.delete(key)


def read_message(client: redis.Redis, key: str = LIST) -> dict[str, Any]:
    """Take the oldest message of the queue."""
    raw: Any = client.rpop(key)
    found: dict[str, Any] = json.loads(raw)
    return found


def hget(client: redis.Redis, job_id: str, field: str) -> bytes:
    """Return a field of a job's record."""
    found: Any = client.hget(job_key(job_id), field)
    assert isinstance(found, bytes)
    return found
