"""An `Intake` with all threads in the test's process, and functions of it that fail on purpose."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

from sandfleet_config.queues import DEFAULT_QUEUE
from sandfleet_config.settings import WorkerSettings
from sandfleet_worker.delivery.announcer import HostFacts
from sandfleet_worker.delivery.host_slots import HostSlots
from sandfleet_worker.delivery.identity import Identity
from sandfleet_worker.delivery.intake import Intake
from sandfleet_worker.host import connect

if TYPE_CHECKING:
    from pathlib import Path

    from sandfleet_worker.delivery.claim import Claim

LEASE_SECONDS = 1.0
FACTS = HostFacts(
    json.dumps(
        {
            "queues": [DEFAULT_QUEUE],
            "contract": 99,
            "budget": 1 << 40,
            "ceilings": {"memory_bytes": 1 << 40, "timeout": 3600, "cpu_quota": 1_000_000},
            "labels": {},
            "has_all_images": True,
        }
    ),
    ("x",),
)


class Failing:
    """Replace the function `name` of `owner`: it raises `error` so many times, then works."""

    def __init__(self, owner: Any, name: str, error: Exception, times: float) -> None:
        self._function, self._error, self._times = getattr(owner, name), error, times
        self.calls = 0
        setattr(owner, name, self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls <= self._times:
            raise self._error
        return self._function(*args, **kwargs)


class IntakeStand:
    """An `Intake` on a real Redis with all its threads.

    `left` has the exit codes with which the worker would end.
    """

    def __init__(self, url: str, folder: Path) -> None:
        self.settings = WorkerSettings.model_validate(
            {"redis_url": url, "lease_seconds": LEASE_SECONDS, "concurrency": 2, "drain_seconds": 0}
        )
        self.slots = HostSlots(folder, 2)
        self.left: list[int] = []
        self.got: list[Claim] = []
        self.cancelled: list[str] = []
        self.withdrawn: list[tuple[list[str], str]] = []
        self.is_ended = threading.Event()
        self.intake = Intake(
            self.settings,
            Identity.new("here"),
            self.slots,
            lambda seconds: connect(self.settings, seconds),
            self.left.append,
            read_facts=lambda: FACTS,
        )
        intake = self.intake
        for part in (intake.claimer, intake.lease, intake.sweeper, intake.watchdog, intake.announcer):
            assert part is not None
            part._thread._backoff._longest = 0.05

    def open(self, *, with_claims: bool = True) -> None:
        self.intake.open()
        if with_claims:
            self.start()

    def start(self) -> None:
        end_job: Any = Forward(self, "_on_cancel")
        self.intake.start(
            self.got.append,
            is_stopping=lambda: False,
            end_job=end_job,
            end_all=self.is_ended.set,
            withdraw=lambda job_ids, why: self.withdrawn.append((list(job_ids), why)),
        )
        self.intake.watchdog._ticked = float("inf")  # there is no loop of Celery's

    def _on_cancel(self, job_ids: list[str]) -> None:
        self.cancelled += job_ids

    def close(self) -> None:
        self.intake.give_up()
        self.intake.close()
        self.slots.close()


class Forward:
    """Call the method `name` of `owner`, which may be replaced meanwhile."""

    def __init__(self, owner: Any, name: str) -> None:
        self._owner, self._name = owner, name

    def __call__(self, *args: Any) -> Any:
        return getattr(self._owner, self._name)(*args)
