"""Read the facts of the audit: outcomes, runs, attempts from Redis, starts from workers' logs."""

from __future__ import annotations

import contextlib
import math
import re
import socket
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from sandfleet import JobUnknown
from sandfleet_config.queues import KEY_PREFIX, job_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import redis
    from harms import Harm
    from retries import Retries
    from sandfleet import Fleet, Outcome
    from sandfleet_config.codes import ErrorCode
    from sandfleet_config.outcome import Attempt
    from stage import Stage, Worker

STARTED = re.compile(r" starts(?: \(run (\d+)\))?: .* action=job_started job_id=(\S+)$", re.MULTILINE)
WITHDRAWN = re.compile(r" action=job_withdrawn job_id=(\S+)$", re.MULTILINE)


class Run(NamedTuple):
    """One run of one job."""

    job_id: str
    number: int

    def __str__(self) -> str:
        return self.job_id if self.number == 1 else f"{self.job_id} (run {self.number})"


EARLIER_WORDS = ("and no try is left (", "kept the job from starting: see the worker's log")
"""Parts of messages that only e5bcdee writes."""


@dataclass(frozen=True)
class AuditFacts:
    """The accepted jobs, and what Redis and the logs say of them.

    `expected`: job id to the code of its program.
    """

    client: redis.Redis
    fleet: Fleet
    stage: Stage
    batches: Iterable[str]
    expected: Mapping[str, ErrorCode]
    retries: Retries
    max_attempts: int
    once: set[str] = field(default_factory=set)
    """The jobs that may start once."""
    harms: list[Harm] = field(default_factory=list)
    """The harms that were done."""
    clockless: set[int] = field(default_factory=set)
    """Pids of workers whose wall clock was stepped; the times of their attempts are unknown."""
    earlier: set[int] = field(default_factory=set)
    """Pids of workers of a release without runs.

    It numbers each run 1, and records no start that a drain cuts.
    """

    @cached_property
    def newest(self) -> dict[str, Outcome]:
        """The outcome of each job's newest run."""
        found = [outcome for batch in self.batches for outcome in self.fleet.batch(batch).outcomes()]
        return {outcome.job_id: outcome for outcome in found}

    @cached_property
    def runs(self) -> dict[str, int]:
        """The number of runs of each accepted job, from its record."""
        pipe: Any = self.client.pipeline(transaction=False)
        for job_id in self.expected:
            pipe.hget(job_key(job_id), "run")
        return {job_id: int(raw or 1) for job_id, raw in zip(self.expected, pipe.execute(), strict=True)}

    @cached_property
    def outcomes(self) -> dict[Run, Outcome]:
        """The outcome of each run that can be read."""
        found = {Run(job_id, self.runs.get(job_id, 1)): outcome for job_id, outcome in self.newest.items()}
        for job_id, count in self.runs.items():
            for number in range(1, count):
                with contextlib.suppress(JobUnknown):  # told as an outcome that is missing
                    found[Run(job_id, number)] = self.fleet.job(job_id).outcome(timeout=0, run=number)
        return found

    @cached_property
    def starts(self) -> dict[Run, Counter[str]]:
        """The starts of each run by worker, from the logs of this release's workers, also dead."""
        found: dict[Run, Counter[str]] = {}
        for worker in self.stage.workers:
            if worker.process.pid not in self.earlier:
                for number, job_id in STARTED.findall(worker.log):
                    found.setdefault(Run(job_id, int(number or 1)), Counter())[_name(worker)] += 1
        return found

    @cached_property
    def earlier_starts(self) -> dict[str, Counter[str]]:
        """The starts of each job by earlier workers, without those that their drain cut."""
        found: dict[str, Counter[str]] = {}
        for worker in self.stage.workers:
            if worker.process.pid in self.earlier:
                log = worker.log
                starts = Counter(job_id for _, job_id in STARTED.findall(log)) - Counter(WITHDRAWN.findall(log))
                for job_id, count in starts.items():
                    found.setdefault(job_id, Counter())[_name(worker)] = count
        return found

    def find_run_numbers(self, run: int | None) -> set[int | None]:
        """Return the numbers that may stand for `run`: the earlier release calls each run 1."""
        return {run, 1} if self.earlier else {run}

    def has_earlier_end(self, outcome: Outcome) -> bool:
        """Whether a worker of the earlier release wrote the outcome.

        It did so also for a dead worker of this release: then only its words tell.
        """
        if not self.earlier:
            return False
        is_last_earlier = bool(outcome.attempts) and _read_pid(outcome.attempts[-1]) in self.earlier
        return is_last_earlier or any(words in outcome.message for words in EARLIER_WORDS)

    def find_names(self, pattern: str) -> list[str]:
        """Return the keys that match `pattern`."""
        return [key.decode() for key in self.client.scan_iter(f"{KEY_PREFIX}{pattern}", count=1000)]

    def find_span(self, attempt: Attempt) -> tuple[int, float, float]:
        """Return the worker's pid and the attempt's start and end, in s since the epoch.

        The earlier release ends the attempt of a dead worker by the clock of the worker that takes
        over, which may have been stepped.
        """
        pid = _read_pid(attempt)
        if pid in self.clockless:
            return pid, -math.inf, math.inf
        started = attempt.started.timestamp()
        ended = attempt.ended.timestamp() if attempt.ended else math.inf
        return pid, started, math.inf if self.earlier and ended < started else ended


def _read_pid(attempt: Attempt) -> int:
    return int(attempt.worker.rpartition(".")[2])


def _name(worker: Worker) -> str:
    return f"{socket.gethostname()}.{worker.process.pid}"
