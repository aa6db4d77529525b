"""Reads the queue, the owners and the log of duplicates of a fleet from Redis."""

from __future__ import annotations

import json
from typing import Any

from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX
from sandfleet_config.scripts import PRIORITY_STEPS


def read_queue(client: Any) -> list[str]:
    keys = [f"{KEY_PREFIX}{DEFAULT_QUEUE}" + (f"\x06\x16{step}" if step else "") for step in PRIORITY_STEPS]
    waiting = [job_id.decode() for job_id in client.zrange(f"{KEY_PREFIX}delayed", 0, -1)]
    return waiting + [json.loads(message)["headers"]["id"] for key in keys for message in client.lrange(key, 0, -1)]


def read_owners(client: Any) -> set[str]:
    return {name.decode() for name in client.zrange(f"{KEY_PREFIX}owners", 0, -1)}


def read_duplicates(client: Any) -> list[tuple[str, str, str]]:
    entries = [fields for _, fields in client.xrange(f"{KEY_PREFIX}duplicates")]
    return [(fields[b"claim"].decode(), fields[b"kind"].decode(), fields[b"code"].decode()) for fields in entries]
