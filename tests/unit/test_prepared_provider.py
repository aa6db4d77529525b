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
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import HostResources
from sandfleet_config.settings import HostSettings
from sandfleet_worker.sandbox.cgroup.cgroup import SandboxCgroup
from sandfleet_worker.sandbox.cgroup.counters import Counts
from sandfleet_worker.sandbox.cgroup.tree import CgroupTree
from sandfleet_worker.sandbox.memory_budget import MemoryBudget
from sandfleet_worker.sandbox.prepared.use import Miss, PreparedUse
from sandfleet_worker.sandbox.prepared_starts import PreparedStarts
from sandfleet_worker.sandbox.process.cancellation import Cancellation
from sandfleet_worker.sandbox.process.deadlines import Deadline, new_kill
from sandfleet_worker.sandbox.process.facts import Facts, Kill
from sandfleet_worker.sandbox.process.init_reports import (
    ChdirFailed,
    Exited,
    FileFailed,
    MountFailed,
    PreparationFailed,
)
from sandfleet_worker.sandbox.process.measurement import Measurement
from sandfleet_worker.sandbox.process.prepared_state import bound_preparation
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
class FakeSandbox:
    """Runs a job: calls its hook, and returns what was measured."""

    measured: Any
    calls: list[str] = field(default_factory=list)
    supervision: Any = field(default_factory=SimpleNamespace)

    def assign(self, _limits: Any) -> None:
        self.calls.append("assign")

    def boot(self, _plan: Any) -> None:
        self.calls.append("boot")
        self.supervision.on_booted()

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


def new_provider(folder: Path, *enforceable: str) -> SandboxProvider:
    config = HostSettings.model_validate(
        {"images": {"root": folder}, "warm": {"size": 0}, "prepared": {"imports": ("python:sci=numpy",)}}
    )
    tree: Any = SimpleNamespace(enforceable=frozenset(enforceable))
    limit, memory = BootLimit(1), MemoryBudget(0, 0, 0, "")
    return SandboxProvider(config, tree, folder, limit, memory=memory, starts=Starts(config), on_failure=print)


@pytest.fixture
def provider(tmp_path: Path) -> Iterator[SandboxProvider]:
    made = new_provider(tmp_path, "cpu", "memory", "pids")
    yield made
    made.close()


def run(provider: SandboxProvider, hooks: Hooks, first: FakeSandbox, second: FakeSandbox, files: Any = ()) -> Any:
    """Run a job for which the pool has `first`, and `second` boots."""
    spares: dict[bool, Any] = {True: first}
    pool: Any = provider.pool
    pool.asked = []

    def take(plan: Any, *, is_asked_for: bool = True) -> Any:
        pool.asked += [plan] if is_asked_for else []
        return spares.pop(plan.interpreter is not None, None)

    pool.take = take
    pool.take_unbooted = lambda: second
    job: Any = SimpleNamespace(init=None, transfer=SimpleNamespace(files=files))
    limits: Any = FakeLimits()
    request = SandboxRequest(job, limits, Cancellation(), None, OneStart(hooks), lambda _: True)
    image: Any = None
    plain: Any = type("Plan", (), {"interpreter": None})
    return provider.run(request, plain, image)


def new_measured(*, is_prepared: bool = True, **facts: Any) -> Any:
    measured: Any = SimpleNamespace(facts=Facts(**facts), run_seconds=None, is_prepared=is_prepared)
    measured.is_lost = Measurement.is_lost.fget(measured)  # type: ignore[attr-defined]
    return measured


STARTED: Any = new_measured(is_prepared=False, is_started=True, end=Exited(0, disk_full=False))
NO_FILE, NO_CWD = (
    FileFailed(28, 0),
    PreparationFailed("the working folder cannot be entered: No such file or directory"),
)


def test_a_job_that_was_told_as_started_is_never_told_to_wait(provider: SandboxProvider) -> None:
    hooks, second = Hooks(), FakeSandbox(STARTED)
    slot = provider._boot_limit.acquire(Cancellation())
    timer = threading.Timer(3 * SHORT_WAIT_SECONDS, slot.release)
    timer.start()

    begun = time.monotonic()
    assert run(provider, hooks, FakeSandbox(new_measured()), second) is second.measured
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


