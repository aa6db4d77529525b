"""A host with spares, for the tests of them; conftest.py offers the fixtures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from leftovers import left_behind
from sandfleet_config.settings import HostSettings, WarmSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.process.sandbox import Sandbox
from sandfleet_worker.sandbox.process.sentry import find_sentry
from sandfleet_worker.sandbox.runner import RunscRunner
from waiting import JOB_SECONDS, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_worker.sandbox.ending import Ending
    from sandfleet_worker.sandbox.process.plan import Plan

SIZE = 2
BOOT_SECONDS = 60.0


@pytest.fixture
def warm_host(host: HostSettings) -> HostSettings:
    return host.model_copy(update={"warm": WarmSettings(size=SIZE)})


@pytest.fixture
def warm(warm_host: HostSettings) -> Iterator[RunscRunner]:
    """Return a runner with `SIZE` spares; at the end nothing of it may be left."""
    with RunscRunner(warm_host) as runner:
        yield runner
    assert not left_behind(warm_host), "the runner left something on the host"


def plan_of(runner: RunscRunner, image: str = "busybox") -> Plan:
    return runner._new_plan(runner.images.resolve(image), runner.config.runsc.platform)


def execute(runner: RunscRunner, *command: str, **fields: object) -> Ending:
    spec = SandboxSpec.model_validate({"image": "busybox", "command": command, "timeout": JOB_SECONDS, **fields})
    return runner.execute(admit(spec, runner.config))


def wait_idle(runner: RunscRunner, count: int = SIZE, image: str = "busybox") -> None:
    plan = plan_of(runner, image)
    wait_until(
        lambda: runner._provider.pool.count_idle(plan) >= count, BOOT_SECONDS, f"{count} sandboxes of {image} are up"
    )


def idle(runner: RunscRunner, image: str = "busybox") -> list[Sandbox]:
    return [sandbox for sandbox in runner._provider.pool._spares.by_plan[plan_of(runner, image)] if sandbox.is_warm]


def sentry_of(sandbox: Sandbox) -> int:
    pid = find_sentry(sandbox.paths)
    assert pid is not None
    return pid
