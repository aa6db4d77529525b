"""What must hold of Redis, of the workers' logs and of the host when a fleet has come to rest, whatever was done to it."""

from __future__ import annotations

import math
import re
import socket
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from harms import explain
from lasting import lasting_keys
from sandfleet_config.errors import Category, ErrorCode
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_worker.delivery.ledger import MAX_STARTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    import redis
    from harms import Harm
    from sandfleet import Fleet, Outcome
    from sandfleet_config.outcome import Attempt
    from stage import Stage

STARTED = re.compile(r" action=job_started job_id=(\S+)$", re.MULTILINE)
SHOWN = 5
SLACK_SECONDS = 1.0
"""Between a fault and what it does to an attempt, both told in whole moments of a busy machine."""


class Finding(NamedTuple):
    """One thing that must hold, how many were looked at, and what speaks against it."""

    claim: str
    looked_at: int
    faults: Sequence[str]


@dataclass(frozen=True)
class Audit:
    """Compares what was accepted, `expected` (job id to the code its program ends with), with what there is."""

    client: redis.Redis
    fleet: Fleet
    stage: Stage
    batches: Iterable[str]
    expected: Mapping[str, ErrorCode]
    max_attempts: int
    once: set[str] = field(default_factory=set)
    """Those of the jobs that may start once."""
    harms: list[Harm] = field(default_factory=list)
    """All that was done to them."""
    clockless: set[int] = field(default_factory=set)
    """The processes of workers whose wall clock was stepped: when their attempts were is not known."""

    @cached_property
    def outcomes(self) -> dict[str, Outcome]:
        found = [outcome for batch in self.batches for outcome in self.fleet.batch(batch).outcomes()]
        return {outcome.job_id: outcome for outcome in found}

    @cached_property
    def starts(self) -> dict[str, Counter[str]]:
        """Each job's starts by worker, from the append-only logs of all workers there ever were."""
        found: dict[str, Counter[str]] = {}
        for worker in self.stage.workers:
            name = f"{socket.gethostname()}.{worker.process.pid}"
            for job_id in STARTED.findall(worker.log):
                found.setdefault(job_id, Counter())[name] += 1
        return found

    def findings(self) -> list[Finding]:
        return [
            self._each_has_one_outcome(),
            self._nothing_else_was_run(),
            self._codes_are_right(),
            self._faults_were_made(),
            self._starts_are_told(),
            self._once_is_once(),
            self._attempts_are_whole(),
            self._keys_will_go(),
            self._nothing_is_held(),
            self._host_is_clean(),
        ]

    def _names(self, pattern: str) -> list[str]:
        return [key.decode() for key in self.client.scan_iter(f"{KEY_PREFIX}{pattern}", count=1000)]

    def _each_has_one_outcome(self) -> Finding:
        client: Any = self.client
        times: Counter[str] = Counter()
        for name in self.batches:
            _ = self.fleet.batch(name).counts  # what workers of an older release have recorded is added to the stream
            # `finish.lua` adds to this stream each time that it records an outcome.
            times.update(fields[b"id"].decode() for _, fields in client.xrange(f"{KEY_PREFIX}ends:{name}"))
        faults = [f"{job_id}: {times[job_id]} outcomes" for job_id in self.expected if times[job_id] != 1]
        faults += [f"{job_id}: no outcome can be read" for job_id in self.expected if job_id not in self.outcomes]
        return Finding("every accepted job has exactly one outcome", len(self.expected), faults)

    def _nothing_else_was_run(self) -> Finding:
        known = {name.removeprefix(f"{KEY_PREFIX}job:") for name in self._names("job:*")} | set(self.starts)
        return Finding("there is no job that was not accepted", len(known), sorted(known - set(self.expected)))

    def _codes_are_right(self) -> Finding:
        faults = [
            f"{job_id}: {outcome.code}, not {self.expected.get(job_id)}: {outcome.message}"
            for job_id, outcome in self.outcomes.items()
            if outcome.code is not self.expected.get(job_id) and outcome.category is not Category.HOST
        ]
        return Finding("each ended as its program does, or by a fault that was made", len(self.outcomes), faults)

    def _faults_were_made(self) -> Finding:
        """Look at attempts: a job that ended by the host's fault failed so in its last one."""
        failed = [
            (job_id, attempt)
            for job_id, outcome in self.outcomes.items()
            for attempt in outcome.attempts
            if attempt.code and attempt.code.category is Category.HOST
        ]
        left = explain((self._span(attempt) for _, attempt in failed), self.harms, SLACK_SECONDS)
        faults = [f"{failed[at][0]}: {failed[at][1]}: {self.outcomes[failed[at][0]].message}" for at in left]
        faults += [
            f"{job_id}: INTERNAL: {outcome.message}"
            for job_id, outcome in self.outcomes.items()
            if outcome.code is ErrorCode.INTERNAL
        ]
        faults += [
            f"{job_id}: {outcome.code} without an attempt: {outcome.message}"
            for job_id, outcome in self.outcomes.items()
            if outcome.category is Category.HOST and not outcome.attempts
        ]
        return Finding(
            "each attempt with a host's code was hit by a fault that was made, each fault hit no more than it can",
            len(failed),
            faults,
        )

    def _span(self, attempt: Attempt) -> tuple[int, float, float]:
        pid = int(attempt.worker.rpartition(".")[2])
        if pid in self.clockless:
            return pid, -math.inf, math.inf
        return pid, attempt.started.timestamp(), attempt.ended.timestamp() if attempt.ended else math.inf

    def _starts_are_told(self) -> Finding:
        faults = []
        for job_id, starts in self.starts.items():
            outcome = self.outcomes.get(job_id)
            told = Counter(attempt.worker for attempt in outcome.attempts) if outcome else Counter[str]()
            faults += [f"{job_id}: {count} untold starts by {worker}" for worker, count in (starts - told).items()]
        again = sum(starts.total() - 1 for starts in self.starts.values())
        return Finding("all starts, those beyond the first too, are in attempts[]", again, faults)

    def _once_is_once(self) -> Finding:
        started = {job_id: starts.total() for job_id, starts in self.starts.items() if job_id in self.once}
        faults = [f"{job_id}: {count} starts" for job_id, count in started.items() if count > 1]
        faults += [
            f"{job_id}: {len(outcome.attempts)} attempts"
            for job_id, outcome in self.outcomes.items()
            if job_id in self.once and len(outcome.attempts) > 1
        ]
        return Finding("no job with max_attempts=1 was started twice", len(started), faults)

    def _attempts_are_whole(self) -> Finding:
        def is_whole(outcome: Outcome) -> bool:
            attempts = outcome.attempts
            return (
                0 < len(attempts) <= MAX_STARTS
                and sum(attempt.charged for attempt in attempts) <= self.max_attempts
                and all(attempt.charged or attempt.code is ErrorCode.WORKER_LOST for attempt in attempts)
                and all(attempt.code and attempt.code.category is Category.HOST for attempt in attempts[:-1])
                and attempts[-1].code is outcome.code
            )

        faults = [
            f"{job_id} ({outcome.code}): {[(item.worker, str(item.code), item.charged) for item in outcome.attempts]}"
            for job_id, outcome in self.outcomes.items()
            if not is_whole(outcome)
        ]
        count = sum(len(outcome.attempts) for outcome in self.outcomes.values())
        claim = (
            "each attempt but the last failed by the host, the last gave the outcome, no more are charged than may be"
        )
        return Finding(claim, count, faults)

    def _keys_will_go(self) -> Finding:
        faults = lasting_keys(self.client)
        count: Any = self.client.dbsize()
        return Finding("no key of a finished job lacks a TTL", count, faults)

    def _nothing_is_held(self) -> Finding:
        client: Any = self.client
        held = [f"{name}: {client.hlen(name)} claims" for name in self._names("claims:*")]
        held += [f"owner {name.decode()}" for name in client.zrange(f"{KEY_PREFIX}owners", 0, -1)]
        held += [f"{name}: {count} left" for name in ("expiring", "delayed") if (count := self._zcard(name))]
        return Finding("no worker, claim or expiry is left in Redis", len(self.stage.workers), held)

    def _zcard(self, name: str) -> int:
        client: Any = self.client
        return int(client.zcard(f"{KEY_PREFIX}{name}"))

    def _host_is_clean(self) -> Finding:
        left = self.stage.find_leftovers()
        return Finding("no process, cgroup, mount or folder of a sandbox is left on the host", 0, left)


def count_by(items: Iterable[Any], key: Callable[[Any], str]) -> str:
    """Return ``17 OK, 3 TIMEOUT``."""
    return ", ".join(f"{count} {name}" for name, count in Counter(map(key, items)).most_common())
