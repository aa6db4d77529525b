"""A worker of several processes: some die, all drain, and together they keep to what the host has."""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
from cgrouptree import CGROUP_PARENT
from pydantic import SecretStr
from sampling import Sampling
from sandfleet import Fleet, Settings
from sandfleet.channel.fleet_state import Cordon
from sandfleet.overview.hosts import group_hosts
from scrape import Scraped, free_port
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from havoc import Havoc
    from sandfleet.overview.hosts import HostState
    from stage import Worker

HOST = "large-1"
ALL_READY = "action=processes_ready"
SLOTS = 3


class Peaks(Sampling):
    """The most sandboxes of the host that had a job at once, and the most spares at once."""

    def __init__(self, havoc: Havoc) -> None:
        super().__init__()
        self._stage = havoc.stage
        self.running = self.all = 0

    def sample(self) -> None:
        self.running = max(self.running, sum(map(has_processes, self._stage.find_running())))
        self.all = max(self.all, len(self._stage.find_sentries()))


@pytest.fixture
def fleet(havoc: Havoc) -> Iterator[Fleet]:
    with Fleet(Settings(redis_url=SecretStr(havoc.stage.redis_url))) as fleet:
        yield fleet


def has_processes(cgroup: str) -> bool:
    """Whether a sandbox lives: the cgroups of one that died with its worker stay until the next sweep."""
    for folder in ("memory", ""):  # cgroup v1 and v2
        with contextlib.suppress(OSError):
            return bool(Path("/sys/fs/cgroup", folder, CGROUP_PARENT, cgroup, "cgroup.procs").read_text())
    return False


def start(havoc: Havoc, **settings: str) -> Worker:
    """Start a worker of two processes; it has no spares unless the test says so."""
    own = {"SANDFLEET_HOST": HOST, "SANDFLEET_PROCESSES": "2", "SANDFLEET_WARM__SIZE": "0"}
    worker = havoc.start(SLOTS, **(own | settings))
    wait_until(lambda: ALL_READY in worker.log or worker.process.poll() is not None, 60, "all processes are ready")
    assert worker.process.poll() is None, worker.log
    return worker


def find_processes(worker: Worker) -> dict[int, int]:
    """Return the process ids of the worker's processes, by their numbers."""
    found = {}
    for child in psutil.Process(worker.process.pid).children():
        words = child.cmdline()
        if "process" in words:
            found[int(words[words.index("process") + 1])] = child.pid
    return found


def find_host(fleet: Fleet) -> HostState:
    """Return the host; there is one row, whatever its processes are."""
    (host,) = group_hosts(fleet.state.read_summary())
    assert host.name == HOST
    return host


def wait_alone(havoc: Havoc) -> None:
    wait_until(lambda: not havoc.stage.find_sentries(), 20, "no sandbox is left")


def test_a_process_that_is_killed_under_load_loses_no_job_and_comes_back(havoc: Havoc, fleet: Fleet) -> None:
    worker = start(havoc)
    before = find_processes(worker)
    with Peaks(havoc) as peaks:
        jobs = [havoc.submit("sleep", "0.5") for _ in range(24)]
        wait_until(lambda: sum(havoc.starts(job) for job in jobs) >= 6, 40, "jobs run")
        psutil.Process(before[1]).kill()
        outcomes = {job: havoc.outcome(job, 120) for job in jobs}

    assert Counter(outcome["code"] for outcome in outcomes.values()) == {"OK": 24}
    # A process that is killed just after a claim, or after Redis has an end, writes no line about it.
    wait_until(lambda: sum(havoc.ends(job) for job in jobs) >= len(jobs) - SLOTS, 20, "the logs tell of the ends")
    for job, outcome in outcomes.items():
        codes = [attempt["code"] for attempt in outcome["attempts"]]
        assert codes[-1] == "OK"
        assert set(codes[:-1]) <= {"WORKER_LOST"}
        assert havoc.ends(job) <= 1, "it has ended once"
        assert len(codes) - (len(codes) > 1) <= havoc.starts(job) <= len(codes), "each start is told"
    lost = [job for job, outcome in outcomes.items() if len(outcome["attempts"]) > 1]
    assert len(lost) <= SLOTS, "only what ran on the killed process ran again"
    assert peaks.running == SLOTS, "the host's slots are used and never exceeded"
    wait_until(lambda: len(find_processes(worker)) == 2, 20, "the process is there again")
    after = find_processes(worker)
    assert after[1] != before[1]
    assert after[2] == before[2]
    wait_until(lambda: len(find_host(fleet).live) == 2, 20, "one row with two processes")
    assert find_host(fleet).slots == SLOTS
    assert {owner.owner.split(":")[1] for owner in find_host(fleet).live} == {str(pid) for pid in after.values()}
    assert "[1] job " in worker.log, "a line says which process wrote it"
    assert worker.stop() == 0


