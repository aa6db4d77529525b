"""Workers that hang for real: each ends, and its jobs run elsewhere."""

from __future__ import annotations

import resource
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import stalling
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_worker.delivery.worker_exit import EXIT_LOST, EXIT_STALLED
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterable

    from havoc import Havoc
    from stage import Worker

LEASE_SECONDS = 2.0
MARGIN_SECONDS = 2.0
BOOT_SECONDS = 2


class Stalling:
    """A worker that hangs in `place` when told to, and one that does not, each with own slots."""

    def __init__(self, havoc: Havoc, place: str, concurrency: int, **settings: str) -> None:
        self.file = havoc.stage.folder / "hang"
        program = [str(Path(stalling.__file__)), place, str(self.file), "start"]
        given = {"SANDFLEET_LEASE_SECONDS": f"{LEASE_SECONDS:g}"} | settings
        self.worker: Worker = havoc.stage.start(concurrency, program=program, **given)

    def wait_ready(self) -> Stalling:
        self.worker.wait_ready()
        return self

    def hang(self) -> None:
        self.file.touch()


def of_its_own(havoc: Havoc, name: str) -> dict[str, str]:
    """Return settings by which a worker shares neither queue nor slots with others."""
    slots = str(havoc.stage.folder / f"slots-{name}")
    return {"SANDFLEET_QUEUE": name, "SANDFLEET_QUEUES": name, "SANDFLEET_SLOTS_DIR": slots}


def start_others(havoc: Havoc, count: int) -> list[Worker]:
    settings = {"SANDFLEET_LEASE_SECONDS": f"{LEASE_SECONDS:g}"}
    others = [
        havoc.stage.start(2, SANDFLEET_SLOTS_DIR=str(havoc.stage.folder / f"other-slots-{number}"), **settings)
        for number in range(count)
    ]
    for other in others:
        other.wait_ready()
    time.sleep(LEASE_SECONDS + 1.5)  # they must know the fleet for a lease before they take anybody over
    return others


def start_other(havoc: Havoc) -> Worker:
    (other,) = start_others(havoc, 1)
    return other


def start_with_jobs(havoc: Havoc, places: Iterable[str]) -> tuple[dict[str, Stalling], dict[str, str]]:
    """Start a worker for each place, with a queue of its own and one running job."""
    # A slot more than jobs: each worker keeps looking for work.
    stalled = {place: Stalling(havoc, place, 2, **of_its_own(havoc, place)) for place in places}
    for one in stalled.values():
        one.wait_ready()
    # Long enough for the others to start on a busy machine; the second run ends at the same moment.
    script = f"while [ $(date +%s) -lt {int(time.time()) + 25} ]; do sleep 0.2; done"
    jobs = {place: havoc.stock.submit("sh", "-c", script, queue=place) for place in stalled}
    havoc.wait_started(*jobs.values())
    return stalled, jobs


def test_a_worker_that_consumes_no_more_ends_and_its_jobs_run_elsewhere(havoc: Havoc) -> None:
    """Three workers at once: each has a queue of its own and hangs in another place."""
    said = {"rotation": "the claimer has made", "slots": "the claimer has made", "loop": "Celery's loop"}
    stalled, jobs = start_with_jobs(havoc, said)
    their_own = {process.pid for process in havoc.stage.find_sentries()}
    # No worker holds two jobs that may have killed theirs.
    others = {str(worker.process.pid) for worker in start_others(havoc, len(jobs))}

    for one in stalled.values():
        one.hang()

    for place, job in jobs.items():
        victim = stalled[place].worker
        assert victim.process.wait(stalling.STALL_SECONDS + MARGIN_SECONDS) == EXIT_STALLED
        line = next(line for line in victim.log.splitlines() if "action=worker_stalled" in line)
        assert said[place] in line
        wait_until(lambda: len(havoc.attempts(job)) == 2, LEASE_SECONDS + 1, "its job is taken over")  # noqa: B023
        wait_until(lambda: havoc.starts(job) == 2, LEASE_SECONDS + 1, "its job runs elsewhere")  # noqa: B023
    wait_until(
        lambda: their_own.isdisjoint(process.pid for process in havoc.stage.find_sentries()),
        10,
        "their sandboxes died with them",
    )
    for place, job in jobs.items():
        attempts = havoc.outcome(job, 40)["attempts"]
        assert [attempt["code"] for attempt in attempts] == ["WORKER_LOST", "OK"]
        first, second = (attempt["worker"].rpartition(".")[2] for attempt in attempts)
        assert first == str(stalled[place].worker.process.pid)
        assert second in others
        havoc.assert_ended_once(job)


