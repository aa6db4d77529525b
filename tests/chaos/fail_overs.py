"""Fail Redis over again and again while batches run, and count what is lost, repeated and told.

Run it by `make test-redis`. A primary, two replicas and three sentinels, two workers, a producer. In
each round the primary is killed in the middle of a batch, and started again as a replica. In every
second round the replicas are stopped for some seconds before: then Redis really loses its last
seconds. It ends with 1 where an accepted job has not ended once, or where a job started twice and
nothing says so.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from sandfleet import Fleet, FleetUnavailable, Settings
from sandfleet_config.queues import KEY_PREFIX, job_key
from sandfleet_worker.sandbox.image.store import ImageStore

sys.path.append(str(Path(__file__).parents[1] / "support"))
from cgrouptree import CGROUP_PARENT, remove_parents
from redis_servers import Cluster
from releases import choose_release
from stage import Stage
from stand_in import shell
from waiting import wait_until

if TYPE_CHECKING:
    from redis_servers import Server
    from sandfleet import Outcome

SUBMITS, JOBS_A_SUBMIT = 20, 10
END_SECONDS = 120.0
TELL_SECONDS = 20.0
"""A worker tells of a lost run with a beat."""


class Rounds:
    """Batches on one fleet, each with a fail-over."""

    def __init__(self, cluster: Cluster, stage: Stage, seed: int) -> None:
        self._cluster, self._stage, self._random = cluster, stage, random.Random(seed)  # noqa: S311  no secret
        self._settings = Settings.model_validate({"redis_url": cluster.url})
        self.totals: Counter[str] = Counter()
        self.faults: list[str] = []

    def run(self, number: int) -> Counter[str]:
        """Run one batch with a fail-over in it; return the round's counts."""
        accepted: list[str] = []
        batch, loses = f"round-{number}", number % 2 == 1
        with Fleet(self._settings) as fleet:
            thread = threading.Thread(target=self._submit, args=(fleet, batch, accepted))
            thread.start()
            time.sleep(self._random.uniform(0.5, 3))
            old = self._fail_over(loses=loses)
            thread.join()
            outcomes = {outcome.job_id: outcome for outcome in fleet.as_completed(accepted, timeout=END_SECONDS)}
            self._check(fleet, batch, accepted, outcomes)
        counts = self._count(accepted, outcomes) | Counter(lossy=int(loses))
        old.start()
        wait_until(self._is_whole, 30, "the old primary follows the new one")
        self.totals += counts
        return counts

    def _submit(self, fleet: Fleet, batch: str, accepted: list[str]) -> None:
        for part in range(SUBMITS):
            specs = [
                shell(f"sleep {self._random.uniform(0, 0.4):.2f}", idempotency_key=f"{batch}-{part}-{at}")
                for at in range(JOBS_A_SUBMIT)
            ]
            while True:
                try:
                    accepted += [job.id for job in fleet.submit_many(specs, batch=batch)]
                except FleetUnavailable:
                    self.totals["submits refused"] += 1
                else:
                    break
            time.sleep(0.15)

    def _fail_over(self, *, loses: bool) -> Server:
        old = self._cluster.find_primary()
        replicas = [server for server in self._cluster.servers if server is not old]
        for server in replicas if loses else ():
            os.kill(server.process.pid, signal.SIGSTOP)
        time.sleep(2.5 if loses else 0)
        old.kill()
        for server in replicas if loses else ():
            os.kill(server.process.pid, signal.SIGCONT)
        wait_until(lambda: self._cluster.find_primary() is not old, 60, "there is a new primary")
        return old

    def _check(self, fleet: Fleet, batch: str, accepted: list[str], outcomes: dict[str, Outcome]) -> None:
        if missing := set(accepted) - outcomes.keys():
            self.faults.append(f"{batch}: {len(missing)} accepted jobs have no outcome, such as {min(missing)}")
        if codes := {outcome.code.value for outcome in outcomes.values()} - {"OK"}:
            self.faults.append(f"{batch}: other codes than OK: {codes}")
        counts = fleet.batch(batch).counts
        if (counts.total, counts.done) != (len(set(accepted)), len(set(accepted))):
            self.faults.append(f"{batch}: {len(set(accepted))} jobs were accepted, the batch has {counts}")

    def _count(self, accepted: list[str], outcomes: dict[str, Outcome]) -> Counter[str]:
        log = "".join(worker.log for worker in self._stage.workers)
        repeated = {job_id for job_id in accepted if log.count(f"action=job_started job_id={job_id}") > 1}
        told = {job_id for job_id, outcome in outcomes.items() if len(outcome.attempts) > 1}
        with self._cluster.find_primary().connect() as client:
            until = time.monotonic() + TELL_SECONDS
            while repeated - told and time.monotonic() < until:
                stream: Any = client.xrange(f"{KEY_PREFIX}duplicates")
                told |= {fields[b"job"].decode() for _, fields in stream}
                time.sleep(0.5)
            running = [job_id for job_id in accepted if client.hget(job_key(job_id), "state") != b"ended"]
        if silent := repeated - told:
            self.faults.append(f"{len(silent)} jobs started twice, and nothing says so, such as {min(silent)}")
        if running:
            self.faults.append(f"{len(running)} jobs have an outcome and have not ended")
        if dead := [worker.process.returncode for worker in self._stage.workers if worker.process.poll() is not None]:
            self.faults.append(f"workers have ended: {dead}")
        counts = {"accepted": len(set(accepted)), "outcomes": len(outcomes)}
        return Counter(counts | {"repeated": len(repeated), "told": len(repeated & told)})

    def _is_whole(self) -> bool:
        with self._cluster.find_primary().connect() as client:
            info: dict[str, Any] = client.info("replication")
        return sum(1 for name, value in info.items() if name.startswith("slave") and value["state"] == "online") == 2


def main() -> int:
    """Run the rounds that the command line asks for."""
    parser = argparse.ArgumentParser(description="Fail Redis over while batches run.")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--seed", type=int, default=14)
    parser.add_argument("--images", type=Path, required=True)
    options = parser.parse_args()
    choose_release()
    ImageStore(options.images).add("busybox")
    console = Console()
    with tempfile.TemporaryDirectory(prefix="sft-") as folder, Cluster(Path(folder)) as cluster:
        host = Path(folder) / "host"
        host.mkdir()
        stage = Stage(host, options.images, cluster.url, cluster.servers[0].connect())
        rounds = Rounds(cluster, stage, options.seed)
        try:
            for _ in range(2):
                stage.start(3, SANDFLEET_LEASE_SECONDS="6").wait_ready()
            for number in range(options.rounds):
                console.print(f"round {number}: {dict(rounds.run(number))}")
        finally:
            stage.close()
            if rounds.faults:
                console.print("".join(worker.log[-4000:] for worker in stage.workers), markup=False)
            remove_parents(CGROUP_PARENT)
    console.print(f"in all: {dict(rounds.totals)}")
    for fault in rounds.faults:
        console.print(f"[red]{fault}[/red]")
    return 1 if rounds.faults else 0


if __name__ == "__main__":
    sys.exit(main())
