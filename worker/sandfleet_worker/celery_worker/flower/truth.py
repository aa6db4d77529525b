"""Corrects what Flower believes by what Redis knows.

A killed worker sends no event, and events get lost. Flower shows a job as running until an event
says otherwise, for ever if none comes. So this reads, every few seconds, the records of the jobs
that Flower takes for unfinished, and the leases of their workers. What differs twice in a row is
told to Flower as the event that did not come; the pause lets an event that is only late arrive
first.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from celery import states
from sandfleet_config.codes import ErrorCode
from sandfleet_config.queues import KEY_PREFIX, job_key, list_key
from sandfleet_config.scripts import PRIORITY_STEPS

from sandfleet_worker.celery_worker.events import describe_end
from sandfleet_worker.delivery.claim import parse_attempts

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import redis

UNFINISHED = frozenset((states.RECEIVED, states.STARTED, states.RETRY))
MAX_READ = 1000
"""Records read at once; with more jobs unfinished, each round reads the next ones."""
MAX_QUEUES = 200
"""Names of queues that are shown, as many as on the pages of the fleet; of more, others each time."""
LISTS_OF_JOBS = ("active", "reserved", "scheduled")


@dataclass(frozen=True)
class Record:
    """The state of a job in Redis."""

    state: str = ""
    code: str = ""
    owner: str = ""
    last_code: str = ""
    """Why the last attempt ended, if it has."""


@dataclass(frozen=True)
class Knowledge:
    """The state of some jobs, and of the fleet, in Redis."""

    records: Mapping[str, Record]
    live_owners: frozenset[str]
    queues: frozenset[str]


@dataclass(frozen=True)
class Correction:
    """The event that Flower did not get."""

    type: str
    text: str


def read_knowledge(client: redis.Redis, job_ids: Sequence[str]) -> Knowledge:
    """Read the records of `job_ids`, the live workers and the queues.

    Blocks, and may raise ``redis.RedisError``.
    """
    pipe: Any = client.pipeline(transaction=False)
    pipe.time()
    pipe.zrange(f"{KEY_PREFIX}owners", 0, -1, withscores=True)
    pipe.srandmember(f"{KEY_PREFIX}queues", MAX_QUEUES)
    for job_id in job_ids:
        pipe.hmget(job_key(job_id), "state", "code", "owner", "attempts")
    (seconds, _), owners, queues, *rows = pipe.execute()
    live = frozenset(name.decode() for name, expires in owners if expires >= seconds * 1000)
    records = {job_id: read_record(*row) for job_id, row in zip(job_ids, rows, strict=True)}
    return Knowledge(records, live, frozenset(name.decode(errors="replace") for name in queues))


def read_lengths(client: redis.Redis, names: Sequence[str]) -> dict[str, int]:
    """Return how many messages are in each queue; 0 where its key has a wrong type."""
    pipe: Any = client.pipeline(transaction=False)
    for name in names:
        for step in PRIORITY_STEPS:
            pipe.llen(list_key(name, step))
    found = [count if isinstance(count, int) else 0 for count in pipe.execute(raise_on_error=False)]
    width = len(PRIORITY_STEPS)
    return {name: sum(found[at * width : (at + 1) * width]) for at, name in enumerate(names)}


def read_record(state: bytes | None, code: bytes | None, owner: bytes | None, attempts: bytes | None) -> Record:
    """Return the record that a job's hash spells."""
    tried = parse_attempts(attempts or b"")
    last = tried[-1].code if tried else None
    return Record(
        (state or b"").decode(errors="replace"),
        (code or b"").decode(errors="replace"),
        (owner or b"").decode(errors="replace"),
        "" if last is None else last.value,
    )


