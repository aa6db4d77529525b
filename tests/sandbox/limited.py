"""Run sandboxes under a limit of open files and print how they ended; see test_descriptors.py."""

from __future__ import annotations

import json
import logging
import os
import resource
import sys
import threading
from pathlib import Path
from typing import Any

from sandfleet_config.errors import SandboxError
from sandfleet_config.settings import ImagesSettings, PolicySettings, RunscSettings, WarmSettings, WorkerSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.commands.checks import State, check_open_files
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.process.cancellation import Cancellation
from sandfleet_worker.sandbox.process.supervision import Supervision
from sandfleet_worker.sandbox.runner import RunscRunner
from sandfleet_worker.sandbox.warm.demand import HostLoad
from waiting import wait_until


def count_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1


def main() -> None:
    request = json.loads(sys.argv[1])
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    resource.setrlimit(resource.RLIMIT_NOFILE, tuple(request["limits"]))
    setattr(HostLoad, "has_idle_cores", lambda _: True)  # noqa: B010  as in conftest.py
    settings = WorkerSettings(
        concurrency=request["concurrency"],
        runsc=RunscSettings(root_dir=Path(request["root_dir"])),
        images=ImagesSettings(root=Path(request["images"])),
        policy=PolicySettings(memory_bytes=64 << 20),
        warm=WarmSettings(size=request["warm"]),
    )
    spec = SandboxSpec.model_validate({"image": "busybox", "command": request["command"], "timeout": 240})
    told: dict[str, object] = {"before": count_descriptors()}
    with RunscRunner(settings) as runner:
        finding = check_open_files(runner.descriptors, request["warm"])
        told["finding"] = [finding.state, finding.detail, finding.fix]
        if finding.state is not State.FAILED or request.get("is_forced"):
            told["endings"] = run(runner, spec, request)
        told["soft"] = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        told["spares"] = runner.descriptors.spares
    told["after"] = count_descriptors()
    print(json.dumps(told))  # noqa: T201


def run(runner: RunscRunner, spec: SandboxSpec, request: dict[str, int]) -> list[str]:
    """Run the jobs; return how they ended.

    With `is_held`, cancel them when all of their programs run at the same time.
    """
    endings: list[str] = []
    cancels = [Cancellation() for _ in range(request["jobs"])]
    supervisions = note_supervisions()

    def work(cancel: Cancellation | None = None) -> None:
        # A job of a worker has more: its slot, its files, its datasets, its connections.
        others = [os.open("/dev/null", os.O_RDONLY) for _ in range(request.get("others", 0))]
        try:
            verdict = runner.execute(admit(spec, runner.config), cancel=cancel).verdict
            endings.append(f"{verdict.code}: {verdict.message}")
        except SandboxError as error:
            endings.append(f"{error.code}: {error.message}")
        finally:
            for other in others:
                os.close(other)

    def are_all_running() -> bool:
        running = sum(one.clock.started is not None and one.clock.ended is None for one in supervisions)
        return bool(endings) or running == len(cancels)

    threads = [threading.Thread(target=work, args=(cancel,)) for cancel in cancels]
    for thread in threads:
        thread.start()
    if request.get("is_held"):
        wait_until(are_all_running, 150, "all run at once, or one has ended")
        for cancel in cancels:
            cancel.cancel()
    for thread in threads:
        thread.join()
    if request.get("is_filled"):
        wait_until(lambda: runner._provider.pool.count_idle() == runner.descriptors.spares, 120, "all are up")
        work()
    return endings


def note_supervisions() -> list[Supervision]:
    """Return a list that will hold the supervision of each sandbox that has been given a job."""
    supervisions: list[Supervision] = []
    run_job = Supervision.run

    def run(supervision: Supervision, *args: Any, **fields: Any) -> None:
        supervisions.append(supervision)
        run_job(supervision, *args, **fields)

    setattr(Supervision, "run", run)  # noqa: B010  as above
    return supervisions


if __name__ == "__main__":
    main()
