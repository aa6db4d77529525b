"""Prepared starts through the queue: what a user, an operator and Prometheus see."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import SecretStr
from sandfleet import Fleet, Settings
from sandfleet.overview.hosts import group_hosts
from sandfleet_config.prepared_settings import PreparedSettings
from sandfleet_config.settings import ImagesSettings, WorkerSettings
from sandfleet_worker.commands.prepared_checks import check_prepared
from sandfleet_worker.sandbox.image.store import ImageStore
from scrape import Scraped, free_port
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet import Outcome
    from sandfleet.channel.fleet_state import PreparedStarts
    from stage import Stage

IMPORTS = "python:web=json+email.message"
EAGER = Path(__file__).parents[1] / "support/eager.py"
LOADED = "import sys; print('email.message' in sys.modules)"


@pytest.fixture
def host(stage: Stage, images_root: Path) -> tuple[Stage, int]:
    """A worker with a preparation of its settings, and the port of its metrics."""
    ImageStore(images_root).add("python")
    port = free_port()
    settings = {"SANDFLEET_PREPARED__IMPORTS": IMPORTS, "SANDFLEET_METRICS__PORT": str(port)}
    stage.start(1, (str(EAGER), "start"), SANDFLEET_WARM__SIZE="2", **settings).wait_ready()
    return stage, port


@pytest.fixture
def fleet(host: tuple[Stage, int]) -> Iterator[Fleet]:
    with Fleet(Settings(redis_url=SecretStr(host[0].redis_url))) as fleet:
        yield fleet


def run(fleet: Fleet, code: str = LOADED, **fields: Any) -> Outcome:
    spec = {"image": "python", "command": ["python3", "-c", code], "timeout": 20, **fields}
    outcome = fleet.submit(spec).outcome(timeout=60)
    assert outcome.is_ok, outcome
    return outcome


def run_prepared(fleet: Fleet) -> Outcome:
    """Run jobs until one starts prepared: the first ones find no spare."""
    for _ in range(100):
        outcome = run(fleet, prepared="web")
        if outcome.start == "prepared":
            return outcome
        time.sleep(0.5)
    pytest.fail("no job has started prepared")


def read_starts(fleet: Fleet) -> PreparedStarts:
    return group_hosts(fleet.state.read_summary())[0].prepared


def test_a_job_that_names_a_preparation_starts_with_its_imports_done(fleet: Fleet) -> None:
    outcome = run_prepared(fleet)
    assert outcome.stdout.text == "True\n"
    assert outcome.runtime.warm
    plain = run(fleet)
    assert (plain.stdout.text, plain.start in {"cold", "warm"}) == ("False\n", True)
    never = run(fleet, prepared="off")
    assert (never.stdout.text, never.start in {"cold", "warm"}) == ("False\n", True)


def test_misses_are_told_by_their_reasons(fleet: Fleet, host: tuple[Stage, int], images_root: Path) -> None:
    run_prepared(fleet)
    before = read_starts(fleet).misses
    for fields in (
        {"prepared": "nosuch"},
        {"prepared": "web", "env": {"OMP_NUM_THREADS": "1"}},
        {"prepared": "web", "security": {"user": "1234:1234"}},
        {"prepared": "web", "security": {"read_only_rootfs": False}},
        {"prepared": "web", "command": ["python3", "-u", "-c", LOADED]},
    ):
        assert run(fleet, **fields).start in {"cold", "warm"}, fields
    wanted = ("unknown", "environment", "user", "rootfs", "command")

    def are_told() -> bool:
        now = read_starts(fleet)
        return now.starts > 0 and all(now.misses.get(name, 0) == before.get(name, 0) + 1 for name in wanted)

    wait_until(are_told, 20, "the status tells the misses")
    scraped = Scraped.read(host[1])
    assert scraped.value("sandfleet_sandbox_starts_total", start="prepared") >= 1
    assert scraped.value("sandfleet_prepared_misses_total", reason="rootfs") >= 1
    assert scraped.value("sandfleet_preparations_quarantined") == 0
    settings = WorkerSettings(
        redis_url=SecretStr(host[0].redis_url),
        images=ImagesSettings(root=images_root),
        prepared=PreparedSettings.model_validate({"imports": IMPORTS}),
    )
    listed, use = check_prepared(settings, ImageStore(images_root))
    assert listed.detail == "python:web"
    assert "jobs that asked; not the others: " in use.detail
