"""Guarantees on every release of runsc, and the messages for a faulty release or installation."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import pytest
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import GVisorNotAvailable, HostResources, SandboxCreationFailed
from sandfleet_config.settings import WorkerSettings
from sandfleet_worker.commands.checks import State, check_runsc, check_sentry
from sandfleet_worker.sandbox.process.abilities import MEMORY_FILE
from sandfleet_worker.sandbox.process.cancellation import Cancellation
from sandfleet_worker.sandbox.process.runsc import REQUIRED_FLAGS, SandboxPaths, find_runsc, new_command, release_date
from sandfleet_worker.sandbox.runner import RunscRunner
from test_endings import sentry_of

if TYPE_CHECKING:
    from conftest import Run
    from sandfleet_config.settings import HostSettings
    from sandfleet_worker.sandbox.process.runsc import RunscBinary

CRASH = """
import os
os.makedirs("/tmp/a/b"); os.chdir("/tmp/a/b"); os.rmdir("/tmp/a/b"); os.rmdir("/tmp/a")
os.chdir("..")
"""
"""Before 20260601 gVisor's kernel panics at the last step."""


NO_CAPABILITY = "CapEff:\t0000000000000000"


def test_the_sandboxs_kernel_is_nobody_without_capabilities_on_the_host(runner: RunscRunner, run: Run) -> None:
    seen: list[str] = []
    cancel = Cancellation()

    def poll() -> None:
        deadline = time.monotonic() + 10  # it becomes nobody while it boots, and then drops its capabilities
        while NO_CAPABILITY not in seen and time.monotonic() < deadline:
            with contextlib.suppress(OSError):  # runsc replaces the process once while it boots
                seen[:] = Path(f"/proc/{sentry_of(runner).pid}/status").read_text().splitlines()
            time.sleep(0.02)
        cancel.cancel()

    poller = threading.Thread(target=poll)
    poller.start()
    run("sleep", "60", cancel=cancel, timeout=60)
    poller.join()
    told = dict(line.split(":\t", 1) for line in seen)
    assert told["Uid"].split() == ["65534"] * 4
    assert told["CapEff"] == told["CapPrm"] == told["CapInh"] == "0" * 16
    assert runner.probe().is_sentry_nobody


def test_a_job_that_crashes_the_kernel_of_its_sandbox_ends_with_a_message_that_says_so(
    python: Run, runsc: RunscBinary
) -> None:
    outcome = python(CRASH)
    if (release_date(runsc.version) or 0) < 20260601:
        assert outcome.code is ErrorCode.SANDBOX_EXECUTION_FAILED
        assert outcome.message.startswith("the job met a fault of gVisor's that crashed its sandbox")
    else:
        assert outcome.code is ErrorCode.OK


def with_runsc(host: HostSettings, path: Path) -> HostSettings:
    return host.model_copy(update={"runsc": host.runsc.model_copy(update={"path": str(path)})})


def doctor_settings(host: HostSettings) -> WorkerSettings:
    return WorkerSettings(**{name: getattr(host, name) for name in ("runsc", "images", "policy", "warm")})


def test_each_flag_of_a_sandbox_is_one_that_runsc_knows(host: HostSettings, runsc: RunscBinary, tmp_path: Path) -> None:
    for is_rootless in (False, True):
        settings = host.runsc.model_copy(update={"rootless": is_rootless})
        command = new_command(runsc, settings, "systrap", SandboxPaths(tmp_path), (7, 8, 9))
        flags = {word[2:].partition("=")[0] for word in command[1 : command.index("run")]}
        assert REQUIRED_FLAGS <= flags <= runsc.flags


def test_a_runsc_that_lacks_a_flag_is_refused_by_name(tmp_path: Path) -> None:
    runsc = tmp_path / "runsc"
    runsc.write_text("#!/bin/sh\n[ $1 = flags ] && printf '  -root\\n  -platform\\n' || echo 'runsc version x'\n")
    runsc.chmod(0o755)
    with pytest.raises(GVisorNotAvailable, match=r"does not know --ignore-cgroups, --log, .*: install a release"):
        find_runsc(str(runsc))


