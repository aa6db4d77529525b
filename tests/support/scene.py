"""A fleet in which only ledgers move, for tests of the scripts without workers."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from pydantic import SecretStr
from sandfleet import Fleet, SandboxSpec, Settings
from sandfleet_config.queues import DEFAULT_QUEUE, KEY_PREFIX, job_key
from sandfleet_worker.delivery.claim import Claim
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.ledger import Ledger
from sandfleet_worker.delivery.sweeper import Sweeper

MAX_SPEC_BYTES = 1 << 18
LEASE_SECONDS = 60.0


class Scene:
    """A fleet in which only ledgers move, and time is what the test writes into Redis."""

    def __init__(self, client: Any, url: str) -> None:
        self.client, self.url = client, url
        self._claims = 0

    def submit(self, count: int = 1, **fields: Any) -> list[str]:
        spec = SandboxSpec.model_validate({"image": "x", "command": ["true"], **fields})
        with Fleet(Settings(redis_url=SecretStr(self.url))) as fleet:
            return [job.id for job in fleet.submit_many([spec] * count)]

    def worker(self, name: str, host: str = "host", boot: str = "boot-1") -> Ledger:
        ledger = Ledger(self.client, Identity(host, name, f"{host}:{name}:{name}", boot), 3600)
        ledger.register(LEASE_SECONDS)
        return ledger

    def claim(self, ledger: Ledger, **facts: object) -> Claim | None:
        """Claim the next job whose time to wait is over: all of them."""
        for job_id in self.client.zrange(f"{KEY_PREFIX}delayed", 0, -1):
            self.client.zadd(f"{KEY_PREFIX}delayed", {job_id: 1})
        self._claims += 1
        claim, _ = ledger.claim(f"claim-{self._claims}", [DEFAULT_QUEUE], facts)
        return claim

    def take(self, ledger: Ledger, count: int) -> dict[str, Claim]:
        found = [self.claim(ledger) for _ in range(count)]
        return {claim.job_id: claim for claim in found if claim is not None}

    def kill(self, dead: Ledger, successor: Ledger) -> None:
        """Let the lease of `dead` end now, and `successor` decide about its jobs."""
        now = self.now()
        self.client.zadd(f"{KEY_PREFIX}owners", {dead._identity.owner: now - 1})
        self.sweep(successor)

    def sweep(self, successor: Ledger) -> None:
        Sweeper(successor, SimpleNamespace(may_take_over=True), MAX_SPEC_BYTES, lambda _: None).sweep()  # type: ignore[arg-type]

    def now(self) -> int:
        seconds, micros = self.client.time()
        return int(seconds * 1000 + micros // 1000)

    def field(self, job_id: str, name: str) -> str:
        return (self.client.hget(job_key(job_id), name) or b"").decode()

    def attempts(self, job_id: str) -> list[dict[str, Any]]:
        text = self.field(job_id, "attempts")
        return list(json.loads(text)) if text else []

    def charged(self, job_id: str) -> list[bool]:
        return [item.get("charged", True) for item in self.attempts(job_id)]

    def is_suspect(self, job_id: str) -> bool:
        return bool(self.field(job_id, "suspect"))

    def let_started(self, job_id: str, milliseconds_ago: int) -> None:
        """Let a job have started so long ago."""
        attempts = self.attempts(job_id)
        attempts[-1]["started"] -= milliseconds_ago
        self.client.hset(job_key(job_id), "attempts", json.dumps(attempts))
