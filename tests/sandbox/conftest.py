"""A runner of our own with real images, and a check that no test leaves anything on the host."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from attacking import attack
from initbox import init, init_image, new_sandbox, sandbox
from leftovers import left_behind
from sandfleet_config.outcome import Outcome
from sandfleet_config.settings import HostSettings, ImagesSettings, PolicySettings, RunscSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.policy import admit
from sandfleet_worker.sandbox.images import ImageStore
from sandfleet_worker.sandbox.runner import RunscRunner

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_worker.sandbox.cancellation import Cancellation

__all__ = ["attack", "init", "init_image", "new_sandbox", "sandbox"]  # fixtures from beside

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


@pytest.fixture
def host(images_root: Path, tmp_path: Path) -> HostSettings:
    """Return settings with a state folder of this test's own."""
    return HostSettings(
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


class Run(Protocol):
    """Run a command and return its outcome."""

    def __call__(self, *command: str, cancel: Cancellation | None = None, **fields: Any) -> Outcome: ...


@pytest.fixture
def run(runner: RunscRunner) -> Run:
    """Return a function that runs a command in image `busybox` (or `image=`) and returns the outcome."""

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


def new_run(runner: RunscRunner) -> Run:
    """Return a function that runs a command in a sandbox of `runner`."""

    def run_command(*command: str, cancel: Cancellation | None = None, **fields: Any) -> Outcome:
        spec = SandboxSpec.model_validate({"image": "busybox", "command": command, "timeout": 20, **fields})
        ending = runner.execute(admit(spec, runner.config), cancel=cancel)
        return ending.to_outcome(job_id="test")

    return run_command
