"""Programs of the conformance suite end the same in real sandboxes, cold and prepared, as far as a job can have them."""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from comparing import Ending, differences
from leftovers import left_behind
from plain_runs import Run
from preparedhost import plan_of, read_version, wait_prepared
from programs import Case, read_cases
from pythons import IS_WHOLE
from sandfleet_config.prepared_settings import PreparedSettings
from sandfleet_config.settings import HostSettings, WarmSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.prepared.preparation import BARE, Preparation
from sandfleet_worker.sandbox.process.artifacts import ArtifactPattern, ArtifactRequest, CollectLimits
from sandfleet_worker.sandbox.process.packed_job import Transfer
from sandfleet_worker.sandbox.runner import RunscRunner
from transferring import Sink, new_file

if TYPE_CHECKING:
    from collections.abc import Iterator

SAMPLE = 40
"""Without TEST_CONFORMANCE=all, one case of so many runs."""
PLACES = 4
"""One for plain spares, one for the bare interpreter, one for the modules of a case."""
UNFIT = ("PYTHON", "LC_", "LANG", "TZ")


def can_be_prepared(case: Case, version: tuple[int, int]) -> bool:
    """Tell whether it is for this Python, imports only what the image has ahead, has no program to set it up, and fits."""
    is_for_this = case.since <= version < case.before and not case.setup
    is_of_image = not any(f"{module}.py" in case.files for module in case.modules)
    return is_for_this and is_of_image and not any(name.startswith(UNFIT) for name in case.env)


def list_preparations() -> dict[tuple[str, ...], Preparation]:
    """Return the preparation for each list of modules that a case wants; without any it is the bare one."""
    wanted = sorted({case.modules for case in read_cases()} - {()})
    return {(): BARE} | {modules: Preparation(f"p{number}", modules) for number, modules in enumerate(wanted)}


@pytest.fixture
def conforming_host(prepared_settings: HostSettings) -> Iterator[RunscRunner]:
    """Return a runner that prepares the bare interpreter, and the modules of each case by name."""
    listed = [one for one in list_preparations().values() if one != BARE]
    imports = tuple(f"python:{one.name}={'+'.join(one.modules)}" for one in listed)
    prepared = PreparedSettings(start="python", imports=imports, deadline_seconds=60)
    warm = WarmSettings(size=PLACES)
    with RunscRunner(prepared_settings.model_copy(update={"warm": warm, "prepared": prepared})) as runner:
        yield runner
    assert not left_behind(runner.config), "the runner left something on the host"


def run_prepared(runner: RunscRunner, case: Case) -> tuple[Ending, str]:
    """Run the case in a spare that is up; with modules, its plan is forgotten then, to leave its place to others."""
    preparation = list_preparations()[case.modules]
    plan, pool = plan_of(runner, preparation=preparation), runner._provider.pool
    pool.pin(plan)
    wait_prepared(runner, plan)
    try:
        return run(runner, case, preparation.name or None)
    finally:
        if preparation != BARE:
            pool.forget(plan)


def run(runner: RunscRunner, case: Case, prepared: str | None) -> tuple[Ending, str]:
    spec = SandboxSpec.model_validate(
        {
            "image": "python",
            "command": case.argv,
            "env": case.env,
            "stdin": case.stdin.decode(),
            "working_dir": "/work",
            "timeout": 60,
            "output": {"max_bytes": 1 << 20},
            "prepared": prepared,
        }
    )
    sink = Sink()
    files = [new_file(f"/work/{name}", text.encode()) for name, text in case.files.items()]
    request = ArtifactRequest([ArtifactPattern("/work/**")], sink, CollectLimits())
    ended = runner.execute(admit(spec, runner.config), transfer=Transfer(files, request))
    verdict = ended.verdict
    assert verdict.exit_code is not None or verdict.signal is not None, verdict
    code = -verdict.signal if verdict.signal is not None else verdict.exit_code
    assert code is not None
    streams = (stream.text.encode() for stream in (ended.stdout, ended.stderr))
    written = {name: data for name, data in sink.files.items() if "__pycache__" not in name}
    return Ending(Run(code, *streams), written), ended.start


def test_mounts_are_a_known_difference(conforming_host: RunscRunner) -> None:
    """Else it has to leave the list. Plain processes show no mounts of init."""
    (case,) = (case for case in read_cases() if "mounts" in case.masks)
    cold, _ = run(conforming_host, case, "off")
    prepared, start = run_prepared(conforming_host, case)
    assert start == "prepared"
    assert differences(case, cold, prepared) == []
    assert differences(replace(case, masks=()), cold, prepared)


@pytest.mark.timeout(7200)
def test_programs_end_the_same_in_sandboxes(conforming_host: RunscRunner) -> None:
    found, starts = [], []
    version = read_version(conforming_host)
    chosen = [case for case in read_cases() if can_be_prepared(case, version)]
    if not IS_WHOLE:
        chosen = [case for case in chosen if zlib.crc32(case.name.encode()) % SAMPLE == 0]
    assert {bool(case.modules) for case in chosen} == {True, False}
    for case in chosen:
        cold, _ = run(conforming_host, case, "off")
        prepared, start = run_prepared(conforming_host, case)
        starts.append(start)
        found += differences(case, cold, prepared)
    assert found == []
    assert set(starts) == {"prepared"}
