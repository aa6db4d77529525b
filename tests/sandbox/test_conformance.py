"""Programs of the conformance suite end the same in real sandboxes, cold and prepared, as far as a job can have them."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import pytest
from comparing import Ending, differences
from plain_runs import Run
from preparedhost import read_version, wait_prepared
from programs import Case, read_cases
from pythons import IS_WHOLE
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.process.artifacts import ArtifactPattern, ArtifactRequest, CollectLimits
from sandfleet_worker.sandbox.process.packed_job import Transfer
from transferring import Sink, new_file

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.runner import RunscRunner

SAMPLE = 40
"""Without TEST_CONFORMANCE=all, one case of so many runs."""
UNFIT = ("PYTHON", "LC_", "LANG", "TZ")


def can_be_prepared(case: Case, version: tuple[int, int]) -> bool:
    """Tell whether it is for this Python, needs no import ahead and no program to set it up, and fits."""
    is_for_this = case.since <= version < case.before and not case.modules and not case.setup
    return is_for_this and not any(name.startswith(UNFIT) for name in case.env)


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


@pytest.mark.timeout(7200)
def test_programs_end_the_same_in_sandboxes(prepared_host: RunscRunner) -> None:
    found, starts = [], []
    version = read_version(prepared_host)
    chosen = [case for case in read_cases() if can_be_prepared(case, version)]
    if not IS_WHOLE:
        chosen = [case for case in chosen if zlib.crc32(case.name.encode()) % SAMPLE == 0]
    for case in chosen:
        cold, _ = run(prepared_host, case, "off")
        wait_prepared(prepared_host)
        prepared, start = run(prepared_host, case, None)
        starts.append(start)
        found += differences(case, cold, prepared)
    assert found == []
    assert set(starts) == {"prepared"}
