"""What the jobs of one worker process share: settings, the runner of sandboxes, the host's slots and Redis."""

from __future__ import annotations

import contextlib
import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import redis
from sandfleet_config.queues import CANCEL_TTL_SECONDS, cancel_key

from sandfleet_worker.delivery.slots import HostSlots

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sandfleet_config.settings import WorkerSettings

    from sandfleet_worker.delivery.slots import Slot
    from sandfleet_worker.policy import Admitted
    from sandfleet_worker.sandbox.cancellation import Cancellation
    from sandfleet_worker.sandbox.ending import Ending


class Runner(Protocol):
    """Runs one admitted job in a fresh sandbox: `sandfleet_worker.sandbox.runner.RunscRunner`."""

    def execute(self, limits: Admitted, *, cancel: Cancellation | None = None) -> Ending:
        """Run the job to its end; raises `SandboxError` for what failed before the program started."""
        ...


@dataclass(frozen=True)
class Host:
    """One worker process on its host."""

    settings: WorkerSettings
    runner: Runner
    slots: HostSlots
    redis: redis.Redis
    name: str
    worker: str

    @classmethod
    def open(cls, settings: WorkerSettings, runner: Runner) -> Self:
        """Join the host's slots and prepare the connection; Redis is not asked yet."""
        name = socket.gethostname()
        return cls(
            settings=settings,
            runner=runner,
            slots=HostSlots(settings.slots_dir, settings.concurrency),
            redis=connect(settings),
            name=name,
            worker=f"{name}.{os.getpid()}",
        )

    def close(self) -> None:
        """Leave the host's slots and drop the connection."""
        self.slots.close()
        self.redis.close()

    @contextlib.contextmanager
    def slot(self, cancellation: Cancellation) -> Iterator[Slot]:
        """Wait for one of the host's slots and hold it.

        Raises:
            SandboxError: the job was ended while it waited.
        """
        try:
            slot = self.slots.acquire(cancellation.open_fd())
        finally:
            cancellation.close_fd()
        if slot is None:
            cancellation.raise_if_set()
            msg = "the wait for a slot ended without one"
            raise RuntimeError(msg)
        with slot:
            yield slot

    def is_cancelled(self, job_id: str) -> bool:
        """Whether somebody cancelled the job before its start; the mark outlives workers."""
        return bool(self.redis.exists(cancel_key(job_id)))

    def mark_cancelled(self, job_ids: Iterable[str]) -> None:
        """Cancel jobs that no worker has started yet, wherever they are queued."""
        with self.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.set(cancel_key(job_id), "revoke", ex=CANCEL_TTL_SECONDS, nx=True)
            pipe.execute()


def connect(settings: WorkerSettings) -> redis.Redis:
    """Return a client for the fleet's Redis with time limits; it connects when first used."""
    options: dict[str, Any] = {"socket_timeout": 15, "socket_connect_timeout": 5, "health_check_interval": 10}
    return redis.Redis.from_url(settings.redis_dsn, **options)
