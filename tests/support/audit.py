"""Check Redis, the workers' logs and the host after a soak: each promise is one finding."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from audit_facts import AuditFacts, Run
from harms import explain
from lasting import lasting_keys
from sandfleet_config.codes import Category, ErrorCode
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.scripts import MAX_DEAD_LETTERS
from sandfleet_worker.delivery.claim import MAX_STARTS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from sandfleet import Outcome

SHOWN = 5
EARLIER_MISTAKES = frozenset({ErrorCode.OUT_OF_MEMORY, ErrorCode.IMAGE_INVALID})
"""Codes by which the earlier release tells that the host lacked memory, or a descriptor."""
SLACK_SECONDS = 1.0
"""Time between a fault and its effect on an attempt, on a busy machine."""


class Finding(NamedTuple):
    """One promise, the number of things that were checked, and the faults that were found."""

    claim: str
    looked_at: int
    faults: Sequence[str]


class Audit(AuditFacts):
    """Compare the accepted jobs with their outcomes; each check is one `Finding`."""

    def findings(self) -> list[Finding]:
        return [
            self._each_has_one_outcome(),
            self._batches_agree(),
            self._retries_start_one_run(),
            self._letters_are_of_newest_runs(),
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

    def _each_has_one_outcome(self) -> Finding:
        runs = [Run(job_id, number) for job_id, count in self.runs.items() for number in range(1, count + 1)]
        faults = [f"{run}: no outcome can be read" for run in runs if run not in self.outcomes]
        faults += [
            f"{run}: its outcome says that it is of {outcome.job_id}, run {outcome.run}"
            for run, outcome in self.outcomes.items()
            if outcome.job_id != run.job_id or outcome.run not in self.find_run_numbers(run.number)
        ]
        return Finding("every run of every accepted job has an outcome, and says which run it is", len(runs), faults)

    def _batches_agree(self) -> Finding:
        """Check each batch's stream of ends and its counts.

        `finish.lua` adds to the stream each time that it records an outcome, and Redis counts what
        was ever added: that is one for each run, however many ends of earlier runs were taken out
        again. An end that a worker of the earlier release recorded may be missing: it is added
        later, unless another run has begun.
        """
        client: Any = self.client
        faults = []
        for name in self.batches:
            total, done = self.fleet.batch(name).counts
            key = f"{KEY_PREFIX}ends:{name}"
            ends = Counter(
                (fields[b"id"].decode(), int(fields[b"run"]), fields[b"code"].decode())
                for _, fields in client.xrange(key)
            )
            jobs = [job_id for job_id in self.fleet.batch(name).job_ids if job_id in self.newest]
            wanted = Counter((job_id, self.runs.get(job_id, 1), self.newest[job_id].code.value) for job_id in jobs)
            faults += [f"{name}: {count} ends too many of {end}" for end, count in (ends - wanted).items()]
            faults += [f"{name}: no end of {end}" for end in wanted - ends]
            codes = Counter(self.newest[job_id].code.value for job_id in jobs)
            counted = {code: count for code, count in self.fleet.batch(name).codes.items() if count}
            if counted != codes or (total, done) != (len(jobs), len(jobs)):
                faults.append(f"{name}: {len(jobs)} jobs as {dict(codes)}, counted are {done} of {total} as {counted}")
            added = int(client.xinfo_stream(key)["entries-added"]) if client.exists(key) else 0
            runs = sum(self.runs.get(job_id, 1) for job_id in jobs)
            if added > runs or (added < runs and not self.earlier):
                faults.append(f"{name}: {added} outcomes were recorded, of {runs} runs")
        count = sum(self.runs.values())
        return Finding(
            "exactly one outcome of each run was recorded; ends and counts of batches say the same", count, faults
        )

    def _retries_start_one_run(self) -> Finding:
        batch_of = {job_id: name for name in self.batches for job_id in self.fleet.batch(name).job_ids}
        faults = self.retries.find_miscounts(self.runs, batch_of)
        faults += [
            f"{run}: it was run again though it ended {outcome.code}"
            for run, outcome in self.outcomes.items()
            if run.number < self.runs.get(run.job_id, 1) and outcome.category is not Category.HOST
        ]
        later = sum(count - 1 for count in self.runs.values())
        return Finding("each retry started one run, also where two producers did it at once", later, faults)

    def _letters_are_of_newest_runs(self) -> Finding:
        letters = self.fleet.dead.list(MAX_DEAD_LETTERS)
        faults = [
            f"{letter.job_id}: a letter of run {letter.run} with {letter.code}, not of run {self.runs.get(letter.job_id)}"
            for letter in letters
            if letter.job_id not in self.newest
            or letter.run not in self.find_run_numbers(self.runs.get(letter.job_id))
            or letter.code is not self.newest[letter.job_id].code
        ]
        ids = {letter.job_id for letter in letters}
        faults += [
            f"{job_id}: {outcome.code} and no dead letter"
            for job_id, outcome in self.newest.items()
            if outcome.category is Category.HOST and job_id not in ids
        ]
        return Finding("the dead letters are the jobs whose newest run ended by the host", len(letters), faults)

    def _nothing_else_was_run(self) -> Finding:
        known = {name.removeprefix(f"{KEY_PREFIX}job:") for name in self.find_names("job:*")}
        known |= {run.job_id for run in self.starts} | set(self.earlier_starts)
        return Finding("there is no job that was not accepted", len(known), sorted(known - set(self.expected)))

    def _codes_are_right(self) -> Finding:
        faults = [
            f"{run}: {outcome.code}, not {self.expected.get(run.job_id)}: {outcome.message}"
            for run, outcome in self.outcomes.items()
            if outcome.code is not self.expected.get(run.job_id)
            and outcome.category is not Category.HOST
            and not (outcome.code in EARLIER_MISTAKES and self.has_earlier_end(outcome))
        ]
        return Finding("each ended as its program does, or by a fault that was made", len(self.outcomes), faults)

    def _faults_were_made(self) -> Finding:
        """Check attempts: a job that ended with a host's code has that code in its last attempt."""
        failed = [
            (run, attempt)
            for run, outcome in self.outcomes.items()
            for attempt in outcome.attempts
            if attempt.code and attempt.code.category is Category.HOST
        ]
        left = explain((self.find_span(attempt) for _, attempt in failed), self.harms, SLACK_SECONDS)
        faults = [f"{failed[at][0]}: {failed[at][1]}: {self.outcomes[failed[at][0]].message}" for at in left]
        faults += [
            f"{run}: INTERNAL: {outcome.message}"
            for run, outcome in self.outcomes.items()
            if outcome.code is ErrorCode.INTERNAL and not self.has_earlier_end(outcome)
        ]
        faults += [
            f"{run}: {outcome.code} without an attempt: {outcome.message}"
            for run, outcome in self.outcomes.items()
            if outcome.category is Category.HOST and not outcome.attempts and not self.has_earlier_end(outcome)
        ]
        return Finding(
            "each attempt with a host's code was hit by a fault that was made, each fault hit no more than it can",
            len(failed),
            faults,
        )

    def _starts_are_told(self) -> Finding:
        faults = []
        told_in_all: dict[str, Counter[str]] = {}
        for run, outcome in self.outcomes.items():
            told_in_all.setdefault(run.job_id, Counter()).update(attempt.worker for attempt in outcome.attempts)
        for run, starts in self.starts.items():
            attempts = self.outcomes[run].attempts if run in self.outcomes else ()
            untold = starts - Counter(attempt.worker for attempt in attempts)
            faults += [f"{run}: {count} untold starts by {worker}" for worker, count in untold.items()]
        for job_id, starts in self.earlier_starts.items():
            untold = starts - told_in_all.get(job_id, Counter())
            faults += [f"{job_id}: {count} untold starts by {worker}, in all runs" for worker, count in untold.items()]
        again = sum(starts.total() - 1 for starts in self.starts.values())
        return Finding("all starts, those beyond the first too, are in attempts[]", again, faults)

    def _once_is_once(self) -> Finding:
        started = {run: starts.total() for run, starts in self.starts.items() if run.job_id in self.once}
        faults = [f"{run}: {count} starts" for run, count in started.items() if count > 1]
        # The earlier release does not say of which run a start is.
        in_all = Counter(
            {job_id: starts.total() for job_id, starts in self.earlier_starts.items() if job_id in self.once}
        )
        for run, count in started.items():
            in_all[run.job_id] += count
        faults += [
            f"{job_id}: {count} starts in {self.runs.get(job_id)} runs"
            for job_id, count in in_all.items()
            if count > self.runs.get(job_id, 0)
        ]
        faults += [
            f"{run}: {len(outcome.attempts)} attempts"
            for run, outcome in self.outcomes.items()
            if run.job_id in self.once and len(outcome.attempts) > 1
        ]
        return Finding("no job with max_attempts=1 was started twice in a run", in_all.total(), faults)

    def _attempts_are_whole(self) -> Finding:
        def is_whole(outcome: Outcome) -> bool:
            attempts = outcome.attempts
            if not attempts:  # of a job that ended INTERNAL before its start
                return self.has_earlier_end(outcome)
            return (
                len(attempts) <= MAX_STARTS
                # An outcome of the earlier release does not say which attempts are charged.
                and (sum(item.charged for item in attempts) <= self.max_attempts or self.has_earlier_end(outcome))
                and all(attempt.charged or attempt.code is ErrorCode.WORKER_LOST for attempt in attempts)
                and all(attempt.code and attempt.code.category is Category.HOST for attempt in attempts[:-1])
                and attempts[-1].code is outcome.code
            )

        faults = [
            f"{run} ({outcome.code}): {[(item.worker, str(item.code), item.charged) for item in outcome.attempts]}"
            for run, outcome in self.outcomes.items()
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
        held = [f"{name}: {client.hlen(name)} claims" for name in self.find_names("claims:*")]
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
