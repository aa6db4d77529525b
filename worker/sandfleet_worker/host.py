"""One worker process: settings, sandbox runner, slots and Redis connections of its jobs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from sandfleet_config.redis_client import new_client

from sandfleet_worker.delivery.direct_redis import DirectRedis
from sandfleet_worker.delivery.host_slots import HostSlots
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.intake import TIMEOUT_SECONDS, Intake
from sandfleet_worker.delivery.live_sender import LiveSender
from sandfleet_worker.files.host_files import HostFiles
from sandfleet_worker.host_facts import Contents, HostAbilities
from sandfleet_worker.host_status import HostStatus, Measurable
from sandfleet_worker.metrics.counts import JobCounts
from sandfleet_worker.traces import JobTraces

if TYPE_CHECKING:
    from sandfleet_config.settings import WorkerSettings

    from sandfleet_worker.sandbox.ending import Ending
    from sandfleet_worker.sandbox.memory_budget import MemoryBudget
    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.process.cancellation import Cancellation
    from sandfleet_worker.sandbox.process.packed_job import TransferSource
    from sandfleet_worker.sandbox.start_hooks import StartHooks
    from sandfleet_worker.shared_images import FleetImages

CONNECT_SECONDS = 5.0
LIVE_TIMEOUT_SECONDS = 2.0
"""Timeout of a call with live output, which is skipped after that."""


class Runner(Contents, Measurable, Protocol):
    """Runs one admitted job in a fresh sandbox: `sandfleet_worker.sandbox.runner.RunscRunner`."""

    memory: MemoryBudget

    def limit_spares(self, lacking_bytes: int) -> MemoryBudget:
        """Keep fewer spares, so that jobs have `lacking_bytes` more.

        Return the memory budget then.
        """
        ...

    def execute(
        self, limits: Admitted, *, cancel: Cancellation | None = None, hooks: StartHooks, transfer: TransferSource
    ) -> Ending:
        """Run the job to its end; `hooks` are called when it waits and when it starts.

        `transfer` are its files; a function is called for them once the job's image is there.

        Raises:
            SandboxError: something failed before the program started.
        """
        ...

    @property
    def boot_failures(self) -> int:
        """How many spares have failed to boot."""
        ...

    def drain(self) -> None:
        """Boot no more spares: no more jobs will come."""
        ...


@dataclass(frozen=True)
class Host:
    """One worker process on its host."""

    settings: WorkerSettings
    runner: Runner
    slots: HostSlots
    identity: Identity
    intake: Intake
    abilities: HostAbilities
    files: HostFiles
    live: LiveSender
    counts: JobCounts | None = None
    """The counters of the worker's metrics; None without metrics."""
    traces: JobTraces | None = None
    """Sends the spans of jobs; None without traces."""

    @classmethod
    def open(cls, settings: WorkerSettings, runner: Runner, shared: FleetImages | None = None) -> Self:
        """Join the host's slots and begin this worker's lease.

        `shared` are the images that it may take.

        Raises:
            redis.RedisError: Redis is not there.
            SettingsInvalid: the store or the traces of the settings cannot be used here.
        """
        traces = JobTraces(settings.traces.endpoint, settings.host_name) if settings.traces.endpoint else None
        identity = Identity.new(settings.host_name)
        memory = runner.memory
        slots = HostSlots(settings.slots_dir, settings.concurrency, memory.total_bytes, memory.own_bytes)
        _fit_spares(settings, runner, slots)
        abilities = HostAbilities(settings, runner, slots, shared.list_takeable if shared else frozenset)
        counts = JobCounts() if settings.metrics.port else None
        intake = Intake(
            settings,
            identity,
            slots,
            lambda seconds: connect(settings, seconds),
            read_facts=abilities.read,
            counts=counts,
            measure=HostStatus(settings, runner, slots, abilities.labels).measure,
        )
        try:
            files = HostFiles(settings, connect(settings), intake.pause)
            intake.open()
        except BaseException:
            slots.close()
            raise
        live = LiveSender(connect(settings, LIVE_TIMEOUT_SECONDS), identity.owner, intake.exit.drain)
        return cls(settings, runner, slots, identity, intake, abilities, files, live, counts, traces)

    def close(self) -> None:
        """End the lease and leave the host's slots."""
        self.intake.close()
        self.live.stop()
        self.files.close()
        self.slots.close()
        if self.traces:
            self.traces.close()

    @property
    def name(self) -> str:
        """The host's name."""
        return self.identity.host

    @property
    def worker(self) -> str:
        """The worker's name for people."""
        return self.identity.worker


def _fit_spares(settings: WorkerSettings, runner: Runner, slots: HostSlots) -> None:
    """Keep fewer spares where one job of the memory ceiling's size would not fit beside them."""
    memory = slots.read_memory()
    if memory is not None and memory.budget < settings.policy.memory_bytes:
        slots.take_less(runner.limit_spares(settings.policy.memory_bytes - memory.budget).own_bytes)
        slots.read_memory()


def connect(settings: WorkerSettings, timeout_seconds: float = TIMEOUT_SECONDS) -> redis.Redis:
    """Return a client for the fleet's Redis with this timeout; it connects when first used.

    It does not retry: only the caller knows what a lost answer means.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": min(CONNECT_SECONDS, timeout_seconds),
        "health_check_interval": 10,
    }
    client: redis.Redis = new_client(settings, DirectRedis, retry=Retry(NoBackoff(), 0), **options)
    return client
