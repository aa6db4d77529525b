"""Count the script calls and bytes that a job costs Redis, of producer and worker together.

The counters are Redis's own. Run by another release's Python,
``python -m sandbench.redis_use IMAGES JOBS`` measures that release and prints JSON.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet import Fleet, Settings

from sandbench.figures import RedisUse
from sandbench.programs import TRUE
from sandbench.queue_way import AS_SHIPPED, WAIT_SECONDS, worker
from sandbench.testbed import new_testbed

if TYPE_CHECKING:
    from sandbench.testbed import Server, Testbed

SLOTS = 4
FIRST_JOBS = 20
"""Not counted: the first call of each script sends its text."""
SCRIPT_COMMANDS = ("cmdstat_evalsha", "cmdstat_eval", "cmdstat_fcall")


@dataclass(frozen=True)
class Counters:
    """Redis's counters at one moment."""

    script_calls: int
    input_bytes: int
    output_bytes: int

    @classmethod
    def read(cls, server: Server) -> Counters:
        """Ask for them."""
        commands, stats = server.read("commandstats"), server.read("stats")
        calls = sum(int(commands[name]["calls"]) for name in SCRIPT_COMMANDS if name in commands)
        return cls(calls, int(stats["total_net_input_bytes"]), int(stats["total_net_output_bytes"]))


def measure_redis_use(testbed: Testbed, jobs: int) -> RedisUse:
    """Run a batch of `/bin/true` jobs through one worker as shipped; read outcomes as they end."""
    with (
        testbed.serve_redis(testbed.new_name("redis")) as server,
        Fleet(Settings.model_validate({"redis_url": server.url})) as fleet,
        worker(testbed, server, testbed.new_name("worker"), SLOTS, AS_SHIPPED),
    ):
        _run_batch(fleet, "first", FIRST_JOBS)
        before, began = Counters.read(server), time.monotonic()
        _run_batch(fleet, "batch", jobs)
        after, seconds = Counters.read(server), time.monotonic() - began
    return RedisUse(
        jobs=jobs,
        seconds=seconds,
        script_calls=(after.script_calls - before.script_calls) / jobs,
        input_bytes=(after.input_bytes - before.input_bytes) / jobs,
        output_bytes=(after.output_bytes - before.output_bytes) / jobs,
    )


def _run_batch(fleet: Fleet, name: str, jobs: int) -> None:
    handles = fleet.submit_many([TRUE.spec] * jobs, batch=name)
    for outcome in fleet.as_completed(handles, timeout=WAIT_SECONDS):
        if not outcome.is_ok:
            raise RuntimeError(f"a job did not end well: {outcome.to_summary()}")


def main() -> None:
    """Measure the release of this interpreter."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("images", type=Path, help="an image store that has busybox and python")
    parser.add_argument("jobs", type=int, help="so many")
    options = parser.parse_args()
    with new_testbed(options.images) as testbed:
        print(measure_redis_use(testbed, options.jobs).model_dump_json())


if __name__ == "__main__":
    main()