def test_a_worker_whose_thread_fails_lets_its_jobs_end_and_exits(havoc: Havoc) -> None:
    """Two workers at once, a queue each; in each another thread fails."""
    threads = ("claimer", "sweeper")
    failing = {thread: Stalling(havoc, f"failing {thread}", 2, **of_its_own(havoc, thread)) for thread in threads}
    for one in failing.values():
        one.wait_ready()
    jobs = {thread: havoc.stock.submit("sleep", "4", queue=thread) for thread in threads}
    havoc.wait_started(*jobs.values())

    for one in failing.values():
        one.hang()

    for thread, one in failing.items():
        assert one.worker.process.wait(20) == EXIT_STALLED
        assert f"the thread {thread} has failed with KeyError" in one.worker.log
        assert havoc.outcome(jobs[thread])["attempts"][0]["worker"].endswith(f".{one.worker.process.pid}")
    havoc.assert_each_once(list(jobs.values()), 1)
    assert havoc.stage.find_leftovers() == []
    later = havoc.submit("true")
    havoc.start(1)
    havoc.assert_each_once([later])


def test_a_worker_whose_lease_fails_ends_at_once_and_its_jobs_run_elsewhere(havoc: Havoc) -> None:
    failing = Stalling(havoc, "failing lease", 2).wait_ready()
    job = havoc.submit("sleep", "12")
    havoc.wait_started(job)
    other = start_other(havoc)

    failing.hang()

    assert failing.worker.process.wait(LEASE_SECONDS + stalling.EXIT_SECONDS) == EXIT_STALLED
    wait_until(lambda: havoc.starts(job) == 2, LEASE_SECONDS + 1, "it runs elsewhere")
    outcome = havoc.outcome(job, 30)
    assert (outcome["code"], outcome["attempts"][-1]["worker"]) == ("OK", f"{outcome['host']}.{other.process.pid}")
    havoc.assert_ended_once(job)


def test_a_worker_whose_lease_hangs_or_whose_log_is_blocked_ends_and_its_jobs_run_elsewhere(havoc: Havoc) -> None:
    """Two workers at once, a queue each: nobody reads the stderr of one."""
    stalled, jobs = start_with_jobs(havoc, ("lease", "log"))
    start_others(havoc, len(jobs))

    for one in stalled.values():
        one.hang()
    stderr = Path(f"/proc/{stalled['log'].worker.process.pid}/fd/2")
    wait_until(lambda: str(stderr.readlink()).startswith("pipe:"), 10, "nobody reads its log")
    unheard = havoc.stock.submit("sleep", "1", queue="log", fields={"timeout": 3600})

    for one in stalled.values():
        # A last line may take its two seconds before the end.
        assert one.worker.process.wait(2 * stalling.STALL_SECONDS + LEASE_SECONDS + 2 * MARGIN_SECONDS) == EXIT_STALLED
    assert "the lease has made no progress" in stalled["lease"].worker.log
    for job in (*jobs.values(), unheard):
        codes = [attempt["code"] for attempt in havoc.outcome(job, 60)["attempts"]]
        assert codes == ["WORKER_LOST"] * (len(codes) - 1) + ["OK"]
        havoc.assert_ended_once(job)
    assert [attempt["code"] for attempt in havoc.outcome(jobs["log"])["attempts"]] == ["WORKER_LOST", "OK"]


def test_a_worker_that_loses_its_lease_before_its_consumer_has_started_ends(havoc: Havoc) -> None:
    """Once Celery cannot begin, and the deadline ends it.

    Once it begins soon after, and ends in order.
    """
    for is_late in (True, False):
        program = [str(Path(stalling.__file__)), "late consumer", str(havoc.stage.folder / f"begin-{is_late}"), "start"]
        worker = havoc.stage.start(1, program=program, SANDFLEET_LEASE_SECONDS=f"{LEASE_SECONDS:g}")
        wait_until(lambda: "the consumer waits" in worker.log, 60, "it has its lease")  # noqa: B023
        havoc.redis.delete(f"{KEY_PREFIX}owners")
        wait_until(lambda: "action=lease_lost" in worker.log, LEASE_SECONDS, "it hears of it")  # noqa: B023
        if not is_late:
            (havoc.stage.folder / f"begin-{is_late}").touch()

        assert worker.process.wait(stalling.EXIT_SECONDS + 3) == EXIT_LOST
        assert ("could not end in order" in worker.log) is is_late


