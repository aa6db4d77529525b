"""Measure the command line from shell to shell: its start, `run`, and `submit` in jobs/s.

python benchmarks/command_line.py                     on a stack and a Redis of its own
python benchmarks/command_line.py --run-on URL        `run` on a running fleet with the image busybox

The time of the client's CPU is told too: on a machine that is busy it is what can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sandbench.chosen_runsc import put_runsc_first
from sandfleet_worker.sandbox.image.store import ImageStore

sys.path.insert(0, str(Path(__file__).parents[1] / "demo"))  # the stack of the demos
from stack import embedded_stack

if TYPE_CHECKING:
    from collections.abc import Sequence

SANDFLEET = Path(sys.executable).parent / "sandfleet"
ROUNDS = 7
SUBMITS = 3
GOAL_VERSION_MS = 150.0
GOAL_RUN_MS = 350.0
GOAL_JOBS_PER_SECOND = 15_000.0
JOB = ["run", "--image", "busybox", "--", "sleep", "0.02"]


class Times(NamedTuple):
    """Seconds of one call: by the clock, and of CPU in the client."""

    wall: float
    cpu: float


def main() -> None:
    """Print one row for each measure: what was found, and the goal if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-on", metavar="URL", help="the Redis of a running fleet with the image busybox")
    parser.add_argument("--jobs", type=int, default=50_000)
    parser.add_argument("--quick", action="store_true", help="a tenth of the jobs")
    options = parser.parse_args()
    put_runsc_first()
    print("| measure | found | CPU of the client | goal |\n|---|---|---|---|")
    for words, goal in ((["--version"], f"{GOAL_VERSION_MS:.0f} ms"), (["--help"], ""), (["run", "--help"], "")):
        _print_times(words, _time(words), goal)
    _measure_run(options.run_on)
    _measure_submit(options.jobs // 10 if options.quick else options.jobs)


def _print_times(words: Sequence[str], found: Times, goal: str) -> None:
    print(
        f"| `sandfleet {' '.join(words)}` | {1000 * found.wall:.0f} ms | {1000 * found.cpu:.0f} ms | {goal} |",
        flush=True,
    )


def _measure_run(url: str | None) -> None:
    """Time `run` of a job of 20 ms, against a stack that is up."""
    goal = f"{GOAL_RUN_MS:.0f} ms, of which the job sleeps 20"
    if url:
        _print_times(JOB, _time(JOB, {"SANDFLEET_REDIS_URL": url}), goal)
    elif os.geteuid() != 0 or not shutil.which("runsc"):
        print("| `sandfleet run` | not measured: it needs root and runsc | | |")
    else:
        with ExitStack() as parts:
            folder = Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="sfb-")))  # short: sockets are in it
            images = folder / "images"
            ImageStore(images).add("busybox")
            parts.enter_context(embedded_stack(folder, {"SANDFLEET_IMAGES__ROOT": str(images)}))
            _print_times(JOB, _time(JOB, {"SANDFLEET_LOCAL_DIR": str(folder / "local")}), goal)


def _time(words: Sequence[str], env: dict[str, str] | None = None) -> Times:
    """Return the medians of a command, its first call not counted."""
    found = [_time_once(words, env or {}) for _ in range(ROUNDS + 1)][1:]
    return Times(statistics.median(times.wall for times in found), statistics.median(times.cpu for times in found))


def _time_once(words: Sequence[str], env: dict[str, str]) -> Times:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    command = [str(SANDFLEET), *words]
    subprocess.run(command, env=os.environ | env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wall = time.perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Times(wall, used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime)


def _measure_submit(jobs: int) -> None:
    """Time `submit` of many jobs less that of one; the best of some rounds."""
    with tempfile.TemporaryDirectory(prefix="sandfleet-bench-") as name:
        folder = Path(name)
        server = _start_redis(folder / "redis.sock")
        env = {"SANDFLEET_REDIS_URL": f"unix://{folder / 'redis.sock'}"}
        try:
            for way in ("a file of specs", "--csv", "--array"):
                rates = [_measure_way(folder, way, jobs, env, number) for number in range(SUBMITS)]
                wall, cpu = max(rate.wall for rate in rates), max(rate.cpu for rate in rates)
                print(
                    f"| `submit`, {way} | {wall:,.0f} jobs/s | {cpu:,.0f} jobs/s | {GOAL_JOBS_PER_SECOND:,.0f} jobs/s |"
                )
        finally:
            server.terminate()
            server.wait()


def _measure_way(folder: Path, way: str, jobs: int, env: dict[str, str], number: int) -> Times:
    """Return the jobs a second: by the clock, and of CPU."""
    few, many = (_time_once(_write(folder, way, count, number), env) for count in (1, jobs))
    return Times(jobs / max(many.wall - few.wall, 1e-9), jobs / max(many.cpu - few.cpu, 1e-9))


def _start_redis(socket: Path) -> subprocess.Popen[bytes]:
    command = ["redis-server", "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(socket.parent)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while not socket.exists():
        if time.monotonic() > deadline:
            server.kill()
            sys.exit("redis-server did not start")
        time.sleep(0.05)
    return server


def _write(folder: Path, way: str, count: int, number: int) -> list[str]:
    """Write the input of a submit of `count` jobs; return its command line."""
    batch = ["submit", "--batch", f"{way}-{count}-{number}", "--quiet"]
    command = ["--", "python3", "-c", "print({index})"]
    if way == "--array":
        return [*batch, "--array", f"0-{count - 1}", *command]
    if way == "--csv":
        (folder / "cases.csv").write_text("seed\n" + "".join(f"{index}\n" for index in range(count)))
        return [*batch, "--csv", str(folder / "cases.csv"), *command]
    spec = {"image": "python", "timeout": 10}
    with (folder / "jobs.jsonl").open("w") as file:
        for index in range(count):
            own = {"command": ["python3", "-c", f"print({index})"], "labels": {"name": f"case-{index}"}}
            file.write(json.dumps(spec | own) + "\n")
    return [*batch, str(folder / "jobs.jsonl")]


if __name__ == "__main__":
    main()