def test_sigterm_drains_all_processes(havoc: Havoc, fleet: Fleet) -> None:
    worker = start(havoc)
    running = [havoc.submit("sleep", "3") for _ in range(SLOTS)]
    havoc.wait_started(*running)
    queued = [havoc.submit("true") for _ in range(4)]
    processes = find_processes(worker)
    assert worker.stop() == 0

    assert [havoc.outcome(job)["code"] for job in running] == ["OK"] * SLOTS
    assert [havoc.starts(job) for job in running] == [1] * SLOTS
    assert [havoc.stock.stored(job) for job in queued] == [None] * 4, "they wait for another worker"
    assert not any(psutil.pid_exists(pid) for pid in processes.values())
    assert havoc.stage.find_leftovers() == []
    assert group_hosts(fleet.state.read_summary()) == [], "each has given its lease up"
    start(havoc)
    havoc.assert_each_once(queued)


def test_a_killed_supervisor_leaves_no_sandbox_and_its_processes_drain(havoc: Havoc) -> None:
    worker = start(havoc)
    jobs = [havoc.submit("sleep", "3") for _ in range(SLOTS)]
    havoc.wait_started(*jobs)
    processes = find_processes(worker)
    havoc.kill(worker)

    havoc.assert_each_once(jobs)
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in processes.values()), 40, "the processes have ended")
    wait_alone(havoc)
    assert havoc.stage.find_leftovers() == []


@pytest.mark.timeout(600)
def test_the_processes_share_the_spares_and_serve_metrics_each(havoc: Havoc, fleet: Fleet) -> None:
    port = free_port()
    settings = {"SANDFLEET_WARM__SIZE": "3", "SANDFLEET_WARM__IMAGES": "busybox", "SANDFLEET_METRICS__PORT": str(port)}
    worker = start(havoc, **settings)
    with Peaks(havoc) as peaks:
        # They boot only while half a core is idle.
        wait_until(lambda: sum(find_host(fleet).warm.values()) == 3, 240, "the spares are up")
        assert sorted(sum(process.warm.values()) for process in find_host(fleet).live) == [1, 2]
        jobs = [havoc.submit("sleep", "0.3") for _ in range(12)]
        havoc.assert_each_once(jobs, 60)
        wait_until(lambda: len(havoc.stage.find_sentries()) <= 3, 60, "no more than the spares are left")
        time.sleep(2)
        assert len(havoc.stage.find_sentries()) <= 3
    assert peaks.running <= SLOTS
    assert peaks.all <= 2 * SLOTS + 3, "spares, jobs, and the sandboxes that end while the next ones boot"

    ended = [Scraped.read(at).value("sandfleet_jobs_ended_total", code="OK") for at in (port, port + 1)]
    assert sum(ended) == 12, "each process counts its own"
    assert worker.stop() == 0


def test_sighup_restarts_the_processes_while_jobs_run(havoc: Havoc) -> None:
    worker = start(havoc)
    before = find_processes(worker)
    jobs = [havoc.submit("sleep", "0.5") for _ in range(20)]
    havoc.wait_started(jobs[0])
    worker.process.send_signal(signal.SIGHUP)
    wait_until(lambda: worker.log.count("action=process_renewed") == 2, 90, "both are new")

    havoc.assert_each_once(jobs, 60)
    wait_until(lambda: worker.log.count("action=worker_ready") == 4, 60, "both are ready")
    after = find_processes(worker)
    assert len(after) == 2
    assert not set(after.values()) & set(before.values())
    assert worker.stop() == 0


def test_a_drain_of_the_host_reaches_all_processes(havoc: Havoc, fleet: Fleet) -> None:
    start(havoc)
    jobs = [havoc.submit("sleep", "2") for _ in range(SLOTS)]
    havoc.wait_started(*jobs)
    now = time.time()
    fleet.state.cordon(Cordon(HOST, "ann", now, "a new kernel", now + 30))

    wait_until(lambda: find_host(fleet).state == "drained", 30, "all of them are drained")
    havoc.assert_each_once(jobs)
    later = havoc.submit("true")
    assert find_host(fleet).state == "drained"
    assert havoc.starts(later) == 0
    fleet.state.uncordon(HOST)
    assert havoc.outcome(later)["code"] == "OK"
