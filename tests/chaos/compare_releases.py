"""Run a thousand jobs on each release of runsc; check that each ends right and leaves nothing.

Run it by `make test-releases`, which builds what is missing. For each release it starts a Redis, a
host's folders and a worker with warm sandboxes of their own. It ends with 1 where one job ended
otherwise or was started twice, and where a process, a mount, a cgroup, a folder or a key without a
TTL is left.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import SecretStr
from rich.console import Console
from rich.table import Table
from sandfleet import Fleet, Outcome, Settings
from sandfleet_config.codes import ErrorCode
from sandfleet_worker.sandbox.image.store import ImageStore

sys.path.append(str(Path(__file__).parents[1] / "support"))
sys.path.append(str(Path(__file__).parents[2] / "demo"))
from attack_jobs import ATTACKS
from cgrouptree import CGROUP_PARENT, remove_parents
from havoc import MortalRedis
from jobs import JOBS, DemoJob
from lasting import lasting_keys
from releases import GVISOR
from stage import Stage, Stock

if TYPE_CHECKING:
    from collections.abc import Iterator

EAGER = Path(__file__).parents[1] / "support/eager.py"
RELEASES = ("debian", "release-20250503.0", "bin")
"""Their folders; `bin` is the newest that the set-up built."""
JOB_TIMEOUT_SECONDS = 60
"""Timeout of jobs that do not test it, long enough for a busy machine."""
PATIENCE = 3
SLOW_EVERY = 4
"""Jobs that reach a limit of time or memory take seconds, so only one round in so many has them."""
END_SECONDS = 3600
SHOWN = 5


CASES = JOBS + ATTACKS
SLOW = {ErrorCode.TIMEOUT, ErrorCode.OUT_OF_MEMORY}


@dataclass
class Result:
    """The outcomes of the jobs on one release."""

    name: str
    version: str = ""
    ends: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    seconds: float = 0.0
    warm: int = 0
    jobs: int = 0

    def note(self, case: DemoJob, outcome: Outcome) -> None:
        """Count one job's end."""
        self.jobs += 1
        self.warm += outcome.runtime.warm
        self.version = outcome.runtime.version or self.version
        end = f"{outcome.code} {outcome.exit_code} {outcome.signal} {outcome.timed_out}"
        self.ends.setdefault(case.label, Counter())[end] += 1
        if complaint := case.complaint(outcome):
            self.faults.append(f"{case.label}: {complaint}")
        if len(outcome.attempts) > 1:
            self.faults.append(f"{case.label}: {len(outcome.attempts)} starts")


def new_jobs(count: int) -> list[DemoJob]:
    """Return so many jobs, all cases in turn; those that take seconds less often."""
    jobs: list[DemoJob] = []
    for number in itertools.count():
        jobs += [case for case in CASES if number % SLOW_EVERY == 0 or ErrorCode(case.code) not in SLOW]
        if len(jobs) >= count:
            return jobs[:count]
    raise AssertionError


@contextmanager
def new_stage(folder: Path, images: Path) -> Iterator[Stage]:
    """Yield a host with its own Redis; at its end no worker and no Redis runs."""
    for name in ("redis", "host"):
        (folder / name).mkdir(parents=True)
    server = MortalRedis(folder / "redis")
    stage = Stage(folder / "host", images, server.url, server.client)
    try:
        yield stage
    finally:
        stage.close()
        remove_parents(CGROUP_PARENT)
        server.close()


def choose_timeout(case: DemoJob) -> float:
    """Return the timeout, longer than the demo's.

    On a busy machine a program needs a second until it ignores SIGTERM.
    """
    return PATIENCE * float(case.more.get("timeout", JOB_TIMEOUT_SECONDS / PATIENCE))


