"""Run an earlier release beside this one.

Each runs and reads the other's jobs, and takes over its fleet. Run it by `make test-upgrade`. It
installs the earlier commit from a git worktree into an environment of its own, starts a Redis and a
host's folders, and lets producers and workers of both releases share them: each producer with the
other's worker, both workers at once, and a fleet of one release that stops with jobs queued,
running, waiting for another try and ended, where one of the other release goes on. It ends with 1
where a job has not the one outcome that it must have, read by either release, and where something
is left in Redis without a TTL or on the host.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from sandfleet_config.queues import KEY_PREFIX, job_key
from sandfleet_worker.sandbox.image.store import ImageStore

sys.path.append(str(Path(__file__).parents[1] / "support"))
from cgrouptree import CGROUP_PARENT, remove_parents
from havoc import MortalRedis
from lasting import lasting_keys
from old_release import OldReleaseMissing, old_release
from release_pair import CASES, MAX_LOG_CHARS, Case, Producer, Release, compare
from releases import GVISOR, choose_release
from stage import Stage
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

OLD_COMMIT = "e5bcdee"
"""The last commit before runsc of 2026 and before issue 10: what fleets may run today."""
KILLED_SANDBOX = {"SANDBOX_CREATION_FAILED", "SANDBOX_EXECUTION_FAILED"}


@dataclass
class Check:
    """One check and its faults."""

    scenario: str
    what: str
    fault: str


class Upgrade:
    """The scenarios; each has a Redis and a host of its own."""

    def __init__(self, folder: Path, images: Path, old: Release, new: Release) -> None:
        self._folder, self._images = folder, images
        self.old, self.new = old, new
        self.checks: list[Check] = []
        self._scenario = ""
        self._producers: dict[str, Producer] = {}

    def run(self) -> None:
        """Run all of them."""
        for producer, worker in ((self.old, self.new), (self.new, self.old)):
            with self._stage(f"{producer.name} producer, {worker.name} worker") as stage:
                self._run_other_sides_jobs(stage, producer, worker)
        with self._stage("both workers at once") as stage:
            self._run_both(stage)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for before, after in ((self.old, self.new), (self.new, self.old)):
                with self._stage(f"{before.name} fleet ends by {number.name}, {after.name} goes on") as stage:
                    self._switch(stage, before, after, number)

    @contextmanager
    def _stage(self, scenario: str) -> Iterator[Stage]:
        """Yield a host with its own Redis; then look at what is left."""
        self._scenario = scenario
        folder = self._folder / str(len({check.scenario for check in self.checks}))
        for name in ("redis", "host"):
            (folder / name).mkdir(parents=True)
        server = MortalRedis(folder / "redis")
        stage = Stage(folder / "host", self._images, server.url, server.client)
        self._producers = {release.name: Producer(release, stage) for release in (self.old, self.new)}
        try:
            yield stage
            self._check("workers end in order", self._stop_all(stage))
            self._check("nothing stays in Redis without a TTL", find_left(stage))
            self._check("nothing stays on the host", stage.find_leftovers())
        except Exception as error:  # noqa: BLE001  the edge of a scenario: told with the workers' logs
            logs = "\n".join(worker.log[-MAX_LOG_CHARS:] for worker in stage.workers)
            self.checks.append(Check(scenario, "runs to its end", f"{type(error).__name__}: {error}\n{logs}"))
        finally:
            for producer in self._producers.values():
                producer.close()
            stage.close()
            remove_parents(CGROUP_PARENT)
            server.close()

    def _check(self, what: str, faults: list[str]) -> None:
        self.checks.append(Check(self._scenario, what, "; ".join(faults)))

    def _stop_all(self, stage: Stage) -> list[str]:
        living = [worker for worker in stage.workers if worker.process.poll() is None]
        codes = [worker.stop() for worker in living]
        return [f"{worker.log_path.name}: exit {code}" for worker, code in zip(living, codes, strict=True) if code]

    def _check_read(self, batch: str, wanted: dict[str, Case], min_attempts: int = 1) -> None:
        """Have both releases read the jobs of `batch` in every way."""
        for reader in (self.old, self.new):
            found = self._producers[reader.name].call("read", batch=batch, ids=list(wanted))
            for way in ("outcome", "as_completed", "batch.as_completed", "batch.outcomes"):
                text = f"{reader.name} reads {batch} by {way}: one outcome a job, with its code"
                self._check(text, compare(found[way], wanted, min_attempts))
            counts = [] if found["counts"] == [len(wanted)] * 2 else [f"counts are {found['counts']}"]
            if sorted(found["ids"]) != sorted(wanted):
                counts.append(f"its ids are {found['ids']}")
            self._check(f"{reader.name} counts {batch}", counts)

    def _submit(self, by: Release, batch: str, cases: list[Case]) -> dict[str, Case]:
        ids = self._producers[by.name].call("submit", batch=batch, specs=[case.spec for case in cases])
        return dict(zip(ids, cases, strict=True))

    def _cancel(self, stage: Stage, by: Release, batch: str, wanted: str) -> dict[str, Case]:
        """Submit a long job and cancel it: `wanted` is what the cancel says."""
        found = self._submit(by, batch, [Case(["sleep", "60"], "CANCELLED", None)])
        (job_id,) = found
        if wanted == "cancel requested":
            wait_until(lambda: stage.has_started(job_id), 20, "the job to cancel runs")
        said = self._producers[by.name].call("cancel", ids=[job_id])
        self._check(f"{by.name} cancels: {wanted}", [] if said == [wanted] else [f"it said {said}"])
        return found

    def _run_other_sides_jobs(self, stage: Stage, producer: Release, worker: Release) -> None:
        jobs = self._cancel(stage, producer, "all", "cancelled before it started")
        worker.start(stage)
        jobs |= self._submit(producer, "all", list(CASES))
        jobs |= self._cancel(stage, producer, "all", "cancel requested")
        self._check_read("all", jobs, min_attempts=0)

    def _run_both(self, stage: Stage) -> None:
        """Both workers are of one host: they share its slots."""
        workers = [side.start(stage) for side in (self.old, self.new)]
        for side in (self.old, self.new):
            cases = [*CASES, *(Case(["sleep", "0.3"], "OK") for _ in range(12))]
            jobs = self._submit(side, side.name, cases)
            self._check_read(side.name, jobs)
        ran = [worker.log.count("action=job_started") for worker in workers]
        self._check("both workers ran jobs", [] if all(ran) else [f"they ran {ran}"])

    def _switch(self, stage: Stage, before: Release, after: Release, number: signal.Signals) -> None:
        """Stop one release's fleet with jobs in every state; the other goes on with all of them."""
        worker = before.start(stage)
        producer = self._producers[before.name]
        ended = self._submit(before, "ended", list(CASES))
        producer.call("wait", ids=list(ended))
        # Their sandboxes are killed once: no attempt is left to the one, the other has two.
        doomed = self._submit(
            before, "doomed", [Case(["sleep", "6"], "SANDBOX_EXECUTION_FAILED", None, more={"max_attempts": 1})]
        )
        retried = self._submit(before, "retried", [Case(["sleep", "6"], "OK")])
        wait_until(
            lambda: len(stage.find_running()) >= len(doomed | retried), 30, "the sandboxes to kill have their jobs"
        )
        stage.kill_sentries()
        told = producer.call("wait", ids=list(doomed))
        # Whether the kill comes before the program's start or after decides which of the two it is.
        doomed = {job_id: Case(case.command, told[job_id]["code"], None) for job_id, case in doomed.items()}
        faults = [f"it is {case.code}" for case in doomed.values() if case.code not in KILLED_SANDBOX]
        self._check("a killed sandbox is the host's fault", faults)
        running = self._submit(before, "running", [Case(["sleep", "6"], "OK") for _ in range(2)])
        held = running | retried
        wait_until(lambda: all(is_running(stage, job_id) for job_id in held), 30, "the jobs run")
        queued = self._submit(before, "queued", list(CASES))
        queued |= self._cancel(stage, before, "queued", "cancelled before it started")
        worker.process.send_signal(number)
        worker.process.wait(60)
        left = {
            job_id for job_id in (running | queued) if not stage.redis.exists(f"{KEY_PREFIX}celery-task-meta-{job_id}")
        }
        self._check("jobs were left", [] if len(left) >= len(CASES) + 1 else [f"only {len(left)}"])

        after.start(stage)
        for batch, jobs in {"running": running, "queued": queued, "ended": ended, "retried": retried}.items():
            self._check_read(batch, jobs, min_attempts=0 if batch == "queued" else 1)
        self._check_read("doomed", doomed)
        self._requeue(stage, before, after, doomed)

    def _requeue(self, stage: Stage, before: Release, after: Release, doomed: dict[str, Case]) -> None:
        for side in (before, after):
            found, listed = self._producers[side.name].call("dead"), side.command(stage, "dead", "list")
            self._check(
                f"{side.name} lists the dead letter of {before.name}",
                [
                    f"dead.list() is {found}, dead list prints {listed}"
                    for job_id, case in doomed.items()
                    if found.get(job_id) != case.code or job_id not in listed
                ],
            )
        self._producers[after.name].call("requeue", ids=list(doomed))
        again = {job_id: Case([], "OK") for job_id in doomed}
        self._check_read("doomed", again)
        left = self._producers[after.name].call("dead")
        self._check(
            f"{after.name} requeues it",
            [f"it is still a dead letter: {left}"] if left.keys() & doomed.keys() else [],
        )