@pytest.mark.parametrize("mode", [0o700, 0o701], ids=oct)
def test_a_runsc_that_is_closed_to_the_user_nobody_runs_jobs_as_root_until_it_is_open_as_doctor_says(
    host: HostSettings, runsc: RunscBinary, open_folder: Path, mode: int
) -> None:
    closed = Path(shutil.copy(runsc.path, open_folder / "runsc"))
    closed.chmod(mode)
    settings = with_runsc(host, closed)
    with RunscRunner(settings) as runner:
        report = runner.probe()
    assert not report.is_sentry_nobody
    finding = check_sentry(doctor_settings(settings), report)
    assert finding.state is State.WARNING
    assert finding.fix == f"chmod o+rx {closed}, and restart the workers of this host"
    with RunscRunner(settings) as again:
        assert not again.probe().is_sentry_nobody
        closed.chmod(mode | 0o005)
    with RunscRunner(settings) as restarted:
        assert restarted.probe().is_sentry_nobody, "what doctor tells to do helps"


def test_sandboxes_boot_with_and_without_the_helpers_beside_runsc(
    host: HostSettings, runsc: RunscBinary, open_folder: Path
) -> None:
    alone = Path(shutil.copy(runsc.path, open_folder / "runsc"))
    with RunscRunner(with_runsc(host, alone)) as runner:
        assert runner.probe().version == runsc.version
    helpers = Path(runsc.path).resolve().parent / "gvisor-bin"
    assert helpers.is_dir() == runsc.abilities.is_quiet
    assert State.FAILED not in {finding.state for finding in check_runsc(doctor_settings(with_runsc(host, alone)))}


@pytest.mark.parametrize("fault", ["half", "other release"])
def test_a_faulty_set_of_helpers_is_named_by_a_failed_boot_and_by_doctor(
    host: HostSettings, runsc: RunscBinary, open_folder: Path, fault: str
) -> None:
    if not runsc.abilities.is_quiet:
        return  # this release starts no helpers
    alone = Path(shutil.copy(runsc.path, open_folder / "runsc"))
    helpers = open_folder / "gvisor-bin"
    helpers.mkdir()
    if fault == "half":
        # What gVisor's own does without a sentry: it starts /proc/self/exe, which is itself, and
        # that ends.
        (helpers / "gvisor-sentry-prewarmer").write_text("#!/bin/sh\nexit 1\n")
        (helpers / "gvisor-sentry-prewarmer").chmod(0o755)
        told = "gvisor_sentry is missing"
    else:
        sentry = (Path(runsc.path).resolve().parent / "gvisor-bin/gvisor_sentry").read_bytes()
        other = runsc.version.encode()[:-1] + b"9"
        (helpers / "gvisor_sentry").write_bytes(sentry.replace(runsc.version.encode(), other))
        (helpers / "gvisor_sentry").chmod(0o755)
        told = f"gvisor_sentry is of version {other.decode()}, runsc is {runsc.version}"
    settings = with_runsc(host, alone)
    finding = list(check_runsc(doctor_settings(settings)))[-1]
    assert finding.state is State.FAILED
    assert told in finding.detail
    with RunscRunner(settings) as runner, pytest.raises(SandboxCreationFailed, match="client sync file.*" + told):
        runner.probe()


@pytest.fixture
def open_folder(tmp_path: Path) -> Path:
    """Return a folder that nobody may reach; pytest's own are closed to others."""
    folder = tmp_path / "open"
    folder.mkdir()
    for place in (folder, *folder.parents[:3]):
        place.chmod(place.stat().st_mode | 0o001)
    return folder


def test_a_probe_without_memory_fails_at_once_and_keeps_the_abilities_of_runsc(
    runner: RunscRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner.probe()
    known = (runner.config.runsc.root_dir / MEMORY_FILE).read_text()
    boots: list[str] = []

    def fail(_binary: RunscBinary, platform: str) -> NoReturn:
        boots.append(platform)
        raise HostResources.of("no memory")

    monkeypatch.setattr(runner._prober, "boot", fail)
    with pytest.raises(HostResources):
        runner.probe()
    assert len(boots) == 1
    assert (runner.config.runsc.root_dir / MEMORY_FILE).read_text() == known