@pytest.mark.parametrize("end", [NO_FILE, NO_CWD])
@pytest.mark.parametrize("starts_elsewhere", [False, True])
def test_a_job_that_starts_nowhere_holds_no_preparation(
    provider: SandboxProvider,
    end: Any,
    starts_elsewhere: bool,  # noqa: FBT001  a parameter of the test
) -> None:
    nowhere = new_measured(is_prepared=False, end=ChdirFailed(2))
    for _ in range(3):
        second = FakeSandbox(STARTED if starts_elsewhere else nowhere)
        assert run(provider, Hooks(), FakeSandbox(new_measured(end=end)), second) is second.measured
    assert provider.starts.quarantine.holds(PLAN) is starts_elsewhere
    assert provider.starts.read().misses == {Miss.LOST: 3}


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({}, "it died before it was the job"),
        ({"counts": Counts(oom_kills=1, own_ooms=1), "memory_bytes": 64 * MIB}, "it ran out of 64 MiB of memory"),
        ({"end": MountFailed(12, 1)}, "init could not hand the job over: MountFailed"),
        ({"end": PreparationFailed("exited 5")}, "exited 5"),
        ({"kill": Kill(ErrorCode.SANDBOX_CREATION_FAILED, "did not start within 10 s")}, "did not start within 10 s"),
    ],
)
def test_a_lost_interpreter_is_logged_with_the_reason_and_held(
    provider: SandboxProvider, caplog: pytest.LogCaptureFixture, facts: dict[str, Any], why: str
) -> None:
    for _ in range(3):
        run(provider, Hooks(), FakeSandbox(new_measured(**facts)), FakeSandbox(STARTED))
    assert why in provider.starts.read().quarantined["python:sci"]
    lost = [record.getMessage() for record in caplog.records if record.__dict__["action"] == "prepared_spare_lost"]
    assert len(lost) == 3
    assert why in lost[0]


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ({"counts": Counts(oom_kills=1), "memory_bytes": 64 * MIB}, "the host, or a cgroup above the sandbox's"),
        ({"kill": new_kill(Deadline.FILES, "systrap", 30.0, None)}, "the job's files were not in the sandbox"),
    ],
    ids=["memory", "files"],
)
def test_what_the_host_or_the_store_has_done_holds_no_preparation(
    provider: SandboxProvider, caplog: pytest.LogCaptureFixture, facts: dict[str, Any], why: str
) -> None:
    for _ in range(4):
        assert run(provider, Hooks(), FakeSandbox(new_measured(**facts)), FakeSandbox(STARTED)) is STARTED
    assert not provider.starts.quarantine.holds(PLAN)
    assert provider.starts.read().misses == {Miss.LOST: 4}
    assert why in caplog.text


def test_a_spare_that_cannot_be_limited_for_the_job_is_lost(provider: SandboxProvider) -> None:
    class Large(FakeSandbox):
        def assign(self, _limits: Any) -> None:
            raise HostResources.of("this host cannot enforce the limits memory")

    first, second, hooks = Large(STARTED), FakeSandbox(STARTED), Hooks()
    assert run(provider, hooks, first, second) is STARTED
    assert (first.calls, second.calls, hooks.told) == (["destroy"], ["assign", "boot"], ["starts"])
    assert provider.starts.read().misses == {Miss.LOST: 1}


def test_a_job_that_is_cancelled_before_its_start_has_not_started_prepared(provider: SandboxProvider) -> None:
    cancelled = new_measured(kill=Kill(ErrorCode.CANCELLED, "cancelled"))
    assert run(provider, Hooks(), FakeSandbox(cancelled), FakeSandbox(STARTED)) is cancelled
    assert provider.starts.read().starts == 0
    assert run(provider, Hooks(), FakeSandbox(new_measured(is_started=True)), FakeSandbox(STARTED)).facts.is_started
    assert provider.starts.read().starts == 1


def test_the_files_of_a_job_count_beside_what_is_prepared(provider: SandboxProvider) -> None:
    provider._memory.note(PLAN, 64 * MIB, 64 * MIB)
    files = [SimpleNamespace(size=160 * MIB)]
    run(provider, Hooks(), FakeSandbox(STARTED), FakeSandbox(STARTED), files[:1])
    assert provider.starts.read().starts == 1
    files.append(SimpleNamespace(size=1))
    run(provider, Hooks(), FakeSandbox(STARTED), FakeSandbox(STARTED), files)
    assert provider.starts.read().misses == {Miss.MEMORY: 1}


def test_a_job_too_small_for_what_is_prepared_asks_for_plain_spares(provider: Any) -> None:
    run(provider, Hooks(), FakeSandbox(STARTED), FakeSandbox(STARTED))
    assert provider.pool.asked == [PLAN]
    provider._memory.note(PLAN, 240 * MIB, 240 * MIB)
    run(provider, Hooks(), FakeSandbox(STARTED), FakeSandbox(STARTED))
    assert [plan.interpreter for plan in provider.pool.asked] == [None]


@pytest.mark.parametrize("enforceable", [("cpu", "pids"), ("memory", "pids"), ()])
def test_a_host_that_cannot_bound_a_preparation_asks_for_no_such_spare(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, enforceable: tuple[str, ...]
) -> None:
    """Each try would fail, and the pause after it would keep all other spares from booting."""
    provider: Any = new_provider(tmp_path, *enforceable)
    asked: list[Any] = []
    provider.pool.pin = asked.append
    provider.starts.list_plans = lambda *_: [PLAN]
    provider.pin("plain", None)  # the image is not looked at

    assert run(provider, Hooks(), FakeSandbox(STARTED), FakeSandbox(STARTED)) is STARTED
    assert asked == ["plain"]
    assert provider.starts.read() == PreparedUse(0, {Miss.HOST: 1}, {})
    assert "cannot limit the CPU and memory of a preparation" in caplog.text
    provider.close()


@pytest.mark.parametrize(
    ("enforceable", "is_bounded"), [({"cpu", "memory"}, True), ({"cpu"}, False), ({"memory"}, False)]
)
def test_no_preparation_runs_without_both_bounds(
    tmp_path: Path,
    enforceable: set[str],
    is_bounded: bool,  # noqa: FBT001  a parameter of the test
) -> None:
    parents = dict.fromkeys(enforceable, tmp_path)
    cgroup = SandboxCgroup(CgroupTree(2, parents), "one")
    cgroup.make()
    for name in ("memory.max", "memory.swap.max", "memory.oom.group", "cpu.max"):
        (tmp_path / "one" / name).touch()
    with contextlib.nullcontext() if is_bounded else pytest.raises(HostResources, match="writable cgroup for both"):
        bound_preparation(cgroup, 48 * MIB)