def is_running(stage: Stage, job_id: str) -> bool:
    """Whether a worker has the job now."""
    return stage.redis.hget(job_key(job_id), "state") == b"running"


def find_left(stage: Stage) -> list[str]:
    """Return keys without a TTL, claims that are not settled, and outcomes that came twice."""
    left = lasting_keys(stage.redis)
    left += [key.decode() for key in stage.redis.scan_iter(f"{KEY_PREFIX}claims:*")]
    twice: Any = stage.redis.xrange(f"{KEY_PREFIX}duplicates")
    left += [f"an outcome that came late: {fields}" for _, fields in twice if fields.get(b"kind") == b"outcome"]
    return left


def report(checks: list[Check], console: Console) -> bool:
    """Print the checks; return whether all of them passed."""
    table = Table("scenario", "checked", "")
    for check in checks:
        table.add_row(check.scenario, check.what, "[red]FAULT[/red]" if check.fault else "ok")
    console.print(table)
    faults = [check for check in checks if check.fault]
    for check in faults:
        console.print(f"{check.scenario}: {check.what}: {check.fault}", markup=False)
    console.print(f"{len(checks)} checks, {len(faults)} faults")
    return bool(checks) and not faults


def main() -> int:
    """Run all scenarios; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--commit", default=OLD_COMMIT, help="the earlier release")
    parser.add_argument("--images", type=Path, help="a store that has the starter images, to save their making")
    args = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 180)
    choose_release()
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="sfu-") as name:
        folder = Path(name)
        images = args.images or folder / "images"
        ImageStore(images).add("busybox")
        try:
            with old_release(args.commit, folder) as python:
                console.print(f"{args.commit} is installed after {time.monotonic() - started:.0f} s")
                # It does not start on runsc of 2026.
                old = Release(args.commit, str(python), {"SANDFLEET_RUNSC__PATH": str(GVISOR / "debian/runsc")})
                new = Release(
                    "new", sys.executable, {"SANDFLEET_RUNSC__PATH": os.environ.get("SANDFLEET_RUNSC__PATH", "runsc")}
                )
                upgrade = Upgrade(folder, images, old, new)
                upgrade.run()
        except OldReleaseMissing as error:
            console.print(f"the earlier release cannot be installed: {error}", markup=False)
            return 1
    console.print(f"in {time.monotonic() - started:.0f} s")
    return 0 if report(upgrade.checks, console) else 1


if __name__ == "__main__":
    sys.exit(main())