def test_a_worker_without_descriptors_waits_and_goes_on(havoc: Havoc) -> None:
    worker = havoc.start(2)
    running = havoc.submit("sleep", "5")
    havoc.wait_started(running)
    before = resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE)

    resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, (10, before[1]))
    queued = havoc.submit("true")
    wait_until(lambda: "action=claims_interrupted" in worker.log, 10, "the claimer has no descriptor")
    time.sleep(LEASE_SECONDS + 1)
    assert worker.process.poll() is None, worker.log
    assert havoc.redis.zcard(f"{KEY_PREFIX}owners") == 1
    resource.prlimit(worker.process.pid, resource.RLIMIT_NOFILE, before)

    havoc.assert_each_once([running], 30)
    # The claimer may have had its slot already: then the job's sandbox met the lack, and it was
    # tried again.
    ended = havoc.outcome(queued, 30)
    assert ended["code"] == "OK"
    codes = [attempt["code"] for attempt in ended["attempts"]]
    assert codes == ["HOST_RESOURCES"] * (len(codes) - 1) + ["OK"]
    assert worker.log.count("action=claims_interrupted") == worker.log.count("action=claims_resumed") >= 1
    assert worker.process.poll() is None


def hanging_job(havoc: Havoc, **options: str) -> str:
    fields = {"labels": {stalling.HANGING_LABEL: "yes"}, "timeout": 2, "grace": 0}
    return havoc.stock.submit("sleep", "1", fields=fields, **options)


def test_a_job_that_hangs_in_its_worker_runs_elsewhere_and_costs_the_others_nothing(havoc: Havoc) -> None:
    stalled = Stalling(havoc, "job", 2, SANDFLEET_RUNSC__BOOT_DEADLINE_SECONDS=str(BOOT_SECONDS)).wait_ready()
    stalled.hang()
    beside = havoc.submit("sleep", "15")
    havoc.wait_started(beside)
    hung = hanging_job(havoc)
    havoc.wait_started(hung)
    other = start_other(havoc)

    wait_until(lambda: "action=job_overdue" in stalled.worker.log, 20, "the watchdog sees it")
    assert havoc.stock.stored(beside) is None, "the other job still runs"
    later = havoc.submit("true")

    assert havoc.outcome(beside, 30)["attempts"][0]["worker"].endswith(f".{stalled.worker.process.pid}")
    assert stalled.worker.process.wait(5) == EXIT_STALLED
    again = havoc.outcome(hung, LEASE_SECONDS + 1 + 10)
    assert again["code"] == "OK"
    told = [(attempt["worker"].rpartition(".")[2], attempt["code"]) for attempt in again["attempts"]]
    assert told == [(str(stalled.worker.process.pid), "WORKER_LOST"), (str(other.process.pid), "OK")]
    havoc.assert_each_once([beside, later])


def test_a_worker_that_is_told_to_stop_ends_though_a_job_hangs(havoc: Havoc) -> None:
    """Two workers at once, a queue each: one must end at once, and one may drain."""
    numbers = (signal.SIGQUIT, signal.SIGTERM)  # in the order of their ends
    stalled = {
        number: Stalling(havoc, "job", 2, SANDFLEET_DRAIN_SECONDS="1", **of_its_own(havoc, number.name.lower()))
        for number in numbers
    }
    for one in stalled.values():
        one.wait_ready()
        one.hang()
    hung = [hanging_job(havoc, queue=number.name.lower()) for number in numbers]
    havoc.wait_started(*hung)
    time.sleep(1.5)  # their sandboxes have ended

    for number, one in stalled.items():
        one.worker.process.send_signal(number)
    for one in stalled.values():
        assert one.worker.process.wait(30) == EXIT_STALLED
        owner = f":{one.worker.process.pid}:"
        held = [name.decode() for name in havoc.redis.zrange(f"{KEY_PREFIX}owners", 0, -1)]
        assert any(owner in name for name in held), "its lease is its own until it ends"

    havoc.start(1)
    for job in hung:
        assert [attempt["code"] for attempt in havoc.outcome(job, 20)["attempts"]] == ["WORKER_LOST", "OK"]
