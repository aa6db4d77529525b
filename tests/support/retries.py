"""Start next runs of dead letters while a fleet runs, some by two producers at the same moment."""

from __future__ import annotations

import random
import threading
from collections import Counter, defaultdict, deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import SecretStr
from sandfleet import Fleet, FleetError, JobUnknown, Settings
from sandfleet.channel.records import RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sandfleet.channel.dead_letter import DeadLetter

MAX_RUNS = 4
"""A job that has had so many is left alone, so that all come to rest."""
PAUSE_SECONDS = 0.25
AT_ONCE = 5
"""Letters that are clicked one after another, between two pauses."""
BATCH_SHARE = 0.25
"""Of the retries, those of a whole batch."""
REMEMBERED = 20
LATE_SHARE = 0.1
"""Of the letters that were clicked before, those that are clicked again."""
TWICE_SHARE = 0.4
"""Of the retries, those that two producers start at the same moment."""


@dataclass
class Retries:
    """The requests and their answers."""

    asked: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Job id to the runs after which `requeue` asked for another, whether or not it answered."""
    answered: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    """Those of them that it answered: the next run exists."""
    queued: Counter[str] = field(default_factory=Counter)
    """Runs that `requeue_all` says it has started, by job."""
    unsure: Counter[str] = field(default_factory=Counter)
    """Runs that it may have started, by job.

    "later" is also the answer to a call that is repeated since its answer got lost.
    """
    lost: Counter[str] = field(default_factory=Counter)
    """How often it did not answer, by batch: it may have started a run of each of its jobs."""
    twice: int = 0
    """Retries that two producers started at the same moment."""
    late: int = 0
    """Letters that were clicked again, some time after the first click."""
    failed: int = 0
    """Retries that Redis did not answer."""

    def find_miscounts(self, newest: Mapping[str, int], batch_of: Mapping[str, str]) -> list[str]:
        """Return jobs, by id with their newest run, with more or fewer runs than were started."""
        faults = []
        for job_id, run in newest.items():
            asked, answered = self.asked.get(job_id, set()), self.answered.get(job_id, set())
            unsure = self.unsure[job_id] + self.lost[batch_of.get(job_id, "")]
            most = 1 + len(asked) + self.queued[job_id] + unsure
            least = 1 + max(answered | {self.queued[job_id]})
            if not least <= run <= most:
                faults.append(
                    f"{job_id}: {run} runs, not {least} to {most}: clicked after {sorted(asked)}, answered after"
                    f" {sorted(answered)}; with its batch {self.queued[job_id]} times, {unsure} more unsure"
                )
        return faults


class Retrier(threading.Thread):
    """Starts the next run of jobs among the dead letters."""

    def __init__(self, url: str, seed: int) -> None:
        super().__init__(name="retrier")
        self._fleets = [Fleet(Settings(redis_url=SecretStr(url))) for _ in range(2)]
        self._random = random.Random(f"{seed} retries")  # noqa: S311  no secret
        self._lock = threading.Lock()
        self._clicked: deque[DeadLetter] = deque(maxlen=REMEMBERED)
        self.must_stop = threading.Event()
        self.retries = Retries()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            with ThreadPoolExecutor(len(self._fleets)) as pool:
                while not self.must_stop.wait(PAUSE_SECONDS):
                    self._retry(pool)
        except Exception as error:  # noqa: BLE001  the edge of the thread: told at the end
            self.error = error
        finally:
            for fleet in self._fleets:
                fleet.close()

    def _retry(self, pool: ThreadPoolExecutor) -> None:
        try:
            letters = self._fleets[0].dead.list()
        except FleetError:
            return
        if not letters:
            return
        act = self._choose(letters)
        if act is None:
            return
        count = 2 if self._random.random() < TWICE_SHARE else 1
        self.retries.twice += count - 1
        gate = threading.Barrier(count)

        def click(fleet: Fleet) -> None:
            gate.wait()
            act(fleet)

        for done in [pool.submit(click, fleet) for fleet in self._fleets[:count]]:
            done.result()

    def _choose(self, letters: list[DeadLetter]) -> Callable[[Fleet], None] | None:
        """Choose a whole batch or a few letters; a batch of which no job has had its last run."""
        last = {letter.batch for letter in letters if letter.run >= MAX_RUNS}
        if self._random.random() < BATCH_SHARE:
            names = sorted({letter.batch for letter in letters if letter.batch} - last)
            batch = self._random.choice(names) if names else None
            return None if batch is None else lambda fleet: self._retry_batch(fleet, batch)
        free = [letter for letter in letters if letter.run < MAX_RUNS]
        chosen = self._random.sample(free, min(AT_ONCE, len(free)))
        # A late click shows a letter that somebody has seen before: its next run has begun, and may
        # have ended.
        late = [letter for letter in self._clicked if self._random.random() < LATE_SHARE]
        self.retries.late += len(late)
        self._clicked.extend(chosen)
        return lambda fleet: self._retry_each(fleet, [*chosen, *late])

    def _retry_each(self, fleet: Fleet, letters: list[DeadLetter]) -> None:
        for letter in letters:
            with self._lock:
                self.retries.asked[letter.job_id].add(letter.run)
            try:
                fleet.dead.requeue(letter.job_id, letter.run)
            except JobUnknown as error:
                raise AssertionError(f"run {letter.run} of {letter.job_id} has gone with its letter") from error
            except FleetError:
                with self._lock:
                    self.retries.failed += 1
            else:
                with self._lock:
                    self.retries.answered[letter.job_id].add(letter.run)

    def _retry_batch(self, fleet: Fleet, batch: str) -> None:
        try:
            for job_id, state in fleet.dead.requeue_all(batch):
                with self._lock:
                    (self.retries.queued if state is RunState.QUEUED else self.retries.unsure)[job_id] += 1
        except FleetError:
            with self._lock:
                self.retries.failed += 1
                self.retries.lost[batch] += 1
