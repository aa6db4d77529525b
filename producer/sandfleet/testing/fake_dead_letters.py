"""Dead letters of `FakeChannel`, bounded as those in Redis are."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sandfleet_config.scripts import MAX_DEAD_BYTES, MAX_DEAD_LETTERS

from sandfleet.channel.dead_letter import DeadLetter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sandfleet_config.outcome import Attempt, Outcome

    from sandfleet.testing.fake_job import FakeJob


class FakeDeadLetters:
    """Dead letters by job id, the oldest first."""

    def __init__(self) -> None:
        self._dead: dict[str, DeadLetter] = {}
        self._sizes: dict[str, int] = {}
        self._bytes = 0
        self.dropped = 0

    def add(self, job: FakeJob, outcome: Outcome, attempts: tuple[Attempt, ...]) -> None:
        """Add a job that has no attempt left; drop the oldest ones beyond the bounds."""
        job_id = job.encoded.job_id
        self._dead[job_id] = DeadLetter(
            job_id=job_id,
            code=outcome.code,
            reason="no attempt is left",
            at=time.time(),
            queue=job.queue,
            batch=job.encoded.batch,
            line=job.encoded.line,
            attempts=attempts,
            run=job.run,
        )
        self._sizes[job_id] = len(job.encoded.text)
        self._bytes += self._sizes[job_id]
        while len(self._dead) > MAX_DEAD_LETTERS or self._bytes > MAX_DEAD_BYTES:
            self.remove(next(iter(self._dead)))
            self.dropped += 1

    def get(self, job_id: str) -> DeadLetter | None:
        """Return one dead letter, None if there is none."""
        return self._dead.get(job_id)

    def list_newest(self, limit: int) -> list[DeadLetter]:
        """Return the newest dead letters, newest first."""
        return list(reversed(self._dead.values()))[:limit]

    def find_runs(self, batch: str | None) -> list[tuple[str, int]]:
        """Return (job id, run) of all dead letters, or of those of one batch."""
        return [(dead.job_id, dead.run) for dead in self._dead.values() if batch is None or dead.batch == batch]

    def remove(self, job_id: str) -> bool:
        """Remove one dead letter; return whether there was one."""
        self._bytes -= self._sizes.pop(job_id, 0)
        return self._dead.pop(job_id, None) is not None

    def purge(self, job_ids: Sequence[str] | None) -> int:
        """Remove dead letters, all of them for None; return how many."""
        return sum(self.remove(job_id) for job_id in (list(self._dead) if job_ids is None else job_ids))
