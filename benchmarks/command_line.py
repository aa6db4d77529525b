"""Measure the command line from shell to shell: its start, and `sandfleet submit` in jobs/s.

python benchmarks/command_line.py                     start and submit, on a Redis of its own
python benchmarks/command_line.py --run-on URL        and `run` of `true`, on a running fleet
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

SANDFLEET = Path(sys.executable).parent / "sandfleet"
ROUNDS = 7
GOAL_VERSION_MS = 150.0
GOAL_RUN_MS = 350.0
GOAL_JOBS_PER_SECOND = 15_000.0


def main() -> None:
    """Print one row for each measure: median, and the goal if there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run-on", metavar="URL", help="the Redis of a running fleet with the image busybox")
    parser.add_argument("--jobs", type=int, default=50_000)
    parser.add_argument("--quick", action="store_true", help="a tenth of the jobs")
    options = parser.parse_args()
    print("| measure | found | goal |\n|---|---|---|")
    for words, goal in ((["--version"], f"{GOAL_VERSION_MS:.0f} ms"), (["--help"], ""), (["run", "--help"], "")):
        print(f"| `sandfleet {' '.join(words)}` | {1000 * _time(words):.0f} ms | {goal} |")
    if options.run_on:
        words = ["run", "--image", "busybox", "--", "true"]
        found = _time(words, {"SANDFLEET_REDIS_URL": options.run_on})
        print(f"| `sandfleet {' '.join(words)}` | {1000 * found:.0f} ms | {GOAL_RUN_MS:.0f} ms |")
    _measure_submit(options.jobs // 10 if options.quick else options.jobs)


def _time(words: Sequence[str], env: dict[str, str] | None = None) -> float:
    """Return the median seconds of a command, its first call not counted."""
    seconds = [_time_once(words, env or {}) for _ in range(ROUNDS + 1)]
    return statistics.median(seconds[1:])


def _time_once(words: Sequence[str], env: dict[str, str]) -> float:
    began = time.perf_counter()
    command = [str(SANDFLEET), *words]
    subprocess.run(command, env=os.environ | env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - began


def _measure_submit(jobs: int) -> None:
    """Time `submit` of many jobs less that of one."""
    with tempfile.TemporaryDirectory(prefix="sandfleet-bench-") as name:
        folder = Path(name)
        server = _start_redis(folder / "redis.sock")
        env = {"SANDFLEET_REDIS_URL": f"unix://{folder / 'redis.sock'}"}
        try:
            for way in ("a file of specs", "--csv", "--array"):
                few, many = (_time_once(_write(folder, way, count), env) for count in (1, jobs))
                rate = jobs / max(many - few, 1e-9)
                print(f"| `submit`, {way} | {rate:,.0f} jobs/s | {GOAL_JOBS_PER_SECOND:,.0f} jobs/s |")
        finally:
            server.terminate()
            server.wait()


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


def _write(folder: Path, way: str, count: int) -> list[str]:
    """Write the input of a submit of `count` jobs; return its command line."""
    batch = ["submit", "--batch", f"{way}-{count}", "--quiet"]
    command = ["--", "python3", "-c", "print({index})"]
    if way == "--array":
        return [*batch, "--array", f"0-{count - 1}", *command]
    if way == "--csv":
        (folder / "cases.csv").write_text("seed\n" + "".join(f"{number}\n" for number in range(count)))
        return [*batch, "--csv", str(folder / "cases.csv"), *command]
    spec = {"image": "python", "timeout": 10}
    with (folder / "jobs.jsonl").open("w") as file:
        for number in range(count):
            own = {"command": ["python3", "-c", f"print({number})"], "labels": {"name": f"case-{number}"}}
            file.write(json.dumps(spec | own) + "\n")
    return [*batch, str(folder / "jobs.jsonl")]


if __name__ == "__main__":
    main()
