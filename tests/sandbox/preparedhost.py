"""A host that prepares its spares of `python`; test modules import the fixture."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from leftovers import left_behind
from sandfleet_config.prepared_settings import PreparedSettings
from sandfleet_config.settings import HostSettings, WarmSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.prepared.preparation import BARE
from sandfleet_worker.sandbox.runner import RunscRunner
from waiting import JOB_SECONDS, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_worker.sandbox.ending import Ending
    from sandfleet_worker.sandbox.prepared.preparation import Preparation
    from sandfleet_worker.sandbox.process.plan import Plan

SIZE = 2
PREPARE_SECONDS = 60.0


@pytest.fixture
def prepared_settings(host: HostSettings) -> HostSettings:
    return host.model_copy(
        update={"warm": WarmSettings(size=SIZE), "prepared": PreparedSettings(start="python", deadline_seconds=20)}
    )


@pytest.fixture
def prepared_host(prepared_settings: HostSettings) -> Iterator[RunscRunner]:
    """Return a runner that prepares the bare interpreter; at the end nothing of it may be left."""
    with RunscRunner(prepared_settings) as runner:
        yield runner
    assert not left_behind(prepared_settings), "the runner left something on the host"


def execute(runner: RunscRunner, *command: str, **fields: object) -> Ending:
    spec = SandboxSpec.model_validate({"image": "python", "command": command, "timeout": JOB_SECONDS, **fields})
    return runner.execute(admit(spec, runner.config))


def plan_of(
    runner: RunscRunner, image: str = "python", preparation: Preparation = BARE, program: str = "python3"
) -> Plan:
    found = runner.images.resolve(image)
    plan = runner._new_plan(found, runner.config.runsc.platform)
    return plan.prepared(runner._starts.find_interpreter(plan, found, preparation, program))


def wait_prepared(runner: RunscRunner, plan: Plan | None = None, count: int = 1) -> None:
    wanted = plan or plan_of(runner)
    pool = runner._provider.pool
    wait_until(lambda: pool.count_idle(wanted) >= count, PREPARE_SECONDS, f"{count} spares are prepared")


def read_version(runner: RunscRunner, image: str = "python") -> tuple[int, int]:
    """Return the version of the image's Python."""
    major, minor = execute(
        runner, "python3", "-c", "import sys; print(*sys.version_info[:2])", image=image
    ).stdout.text.split()
    return int(major), int(minor)
