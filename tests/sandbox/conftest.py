"""A runner of our own with real images, and a check that no test leaves anything on the host."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from attacking import USERS, attack
from datasethost import able, corpus, datasets, source
from imagetools import store, tree
from initbox import abilities_folder, init, init_image, new_sandbox, runsc, sandbox
from leftovers import left_behind
from preparedhost import plan_of, prepared_host, prepared_settings, wait_prepared
from sandfleet_config.outcome import Outcome
from sandfleet_config.prepared_settings import PreparedSettings
from sandfleet_config.settings import HostSettings, ImagesSettings, PolicySettings, RunscSettings, WarmSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.image.store import ImageStore
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.process.abilities import MEMORY_FILE
from sandfleet_worker.sandbox.runner import RunscRunner
from sandfleet_worker.sandbox.start_hooks import NoHooks
from sandfleet_worker.sandbox.warm.demand import HostLoad
from sandfleet_worker.sandbox.warm.spare_memory import IDLE_MEMORY_BYTES
from transferring import carry, carry_as_root
from waiting import JOB_SECONDS, wait_until
from warmhost import warm, warm_host

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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

PREPARED_BYTES = 80 << 20
"""Memory limit from which a bare interpreter can become a job: 41 MiB of its own, and 32 MiB."""
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
    """Run a module in each of its `ROUNDS`, and attacks as each of their users.

    A job's sandbox boots for it, or is booted ahead, or has its Python up. Only a job in Python that
    runs as the image's user can start so.
    """
    names = set(metafunc.fixturenames)
    if "host" not in names:
        return
    rounds = getattr(metafunc.module, "ROUNDS", ())
    if not names & {"attack", "carry", "python"}:
        rounds = [name for name in rounds if name != "prepared"]
    if "attack" in names and rounds:
        pairs = [(name, user) for name in rounds for user in USERS if (name, user) != ("prepared", "root")]
        metafunc.parametrize(("host", "attack"), pairs, indirect=True)
    elif "attack" in names:
        metafunc.parametrize("attack", USERS, indirect=True)
    elif rounds:
        metafunc.parametrize("host", rounds, indirect=True)


@pytest.fixture(autouse=True)
def spare_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let sandboxes be booted ahead whatever else this machine does meanwhile."""
    monkeypatch.setattr(HostLoad, "has_idle_cores", lambda _: True)


@pytest.fixture
def host(
    request: pytest.FixtureRequest, images_root: Path, tmp_path: Path, runsc: RunscBinary, abilities_folder: Path
) -> HostSettings:
    """Return settings with this test's own state folder, for one of the module's `ROUNDS`, or cold.

    What runsc can do is known there: no test but those of that meets the sandboxes that find it
    out.
    """
    assert runsc.abilities.is_quiet == ("sidecar-usage-policy" in runsc.flags)
    (tmp_path / "runsc").mkdir(mode=0o711)
    shutil.copy(abilities_folder / MEMORY_FILE, tmp_path / "runsc")
    start = getattr(request, "param", "cold")
    return HostSettings(
        warm=WarmSettings(size=0 if start == "cold" else 2),
        prepared=PreparedSettings(start="python" if start == "prepared" else "named"),
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


def wait_spare(runner: RunscRunner, limits: Admitted) -> str:
    """Wait until a spare for such a job is up; return how the job must start then."""
    if not runner.config.warm.size or limits.memory_bytes < IDLE_MEMORY_BYTES:
        return "cold"
    if runner.config.prepared.start == "python":
        if not can_be_prepared(runner, limits):
            pytest.skip("this job cannot start prepared, and is tested warm")
        runner._provider.pool.pin(plan_of(runner))
        wait_prepared(runner)
        return "prepared"
    plan = runner._new_plan(runner.images.resolve(limits.spec.image), limits.platform)
    runner._provider.pool.pin(plan)
    wait_until(lambda: runner._provider.pool.count_idle(plan), 60, "a sandbox is up")
    return "warm"


def can_be_prepared(runner: RunscRunner, limits: Admitted) -> bool:
    """Whether the test's job is one that the bare interpreter of `python` can become."""
    spec, platform = limits.spec, runner.config.runsc.platform
    is_plain = spec.security == SandboxSpec(image="python", command=["x"]).security and not spec.env
    is_large = limits.memory_bytes >= PREPARED_BYTES and limits.platform == platform
    is_python = spec.image == "python" and spec.command[:2] == ("python3", "-c")
    return is_python and is_plain and is_large


class Taken(NoHooks):
    """Calls `note` once the job has its sandbox."""

    def __init__(self, note: Callable[[], None]) -> None:
        self._note = note

    def start(self) -> None:
        self._note()


def new_run(runner: RunscRunner) -> Run:
    """Return a function that runs a command in a sandbox of `runner`."""
    taking = threading.Lock()  # of two jobs at once, none takes the spare that the other has seen

    def run_command(*command: str, cancel: Cancellation | None = None, **fields: Any) -> Outcome:
        spec = SandboxSpec.model_validate({"image": "busybox", "command": command, "timeout": JOB_SECONDS, **fields})
        limits = admit(spec, runner.config)
        with contextlib.ExitStack() as stack:
            stack.enter_context(taking)
            start = wait_spare(runner, limits)
            ending = runner.execute(limits, cancel=cancel, hooks=Taken(stack.close))
        assert ending.start == start
        assert ending.runtime.warm == (start != "cold")
        return ending.to_outcome(job_id="test")

    return run_command
