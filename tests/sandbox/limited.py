"""A process of its own with its own limit of open files: runs sandboxes and says how that went; see test_descriptors.py."""

from __future__ import annotations

import json
import logging
import resource
import sys
import threading
from pathlib import Path

from sandfleet_config.errors import SandboxError
from sandfleet_config.settings import ImagesSettings, PolicySettings, RunscSettings, WarmSettings, WorkerSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.policy import admit
from sandfleet_worker.preflight import PreflightFailed, check_descriptors
from sandfleet_worker.sandbox.demand import Spare
from sandfleet_worker.sandbox.runner import RunscRunner
from waiting import wait_until


def count_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1


def main() -> None:
    wish = json.loads(sys.argv[1])
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    resource.setrlimit(resource.RLIMIT_NOFILE, tuple(wish["limits"]))
    setattr(Spare, "has_cores", lambda _: True)  # noqa: B010  as in conftest.py
    settings = WorkerSettings(
        concurrency=wish["concurrency"],
        runsc=RunscSettings(root_dir=Path(wish["root_dir"])),
        images=ImagesSettings(root=Path(wish["images"])),
        policy=PolicySettings(memory_bytes=64 << 20),
        warm=WarmSettings(size=wish["warm"]),
    )
    spec = SandboxSpec.model_validate({"image": "busybox", "command": wish["command"], "timeout": 60})
    told: dict[str, object] = {"before": count_descriptors()}
    with RunscRunner(settings) as runner:
        try:
            check_descriptors(runner)
        except PreflightFailed as error:
            told["refused"] = str(error)
        if "refused" not in told or wish.get("is_forced"):
            told["endings"] = run(runner, spec, wish)
        told["soft"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        told["spares"] = runner.descriptors.spares
    told["after"] = count_descriptors()
    print(json.dumps(told))  # noqa: T201


def run(runner: RunscRunner, spec: SandboxSpec, wish: dict[str, int]) -> list[str]:
    endings: list[str] = []

    def work() -> None:
        try:
            verdict = runner.execute(admit(spec, runner.config)).verdict
            endings.append(f"{verdict.code}: {verdict.message}")
        except SandboxError as error:
            endings.append(f"{error.code}: {error.message}")

    threads = [threading.Thread(target=work) for _ in range(wish["jobs"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if wish.get("is_filled"):
        wait_until(lambda: runner._warm.count_idle() == runner.descriptors.spares, 120, "all are up")
        work()
    return endings


if __name__ == "__main__":
    main()
