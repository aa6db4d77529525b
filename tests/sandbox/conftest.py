"""A runner of our own with real images, and a check that no test leaves anything on the host."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from attacking import attack
from datasethost import able, corpus, datasets, source
from imagetools import store, tree
from initbox import abilities_folder, init, init_image, new_sandbox, runsc, sandbox
from leftovers import left_behind
from preparedhost import prepared_host, prepared_settings
from sandfleet_config.outcome import Outcome
from sandfleet_config.settings import HostSettings, ImagesSettings, PolicySettings, RunscSettings, WarmSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.image.store import ImageStore
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.process.abilities import MEMORY_FILE
from sandfleet_worker.sandbox.runner import RunscRunner
from sandfleet_worker.sandbox.warm.demand import HostLoad
from sandfleet_worker.sandbox.warm.spare_memory import IDLE_MEMORY_BYTES
from transferring import carry, carry_as_root
from waiting import wait_until
from warmhost import warm, warm_host

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.process.cancellation import Cancellation
    from sandfleet_worker.sandbox.process.runsc import RunscBinary

__all__ = [
    "abilities_folder",
    "able",
    "attack",
    "carry",
    "carry_as_root",
    "corpus",
    "datasets",
    "init",
    "init_image",
    "new_sandbox",
    "prepared_host",
    "prepared_settings",
    "runsc",
    "sandbox",
    "source",
    "store",
    "tree",
    "warm",
    "warm_host",
]  # fixtures from beside

BINARIES = ("runsc", "mkfs.erofs", "mmdebstrap", "busybox")


@pytest.fixture(scope="session")
def images_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a store with the starter images `python` and `busybox`."""
    missing = [name for name in BINARIES if shutil.which(name) is None]
    if missing and os.environ.get("CI"):
        pytest.fail(f"not installed: {', '.join(missing)}")
    if missing:
        pytest.skip(f"not installed: {', '.join(missing)}")
    # Developers may keep the images between runs: making `python` takes half a minute.
    kept = os.environ.get("TEST_IMAGES_ROOT")
    root = Path(kept) if kept else tmp_path_factory.mktemp("images")
    store = ImageStore(root)
    store.add("busybox")
    store.add("python")
    return root


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a module with `ROUNDS` twice: a job's sandbox boots for it, or is booted ahead."""
    rounds = getattr(metafunc.module, "ROUNDS", None)
    if rounds and "host" in metafunc.fixturenames:
        metafunc.parametrize("host", rounds, indirect=True)


@pytest.fixture(autouse=True)
def spare_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sandboxes be booted ahead whatever else this machine does meanwhile."""
    monkeypatch.setattr(HostLoad, "has_idle_cores", lambda _: True)


@pytest.fixture
def host(
    request: pytest.FixtureRequest, images_root: Path, tmp_path: Path, runsc: RunscBinary, abilities_folder: Path
) -> HostSettings:
    """Return settings with this test's own state folder; cold or warm if the module has `ROUNDS`.

    What runsc can do is known there: no test but those of that meets the sandboxes that find it
    out.
    """
    assert runsc.abilities.is_quiet == ("sidecar-usage-policy" in runsc.flags)
    (tmp_path / "runsc").mkdir(mode=0o711)
    shutil.copy(abilities_folder / MEMORY_FILE, tmp_path / "runsc")
    return HostSettings(
        warm=WarmSettings(size=2 if getattr(request, "param", "cold") == "warm" else 0),
        runsc=RunscSettings(root_dir=tmp_path / "runsc"),
        images=ImagesSettings(root=images_root),
        policy=PolicySettings(platforms=("systrap", "ptrace", "kvm")),
    )


@pytest.fixture
def runner(host: HostSettings) -> Iterator[RunscRunner]:
    """Return a runner; at the end nothing of it may be left."""
    with RunscRunner(host) as runner:
        yield runner
    assert not left_behind(host), "the runner left something on the host"


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


class Run(Protocol):
    """Run a command and return its outcome."""

    def __call__(self, *command: str, cancel: Cancellation | None = None, **fields: Any) -> Outcome: ...


@pytest.fixture
def run(runner: RunscRunner) -> Run:
    """Return a function that runs a command in `busybox` (or `image=`) and returns the outcome."""

    return new_run(runner)


@pytest.fixture
def python(run: Run) -> Run:
    """Return a function that runs Python code in image `python`."""

    def run_code(*command: str, cancel: Cancellation | None = None, **fields: Any) -> Outcome:
        return run("python3", "-c", *command, cancel=cancel, image="python", **fields)

    return run_code


@pytest.fixture
def run_as_root(host: HostSettings) -> Iterator[Run]:
    """Return a function that runs a command as uid 0, on a host whose policy allows that."""
    allowed = host.model_copy(
        update={
            "policy": host.policy.model_copy(update={"allow_root": True}),
            "runsc": host.runsc.model_copy(update={"root_dir": host.runsc.root_dir.with_name("as-root")}),
        }
    )
    with RunscRunner(allowed) as runner:
        run = new_run(runner)

        def run_command(*command: str, cancel: Cancellation | None = None, **fields: Any) -> Outcome:
            security = {"user": "0:0", **fields.pop("security", {})}
            return run(*command, cancel=cancel, security=security, **fields)

        yield run_command
    assert not left_behind(allowed), "the runner left something on the host"


def wait_warm(runner: RunscRunner, limits: Admitted) -> bool:
    """Wait until a spare for such a job is up; return False if the job must boot its own."""
    if not runner.config.warm.size or limits.memory_bytes < IDLE_MEMORY_BYTES:
        return False
    plan = runner._new_plan(runner.images.resolve(limits.spec.image), limits.platform)
    runner._provider.pool.pin(plan)
    wait_until(lambda: runner._provider.pool.count_idle(plan), 60, "a sandbox is up")
    return True


def new_run(runner: RunscRunner) -> Run:
    """Return a function that runs a command in a sandbox of `runner`."""

    def run_command(*command: str, cancel: Cancellation | None = None, **fields: Any) -> Outcome:
        spec = SandboxSpec.model_validate({"image": "busybox", "command": command, "timeout": 20, **fields})
        limits = admit(spec, runner.config)
        is_warm = wait_warm(runner, limits)
        ending = runner.execute(limits, cancel=cancel)
        assert ending.runtime.warm == is_warm
        return ending.to_outcome(job_id="test")

    return run_command
