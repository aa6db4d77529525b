"""A worker for test_janitor.py to kill: it runs sandboxes without end.

Prints its owner's name and then `started` for each one.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from pathlib import Path

from sandfleet_config.prepared_settings import PreparedSettings
from sandfleet_config.settings import HostSettings, ImagesSettings, RunscSettings, WarmSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.policy import Admitted
from sandfleet_worker.sandbox.process.deadlines import Deadlines
from sandfleet_worker.sandbox.runner import RunscRunner
from sandfleet_worker.sandbox.warm.demand import HostLoad

begin_program = Deadlines.begin_program


def tell(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def tell_start(deadlines: Deadlines, now: float, limits: Admitted | None) -> None:
    begin_program(deadlines, now, limits)
    tell("started")


def main() -> None:
    # Not from argv: a test's search for processes below its folder would find this one.
    request = json.loads(sys.stdin.readline())
    setattr(Deadlines, "begin_program", tell_start)  # noqa: B010  mypy takes it for a method of an instance
    setattr(HostLoad, "has_idle_cores", lambda _: True)  # noqa: B010  as in conftest.py
    host = HostSettings(
        runsc=RunscSettings(root_dir=Path(request["root_dir"]), path=request.get("runsc", "runsc")),
        images=ImagesSettings(root=Path(request["images"])),
        warm=WarmSettings(size=request.get("warm", 0), images=tuple(request.get("pinned", ()))),
        prepared=PreparedSettings(start=request.get("start", "named")),
    )
    runner = RunscRunner(host)
    tell(runner._owner.name)
    runner.warm_up()
    if request.get("start"):
        found = runner.images.resolve("python")
        base = runner._new_plan(found, host.runsc.platform)
        (plan,) = runner._starts.list_plans(base, found)
        while not runner._provider.pool.count_idle(plan):
            time.sleep(0.05)
        tell("prepared")
    spec = SandboxSpec.model_validate(
        {"image": "busybox", "command": ["sh", "-c", "trap '' TERM HUP; sleep 600 & sleep 600"], "timeout": 600}
    )
    for _ in range(request["sandboxes"]):
        threading.Thread(target=runner.run, args=(spec,)).start()


if __name__ == "__main__":
    main()
