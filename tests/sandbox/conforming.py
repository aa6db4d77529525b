"""Run programs of the conformance suite in real sandboxes, cold and prepared."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from comparing import Ending, differences
from leftovers import left_behind
from plain_runs import Run
from preparedhost import plan_of, wait_prepared
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
    from collections.abc import Iterator, Sequence

    from programs import Case

PLACES = 4
"""One for plain spares, one for the bare interpreter, one for the modules of a case."""
UNFIT = ("PYTHON", "LC_", "LANG", "TZ")


def can_be_prepared(case: Case, version: tuple[int, int]) -> bool:
    """Tell whether it is for this Python, imports only what the image has ahead, has no program to set it up, and fits."""
    is_for_this = case.since <= version < case.before and not case.setup
    is_of_image = not any(f"{module}.py" in case.files for module in case.modules)
    return is_for_this and is_of_image and not any(name.startswith(UNFIT) for name in case.env)


class ConformingHost:
    """A host that prepares the bare interpreter of one image, and the modules of each case by name."""

    def __init__(self, runner: RunscRunner, image: str, preparations: dict[tuple[str, ...], Preparation]) -> None:
        self.runner, self.image, self._preparations = runner, image, preparations

    def run_cold(self, case: Case) -> Ending:
        """Run the case in a sandbox without a preparation."""
        return self._run(case, "off")[0]

    def run_prepared(self, case: Case) -> Ending:
        """Run the case in a spare that is up. With modules, its plan is forgotten then, to leave its place to others."""
        preparation = self._preparations[case.modules]
        plan, pool = plan_of(self.runner, self.image, preparation), self.runner._provider.pool
        pool.pin(plan)
        wait_prepared(self.runner, plan)
        try:
            ending, start = self._run(case, preparation.name or None)
        finally:
            if preparation != BARE:
                pool.forget(plan)
        assert start == "prepared", (case.name, self.runner.read_prepared())
        return ending

    def compare(self, case: Case) -> list[str]:
        """Return the differences between a cold and a prepared run."""
        return differences(case, self.run_cold(case), self.run_prepared(case))

    def _run(self, case: Case, prepared: str | None) -> tuple[Ending, str]:
        spec = SandboxSpec.model_validate(
            {
                "image": self.image,
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
        ended = self.runner.execute(admit(spec, self.runner.config), transfer=Transfer(files, request))
        verdict = ended.verdict
        assert verdict.exit_code is not None or verdict.signal is not None, verdict
        code = -verdict.signal if verdict.signal is not None else verdict.exit_code
        assert code is not None
        streams = (stream.text.encode() for stream in (ended.stdout, ended.stderr))
        written = {name: data for name, data in sink.files.items() if "__pycache__" not in name}
        return Ending(Run(code, *streams), written), ended.start


@contextlib.contextmanager
def open_host(settings: HostSettings, image: str, cases: Sequence[Case]) -> Iterator[ConformingHost]:
    """Yield a host for `cases`; at the end nothing of it may be left."""
    wanted = sorted({case.modules for case in cases} - {()})
    named = {modules: Preparation(f"p{number}", modules) for number, modules in enumerate(wanted)}
    imports = tuple(f"{image}:{one.name}={'+'.join(one.modules)}" for one in named.values())
    prepared = PreparedSettings(start="python", imports=imports, deadline_seconds=60)
    warm = WarmSettings(size=PLACES)
    with RunscRunner(settings.model_copy(update={"warm": warm, "prepared": prepared})) as runner:
        yield ConformingHost(runner, image, {(): BARE, **named})
    assert not left_behind(runner.config), "the runner left something on the host"
