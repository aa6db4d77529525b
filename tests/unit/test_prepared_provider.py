"""Jobs whose prepared sandbox is lost: they get another one, and nobody is told otherwise."""

from __future__ import annotations

import contextlib
import threading
import time
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from prepared_plan import PLAN
from sandfleet_config.settings import HostSettings
from sandfleet_worker.sandbox.memory_budget import MemoryBudget
from sandfleet_worker.sandbox.prepared_starts import PreparedStarts
from sandfleet_worker.sandbox.process.cancellation import Cancellation
from sandfleet_worker.sandbox.provider import SandboxProvider, SandboxRequest
from sandfleet_worker.sandbox.start_hooks import OneStart
from sandfleet_worker.sandbox.warm.boot_limit import SHORT_WAIT_SECONDS, BootLimit

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MIB = 1 << 20


@dataclass
class FakeLimits:
    memory_bytes: int = 256 * MIB


@dataclass
class FakeMeasurement:
    is_lost: bool = False


@dataclass
class FakeSandbox:
    """Runs a job: calls its hook, and returns what was measured."""

    measured: Any
    calls: list[str] = field(default_factory=list)
    supervision: Any = field(default_factory=SimpleNamespace)

    def assign(self, _limits: Any) -> None:
        self.calls.append("assign")

    def boot(self, _plan: Any) -> None:
        self.calls.append("boot")

    def destroy(self) -> None:
        self.calls.append("destroy")

    def run(self, _job: Any, _limits: Any, _cancel: Any, _deadline: Any, allow_start: Any, **_: Any) -> Any:
        allow_start()
        return self.measured


class Hooks:
    def __init__(self) -> None:
        self.told: list[str] = []

    @contextlib.contextmanager
    def waiting(self, why: str, *, is_remote: bool = False) -> Iterator[None]:
        self.told.append(f"waits for {why}{is_remote or ''}")
        yield

    def start(self) -> None:
        self.told.append("starts")

    def find_digest(self, name: str) -> str:
        return f"digest of {name}"

    def pin_digest(self, name: str, digest: str) -> str:
        return f"{name} is {digest}"


class Starts(PreparedStarts):
    def choose(self, *_: Any) -> Any:
        return PLAN


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[SandboxProvider]:
    config = HostSettings.model_validate({"images": {"root": tmp_path}, "warm": {"size": 0}})
    tree: Any = None
    limit, memory = BootLimit(1), MemoryBudget(0, 0, 0, "")
    made = SandboxProvider(config, tree, tmp_path, limit, memory=memory, starts=Starts(config), on_failure=print)
    yield made
    made.close()


def run(provider: SandboxProvider, hooks: Hooks, first: FakeSandbox, second: FakeSandbox) -> Any:
    """Run a job for which the pool has `first`, and `second` boots."""
    spares: dict[bool, Any] = {True: first}
    pool: Any = provider.pool
    pool.take = lambda plan, **_: spares.pop(plan.interpreter is not None, None)
    pool.take_unbooted = lambda: second
    job: Any = type("Job", (), {"init": None})
    limits: Any = FakeLimits()
    request = SandboxRequest(job, limits, Cancellation(), None, OneStart(hooks), lambda _: True)
    image: Any = None
    plain: Any = type("Plan", (), {"interpreter": None})
    return provider.run(request, plain, image)


def new_lost() -> Any:
    facts = type("Facts", (), {"kill": None, "end": None, "is_started": False})
    measured: Any = FakeMeasurement(is_lost=True)
    measured.facts = facts
    return measured


def test_a_job_that_was_told_as_started_is_never_told_to_wait(provider: SandboxProvider) -> None:
    hooks, second = Hooks(), FakeSandbox(FakeMeasurement())
    slot = provider._boot_limit.acquire(Cancellation())
    timer = threading.Timer(3 * SHORT_WAIT_SECONDS, slot.release)
    timer.start()

    begun = time.monotonic()
    assert run(provider, hooks, FakeSandbox(new_lost()), second) is second.measured
    assert time.monotonic() - begun > SHORT_WAIT_SECONDS, "it had to wait for its second sandbox"
    assert hooks.told == ["starts"]
    timer.join()


def test_a_wait_before_the_start_is_told_and_a_refused_start_is_not_asked_for_again() -> None:
    hooks = Hooks()
    once = OneStart(hooks)
    with once.waiting("an image", is_remote=True):
        once.start()
    with once.waiting("its turn to boot"):
        once.start()
    assert hooks.told == ["waits for an imageTrue", "starts"]
    assert (once.find_digest("x"), once.pin_digest("x", "y")) == ("digest of x", "x is y")
