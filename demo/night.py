"""A night's batch, in minutes: 500 cases go well and badly, a producer and a worker are killed.

Run it by `make demo-night`. It starts Redis, workers and a receiver of webhooks of its own, types
the commands that a person would type, and checks what they say. The exit code is 0 only if all is
as it must be. `python demo/night.py --cases 200` is a short one.

It needs pandas and pyarrow (`pip install 'sandfleet[pandas]'`: the table of results) and
standardwebhooks (it verifies signatures); `make setup` installs them.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cases import CODES, count_kinds, expect_output, new_cases, write_files
from receiver import Receiver, open_receiver
from sandfleet import BatchUnknown, Fleet
from solve import SLOW_STEPS, describe_step
from stack import (
    SCRIPTS,
    add_python_image,
    console,
    embedded_stack,
    find_left,
    running,
    stack_environment,
    wait_for_line,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from cases import Case
    from sandfleet_config.settings import Settings

BATCH = "night"
DEADLINE_SECONDS = 300
LEASE_SECONDS = 6
WEBHOOKS = 2
SUBMIT = (
    f"sandfleet submit --csv cases.csv --batch {BATCH} --idempotent --file solve.py --file words.txt"
    " --label-from kind --live --memory 96MiB --timeout 5 --max-failures 100 --on-done ci"
    " -- python3 solve.py {case} {kind}"
)
COLUMNS = "job_id,labels.name,labels.kind,code,run,attempts,duration,memory_peak_bytes,stdout"


class Night:
    """State that the steps share: their folder, their facts, and the faults found so far."""

    def __init__(self, folder: Path, cases: list[Case], settings: Settings, env: dict[str, str]) -> None:
        self.folder, self.cases, self.fleet, self.env = folder, cases, Fleet(settings), env
        self.complaints: list[str] = []

    def step(self, title: str, words: str) -> None:
        """Say what comes now."""
        console.print(f"\n[bold]{title}[/bold]\n{words}", highlight=False, soft_wrap=True)

    def run(self, command: str, *, exits: int = 0) -> str:
        """Print a command, run it as a shell would, and return its output, which is shown too."""
        done = subprocess.run(
            self.show(command), cwd=self.folder, env=self.env, stdout=subprocess.PIPE, text=True, check=False
        )
        if done.stdout.strip():
            print(done.stdout.rstrip(), flush=True)
        self.expect(done.returncode == exits, f"{shlex.split(command)[:3]} exits with {exits}, not {done.returncode}")
        return done.stdout

    def show(self, command: str) -> list[str]:
        """Print a command; return its words."""
        console.print(f"$ {command}", style="cyan", markup=False, highlight=False, soft_wrap=True)
        return shlex.split(command)

    def expect(self, is_so: bool, claim: str) -> None:  # noqa: FBT001  the claim follows
        """Remember a claim that is wrong."""
        if not is_so:
            self.complaints.append(claim)
            console.print(f"NOT SO: {claim}", style="red", markup=False)

    def wait_until(self, predicate: Callable[[], object], claim: str, pause: float = 0.05) -> bool:
        """Wait for something; whether it came."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not (found := bool(predicate())) and time.monotonic() < deadline:
            time.sleep(pause)
        self.expect(found, claim)
        return found

    @property
    def total(self) -> int:
        """How many jobs the batch has now."""
        try:
            return self.fleet.batch(BATCH).counts.total
        except BatchUnknown:
            return 0


def look_first(night: Night) -> None:
    """Show the input and a dry run."""
    count = len(night.cases)
    night.step("1. A table of cases", f"{count} rows; each becomes one job that runs solve.py with its files.")
    subprocess.run(night.show("head -4 cases.csv"), cwd=night.folder, check=True)
    night.step(
        "2. See it first", "--dry-run checks every row, shows the first jobs and the limits, and queues nothing."
    )
    out = night.run(SUBMIT.replace(" -- ", " --dry-run -- "))
    night.expect(f"jobs          {count}\n" in out, f"the dry run counts {count} jobs")