def run_jobs(stage: Stage, jobs: list[DemoJob], result: Result) -> None:
    """Submit all jobs, wait for them, and note how each ended."""
    stock = Stock(stage.redis_url, stage.redis)
    with Fleet(Settings(redis_url=SecretStr(stage.redis_url))) as fleet:
        specs = [{**case.to_spec(), "timeout": choose_timeout(case)} for case in jobs]
        # What submit refuses is forged: the host's own policy is what is asked here.
        forged = {
            stock.submit(*case.command, fields=spec): case
            for case, spec in zip(jobs, specs, strict=True)
            if case.code == ErrorCode.SECURITY_VIOLATION
        }
        others = [
            (case, spec) for case, spec in zip(jobs, specs, strict=True) if case.code != ErrorCode.SECURITY_VIOLATION
        ]
        submitted = fleet.submit_many([spec for _, spec in others], batch="releases")
        cases = dict(zip((job.id for job in submitted), (case for case, _ in others), strict=True))
        for job in submitted:
            if cases[job.id].code == ErrorCode.CANCELLED:
                job.cancel()
        for outcome in fleet.as_completed(submitted, timeout=END_SECONDS):
            result.note(cases[outcome.job_id], outcome)
        for job_id, case in forged.items():
            result.note(case, Outcome.model_validate(stock.outcome(job_id)))
    stock.app.close()


def try_release(name: str, folder: Path, images: Path, jobs: list[DemoJob], concurrency: int) -> Result:
    """Run the jobs on one release."""
    result = Result(name)
    with new_stage(folder, images) as stage:
        own = {"SANDFLEET_RUNSC__PATH": str(GVISOR / name / "runsc"), "SANDFLEET_POLICY__ALLOW_ROOT": "true"}
        worker = stage.start(concurrency, program=(str(EAGER), "start"), **own)
        worker.wait_ready()
        started = time.monotonic()
        run_jobs(stage, jobs, result)
        result.seconds = time.monotonic() - started
        if code := worker.stop():
            result.faults.append(f"the worker ended with {code}: {worker.log[-2000:]}")
        result.faults += [f"left on the host: {left}" for left in stage.find_leftovers()]
        result.faults += [f"left in Redis without a TTL: {key}" for key in lasting_keys(stage.redis)]
        held = list(stage.redis.scan_iter("sandfleet:claims:*"))
        result.faults += [f"left in Redis: {key.decode()}" for key in held]
    return result


def report(results: list[Result], console: Console) -> bool:
    """Print how the jobs ended on each release.

    Return whether they ended alike, as they must, and left nothing.
    """
    table = Table("job", "times", "must end as", *(result.version or result.name for result in results))
    is_good = not any(result.faults for result in results)
    for case in CASES:
        ends = [result.ends.get(case.label, Counter[str]()) for result in results]
        if not any(ends):
            continue
        wanted = " ".join(str(value) for value in (case.code, case.exit_code, case.signal, case.timed_out))
        is_good &= all(end == ends[0] for end in ends)
        shown = ["as it must" if set(end) == {wanted} else str(dict(end)) for end in ends]
        table.add_row(case.label, str(ends[0].total()), wanted.replace("None", "-"), *shown)
    table.add_section()
    table.add_row("jobs", "", "", *(str(result.jobs) for result in results))
    table.add_row("in sandboxes that were up", "", "", *(str(result.warm) for result in results))
    table.add_row("seconds (jobs/s)", "", "", *(f"{r.seconds:.0f} ({r.jobs / r.seconds:.1f})" for r in results))
    table.add_row("faults, leftovers", "", "", *(str(len(result.faults)) for result in results))
    console.print(table)
    for result in results:
        for fault in result.faults[:SHOWN]:
            console.print(f"{result.version or result.name}: {fault}", markup=False)
    return is_good


def main() -> int:
    """Run the jobs on all releases; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--jobs", type=int, default=1000, help="so many on each release")
    parser.add_argument("--concurrency", type=int, default=2 * (os.cpu_count() or 1), help="so many at once")
    parser.add_argument("--images", type=Path, help="a store that has the starter images, to save their making")
    args = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    missing = [name for name in RELEASES if not (GVISOR / name / "runsc").exists()]
    binaries = {(GVISOR / name / "runsc").resolve() for name in RELEASES}
    if missing or len(binaries) < len(RELEASES):
        console.print(f"three releases are needed in {GVISOR}, and some are missing: {missing or 'the modern one'}")
        return 1
    jobs = new_jobs(args.jobs)
    results = []
    with tempfile.TemporaryDirectory(prefix="sfr-") as folder:
        images = args.images or Path(folder) / "images"
        for name in ("busybox", "python"):
            ImageStore(images).add(name)
        for name in RELEASES:
            console.print(f"{len(jobs)} jobs on {name}")
            results.append(try_release(name, Path(folder) / name, images, jobs, args.concurrency))
    return 0 if report(results, console) else 1


if __name__ == "__main__":
    sys.exit(main())
