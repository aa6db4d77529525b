"""The producer of the soak: it submits jobs whose endings are known."""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Any

import redis
from pydantic import SecretStr
from sandfleet import ErrorCode, Fleet, FleetError, SandboxSpec, Settings
from sandfleet_config.queues import KEY_PREFIX

if TYPE_CHECKING:
    from sandfleet import Job

MAX_ATTEMPTS = 3
PORTION = 20
BACKLOG = 40
ONCE_SHARE = 0.3
"""Share of jobs that may start once."""
ENDS = {
    ErrorCode.OK: (["true"], ["sleep", "0.5"], ["seq", "2000"]),
    ErrorCode.EXIT_NONZERO: (["sh", "-c", "exit 3"],),
    ErrorCode.SIGNALED: (["sh", "-c", "kill -9 $$"],),
    ErrorCode.TIMEOUT: (["sleep", "20"],),
    ErrorCode.COMMAND_NOT_FOUND: (["no-such-program"],),
}
"""Programs by the code with which they end; each code is chosen equally often."""


class Producer(threading.Thread):
    """Submit portions, each again until it is accepted, and keep the queue from running empty."""

    def __init__(self, url: str, seed: int, jobs: int) -> None:
        super().__init__(name="producer")
        self._fleet = Fleet(Settings(redis_url=SecretStr(url)))
        self._redis: Any = redis.Redis.from_url(url)
        self._random = random.Random(f"{seed} jobs")  # noqa: S311  no secret
        self._jobs = jobs
        self.must_stop = threading.Event()
        self.batches: list[str] = []
        self.expected: dict[str, ErrorCode] = {}
        self.once: set[str] = set()
        """Jobs that may start once."""
        self.retries = 0
        self.error: Exception | None = None

    def count_ended(self) -> int:
        """Count the ended jobs, also of batches whose ends an older worker has recorded."""
        return sum(self._fleet.batch(name).counts.done for name in list(self.batches))

    def run(self) -> None:
        try:
            while not self.must_stop.is_set() and len(self.expected) < self._jobs:
                if self._wait_room():
                    self._submit(f"soak-{len(self.batches)}")
        except Exception as error:  # noqa: BLE001  the edge of the thread: told at the end
            self.error = error
        finally:
            self._fleet.close()
            self._redis.close()

    def _wait_room(self) -> bool:
        try:
            if self._redis.zcard(f"{KEY_PREFIX}expiring") < BACKLOG:
                return True
        except redis.RedisError:
            pass
        self.must_stop.wait(0.1)
        return False

    def _submit(self, batch: str) -> None:
        codes = [self._random.choice(list(ENDS)) for _ in range(PORTION)]
        specs = [self._spec(code) for code in codes]
        # Whatever happens, the same portion until all of it is accepted: a stop leaves none half
        # submitted.
        jobs: list[Job] = []
        while not jobs:
            try:
                jobs = self._fleet.submit_many(specs, batch=batch, idempotent=True)
            except FleetError:
                self.retries += 1
                time.sleep(0.05)
        self.batches.append(batch)
        self.expected |= dict(zip((job.id for job in jobs), codes, strict=True))
        self.once |= {job.id for job, spec in zip(jobs, specs, strict=True) if spec.max_attempts == 1}

    def _spec(self, code: ErrorCode) -> SandboxSpec:
        limits = {"timeout": 0.3, "grace": 0.2} if code is ErrorCode.TIMEOUT else {"timeout": 60}
        command = self._random.choice(ENDS[code])
        max_attempts = 1 if self._random.random() < ONCE_SHARE else MAX_ATTEMPTS
        priority = self._random.randrange(10)
        return SandboxSpec(image="busybox", command=command, priority=priority, max_attempts=max_attempts, **limits)