def kill_producer(night: Night) -> None:
    """Kill the submit when a part of the jobs is queued, then type it again."""
    night.step(
        "3. The producer is killed half-way",
        "kill -9 hits the submit while it queues. --idempotent makes it safe to type it again: each job is queued once.",
    )
    with subprocess.Popen(night.show(SUBMIT), cwd=night.folder, env=night.env) as producer:
        try:
            night.wait_until(lambda: night.total or producer.poll() is not None, "jobs are queued", 0.001)
        finally:
            producer.kill()
    queued = night.total
    console.print(f"killed; {queued} of {len(night.cases)} jobs were queued")
    night.expect(queued > 0, "some jobs were queued when it died")
    night.run(SUBMIT)
    night.expect(night.total == len(night.cases), f"the batch has {len(night.cases)} jobs, not {night.total}")


def kill_worker(night: Night, worker: subprocess.Popen[bytes]) -> None:
    """Kill the second worker while a slow job runs on it."""
    night.step(
        "4. A worker is killed",
        f"kill -9 hits one of the two workers. Its jobs start on the other one {LEASE_SECONDS} seconds later.",
    )
    mark = f".{worker.pid}"

    def runs_there() -> bool:
        slow = night.fleet.batch(BATCH).find_jobs(labels={"kind": "slow"}, states=["running"])
        return any(job.attempts and job.attempts[-1].worker.endswith(mark) for job in slow)

    if night.wait_until(runs_there, "a slow job runs on the second worker"):
        night.show(f"kill -9 {worker.pid}")
        worker.kill()


def read_live(night: Night) -> None:
    """Follow one job that prints slowly."""
    night.step(
        "5. One job, live", "logs -f waits for a queued job, then prints its lines as they come (submit --live)."
    )
    *_, last = night.fleet.batch(BATCH).find_jobs(labels={"kind": "slow"})
    out = night.run(f"sandfleet logs -f {last.job_id}")
    night.expect(out.count(describe_step(SLOW_STEPS)) == 1, "its last step was shown, once")


def follow(night: Night) -> None:
    """Wait for the end and see what failed."""
    night.step("6. Follow it", "batch watch draws a bar on a terminal. Elsewhere it prints a line now and then.")
    watch = night.show(f"sandfleet batch watch {BATCH}")
    subprocess.run(watch, env=night.env, check=False, timeout=DEADLINE_SECONDS)
    night.step("7. What failed, and why", "batch show groups by code; jobs lists; show tells all about one job.")
    night.run(f"sandfleet batch show {BATCH}")
    out = night.run(f"sandfleet jobs --batch {BATCH} --code EXIT_NONZERO -n 3")
    job_id = night.run(f"sandfleet jobs --batch {BATCH} --code EXIT_NONZERO -q -n 1").strip()
    night.expect(job_id[:8] in out, "both lists begin with the same job")
    out = night.run(f"sandfleet show {job_id}")
    night.expect("ZeroDivisionError" in out, "the job's stderr says what went wrong")
    counts = Counter({CODES[kind]: 0 for kind in CODES})
    for case in night.cases:
        counts[CODES[case.kind]] += 1
    found = night.fleet.batch(BATCH).codes
    night.expect(dict(found) == dict(counts), f"the codes are {dict(counts)}, not {dict(found)}")


def retry(night: Night) -> None:
    """Give what ran out of memory more of it."""
    night.step("8. Retry with more memory", "Only the jobs that ran out of memory run again, with 256 MiB.")
    command = f"sandfleet batch retry {BATCH} --code OUT_OF_MEMORY --set resources.memory_bytes=256MiB"
    night.run(f"{command} --dry-run")
    night.run(command)
    night.run(f"sandfleet batch wait {BATCH} --quiet", exits=1)
    found = night.fleet.batch(BATCH).codes
    night.expect("OUT_OF_MEMORY" not in found, "none runs out of memory any more")


