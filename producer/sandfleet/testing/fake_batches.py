"""The part of `FakeChannel` that has the batches and the dead letters."""

from __future__ import annotations

import threading
from collections import Counter
from typing import TYPE_CHECKING

from sandfleet.channel.records import BatchState, NewEntries
from sandfleet.testing.fake_dead_letters import FakeDeadLetters
from sandfleet.testing.fake_webhooks import FakeWebhooks

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sandfleet.channel.dead_letter import DeadLetter
    from sandfleet.testing.fake_control import FakeControl
    from sandfleet.testing.fake_job import FakeJob


class FakeBatches:
    """Part of `FakeChannel`: its jobs, and what it says about their batches and dead letters."""

    control: FakeControl
    packed_publisher = None

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._jobs: dict[str, FakeJob] = {}
        self._keys: dict[str, str] = {}
        self._entries: dict[int, tuple[str, int]] = {}
        """Ended jobs of all batches, as (job id, run) by number."""
        self._sealed: set[str] = set()
        self.webhooks = FakeWebhooks()
        self._dead = FakeDeadLetters()

    def read_batch(self, name: str, cursor: str = "", limit: int = 0) -> BatchState:
        """Count the batch's jobs, and list its ended ones."""
        with self._lock:
            members = self.batch_ids(name)
            ended = [outcome for job_id in members if (outcome := self._jobs[job_id].outcome) is not None]
            is_member = frozenset(members).__contains__
            numbers = [number for number, (job_id, _) in self._entries.items() if is_member(job_id)]
            start = int(cursor.partition("-")[0]) if cursor else 0
            shown = [number for number in numbers if number > start][:limit] if cursor else []
            last = (shown or [start])[-1] if cursor else max(numbers, default=0)
            codes = Counter(outcome.code.value for outcome in ended)
            entries = [self._entries[number] for number in shown]
            return BatchState(len(members), len(ended), codes, name in self._sealed, entries, f"{last}-0")

    def ended_chunks(self, name: str, cursor: str) -> Iterator[NewEntries]:
        """List the batch's ended jobs after `cursor`."""
        state = self.read_batch(name, cursor, len(self._entries))
        yield NewEntries(state.entries, state.cursor)

    def batch_ids(self, name: str) -> list[str]:
        """Return the batch's jobs in the order of their submit."""
        with self._lock:
            return [job_id for job_id, job in self._jobs.items() if job.encoded.batch == name]

    def batch_page(self, name: str, position: int, limit: int) -> list[str]:
        """Return a part of the batch's jobs."""
        return self.batch_ids(name)[position : position + limit]

    def seal(self, name: str, on_done: str = "") -> None:
        """Record that all jobs of the batch have been submitted."""
        with self._lock:
            self._sealed.add(name)
            if on_done:
                self.webhooks.endpoints[name] = on_done
            self._tell_if_done(name)
        self._start_waiting()

    def _tell_if_done(self, name: str | None) -> None:
        """Note a webhook if the batch is done, and none was noted since its newest end."""
        if name in self._sealed and name in self.webhooks.endpoints:
            state = self.read_batch(name)
            if state.ended >= state.total > 0:
                self.webhooks.add(name, state)

    def _start_waiting(self) -> None:
        """Start jobs that may start now."""

    def _forget_name(self, name: str) -> None:
        """Forget what is kept for the batch itself: no job of it is left."""
        self._sealed.discard(name)
        self.control.forget(name)
        self.webhooks.endpoints.pop(name, None)

    def forget_batch(self, name: str) -> Iterator[tuple[int, int]]:
        """Delete the batch's ended jobs."""
        with self._lock:
            ids = self.batch_ids(name)
            ended = [job_id for job_id in ids if self._jobs[job_id].outcome is not None]
            self._dead.purge(ended)
            for job_id in ended:
                self._keys.pop(self._jobs[job_id].encoded.key, None)
                del self._jobs[job_id]
            self._entries = {number: entry for number, entry in self._entries.items() if entry[0] in self._jobs}
            if len(ended) == len(ids):
                self._forget_name(name)
        yield len(ended), len(ids) - len(ended)

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Return the newest dead letters."""
        with self._lock:
            return self._dead.list_newest(limit)

    def dead_letter(self, job_id: str) -> DeadLetter | None:
        """Return one dead letter."""
        with self._lock:
            return self._dead.get(job_id)

    def dead_runs(self, batch: str | None) -> Iterator[list[tuple[str, int]]]:
        """Yield (job id, run) of all dead letters at once."""
        with self._lock:
            yield self._dead.find_runs(batch)

    def purge_dead(self, job_ids: Sequence[str] | None) -> int:
        """Delete dead letters."""
        with self._lock:
            return self._dead.purge(job_ids)

    def count_dropped_dead(self) -> int:
        """Return how many dead letters were dropped early."""
        return self._dead.dropped