def find_correction(task_state: str, record: Record, live_owners: frozenset[str]) -> Correction | None:
    """Return the event that would make Flower's state of an unfinished job true.

    None where it is true already.
    """
    is_started = task_state != states.RETRY
    match record.state:
        case "ended" if record.code == ErrorCode.OK:
            return Correction("task-succeeded", record.code)
        case "ended":
            return Correction("task-failed", f"{record.code}: no event told of this end, `sandfleet show` says more")
        case "queued" if is_started:
            code = record.last_code or ErrorCode.WORKER_LOST.value
            return Correction("task-retried", f"{code}: the job waits in its queue for its next try")
        case "running" | "waiting" if is_started and record.owner not in live_owners:
            text = "the worker is dead: another one decides about the job"
            return Correction("task-retried", f"{ErrorCode.WORKER_LOST.value}: {text}")
        case "":
            # No state of Celery's: Flower shows it as a grey word.
            return Correction("task-forgotten", "the job ended so long ago that Redis has no record of it any more")
        case _:
            return None


class Truth:
    """Keeps Flower's state true.

    Everything but `read_knowledge` runs in Flower's loop, as the state demands.
    """

    def __init__(self, state: Any, inspected: dict[str, dict[str, Any]], purge_seconds: float) -> None:
        self._state, self._inspected, self._purge_seconds = state, inspected, purge_seconds
        self._seen: dict[str, Correction] = {}
        self._next = 0
        self.queues: frozenset[str] = frozenset()

    def find_unfinished(self) -> list[str]:
        """Return the jobs to read in this round."""
        # Not `tasks[...]`: that would count as use, and keep old tasks in memory in place of new
        # ones.
        found = [job_id for job_id, task in self._state.tasks.data.items() if task.state in UNFINISHED]
        start = self._next if self._next < len(found) else 0
        self._next = start + MAX_READ
        return list(islice(found, start, start + MAX_READ))

    def correct(self, knowledge: Knowledge) -> None:
        """Tell Flower what it has wrong for the second time."""
        self.queues = knowledge.queues
        for job_id, record in knowledge.records.items():
            self._correct_job(job_id, record, knowledge.live_owners)
        # Jobs that ended or were dropped from memory meanwhile.
        for job_id in [job_id for job_id in self._seen if not self._is_unfinished(job_id)]:
            del self._seen[job_id]

    def _is_unfinished(self, job_id: str) -> bool:
        task = self._state.tasks.data.get(job_id)
        return task is not None and task.state in UNFINISHED

    def _correct_job(self, job_id: str, record: Record, live_owners: frozenset[str]) -> None:
        if not self._is_unfinished(job_id):
            return
        task = self._state.tasks.data[job_id]
        correction = find_correction(task.state, record, live_owners)
        if correction is None:
            self._seen.pop(job_id, None)
        elif self._seen.get(job_id) != correction:
            self._seen[job_id] = correction
        else:
            del self._seen[job_id]
            fields = (
                {"result": correction.text} if correction.type == "task-succeeded" else describe_end(correction.text)
            )
            self._send(correction.type, task.worker.hostname, uuid=job_id, **fields)

    def clear_dead_workers(self) -> None:
        """Take from silent workers the jobs that Flower still counts as theirs.

        Forget these workers after a while.
        """
        now = time.time()
        for name, worker in list(self._state.workers.data.items()):
            if worker.alive:
                continue
            if worker.active or worker.heartbeats:
                self._send("worker-offline", name, active=0)
                self._state.metrics.worker_number_of_currently_executing_tasks.labels(name).set(0)
            # Flower asks a worker for these lists when somebody opens its page, and keeps the last
            # answer.
            answers = self._inspected.get(name, {})
            answers.update({key: [] for key in LISTS_OF_JOBS if key in answers})
            if now - getattr(worker, "timestamp", now) > self._purge_seconds:
                self._inspected.pop(name, None)

    def _send(self, type_: str, hostname: str, **fields: Any) -> None:
        # `local_received` None: else an event about a job would count as a sign of life of its
        # worker.
        moment = {"timestamp": time.time(), "local_received": None, "clock": 0}
        self._state.event({"type": type_, "hostname": hostname, **moment, **fields})