def read_results(night: Night, words: list[str]) -> None:
    """Read the table by pandas and compare every row with what must be in it."""
    import pandas as pd

    night.step("9. Results", "One row for each job, in the order of the table; pandas reads it.")
    night.run(f"sandfleet batch results {BATCH} -o night.parquet --columns {COLUMNS}")
    frame = pd.read_parquet(night.folder / "night.parquet")
    console.print(frame.groupby(["labels.kind", "code"]).agg(jobs=("code", "size"), seconds=("duration", "mean")))
    rows: list[dict[str, Any]] = frame.to_dict("records")
    night.expect(len(rows) == len(night.cases), f"{len(night.cases)} rows, not {len(rows)}")
    for line, (case, row) in enumerate(zip(night.cases, rows, strict=False), 2):
        code = "OK" if case.kind == "large" else CODES[case.kind]
        seen = (row["labels.name"], row["labels.kind"], row["code"], row["run"])
        wanted = (f"cases.csv:{line}", case.kind, code, 2 if case.kind == "large" else 1)
        night.expect(seen == wanted, f"case {case.case} is {wanted}, not {seen}")
        if code == "OK":
            night.expect(row["stdout"] == expect_output(case, words), f"case {case.case} prints its answer")
    again = [row for row in rows if any(attempt["code"] == "WORKER_LOST" for attempt in row["attempts"])]
    console.print(f"{len(again)} jobs were on the killed worker; each started again, and says so in `attempts`")
    night.expect(1 <= len(again) <= os.cpu_count() * 2, f"the killed worker had jobs, {len(again)}")  # type: ignore[operator]


def hear_webhooks(night: Night, receiver: Receiver) -> None:
    """See that the receiver was told twice: at the end, and after the retry."""
    night.step("10. Be told", "A webhook came at the batch's end, and one after the retry; both signatures are right.")
    night.wait_until(lambda: len(receiver.received) == WEBHOOKS, "two webhooks came")
    for data in receiver.received:
        print(json.dumps(data), flush=True)
    codes = [data["codes"] for data in receiver.received]
    large = count_kinds(night.cases)["large"]
    night.expect([code.get("OUT_OF_MEMORY", 0) for code in codes] == [large, 0], f"they tell of {large}, then of 0")
    night.expect(receiver.refused == 0, "no signature was wrong")


def spend_night(folder: Path, count: int) -> list[str]:
    """Run all steps; return what was not as it must be."""
    cases, env = new_cases(count), stack_environment(folder)
    env["PATH"] = f"{SCRIPTS}{os.pathsep}{env['PATH']}"
    words = write_files(folder, cases)
    shutil.copy(Path(__file__).with_name("solve.py"), folder)
    secret = folder / "ci.secret"
    subprocess.run(
        ["sandfleet-web", "notify", "new-secret", str(secret)], env=env, check=True, stdout=subprocess.DEVNULL
    )
    with ExitStack() as parts:
        receiver = parts.enter_context(open_receiver(secret))
        console.print("starting Redis, two workers, the sender of webhooks and a receiver on this machine")
        endpoint = {"URL": receiver.url, "SECRET_FILE": str(secret), "ALLOW_PRIVATE": "true"}
        more = {f"SANDFLEET_WEB__ENDPOINTS__CI__{name}": value for name, value in endpoint.items()}
        settings = parts.enter_context(embedded_stack(folder, more))
        second = [str(SCRIPTS / "sandfleet-worker"), "start"]
        other = env | {"SANDFLEET_SLOTS_DIR": str(folder / "slots-2")}  # as if it were another host
        worker = parts.enter_context(running(second, other, folder / "second.log"))
        wait_for_line("action=worker_ready", worker, folder / "second.log")
        night = Night(folder, cases, settings, env)
        parts.callback(night.fleet.close)
        night.show(f"export SANDFLEET_LOCAL_DIR={env['SANDFLEET_LOCAL_DIR']}")
        look_first(night)
        kill_producer(night)
        kill_worker(night, worker)
        read_live(night)
        follow(night)
        retry(night)
        read_results(night, words)
        hear_webhooks(night, receiver)
    left = find_left(folder)
    night.expect(not left, f"no process is left: {left}")
    return night.complaints


def main() -> int:
    """Run the demo; return the exit code."""
    parser = argparse.ArgumentParser(description="A night's batch, in minutes.")
    parser.add_argument("--cases", type=int, default=500)
    count = parser.parse_args().cases
    if os.geteuid() != 0:
        console.print("the demo starts sandboxes with limits: run it as root")
        return 1
    try:
        import pandas as pd  # noqa: F401
        import pyarrow as pa  # noqa: F401
    except ImportError as error:
        console.print(f"{error.name} is missing: pip install 'sandfleet\\[pandas]' reads the table of results")
        return 1
    add_python_image()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sandfleet-night-") as folder:
        complaints = spend_night(Path(folder), count)
    if complaints:
        console.print(f"\n[red]{len(complaints)} things are not as they must be[/red]")
        return 1
    console.print(f"\nall of it is as it must be; the night took {time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sys.exit(main())
