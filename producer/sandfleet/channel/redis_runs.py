"""Queue jobs again: from their dead letters, their kept specs, or as they were changed."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Final

import msgspec
from sandfleet_config.fingerprint import request_sha256, spec_sha256
from sandfleet_config.queues import KEY_PREFIX, dead_key, job_key, spec_key
from sandfleet_config.scripts import read_script, step_of
from sandfleet_config.wire import encode_needs, join_needs

from sandfleet.channel.message import new_messages, read_request
from sandfleet.channel.overview import ImageChoice, NextRun
from sandfleet.channel.records import RunState, new_record
from sandfleet.files.reference import list_objects

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from sandfleet_config.spec import SandboxSpec
    from sandfleet_config.wire import JobRequest

    from sandfleet.channel.connection import Connections
    from sandfleet.channel.records import EncodedJob

MILLI: Final = 1000
CHUNK_JOBS: Final = 200
RECORD_GONE: Final = "gone"
MOVED_AT_ONCE: Final = 50
MAX_PASSED: Final = 50_000
"""How deep a queue is searched for messages of ended jobs; workers skip the others later."""


class RedisRuns:
    """Starts next runs, some hundred by one call."""

    def __init__(self, connections: Connections, keep_inputs: Callable[[Collection[str], float], None]) -> None:
        """`keep_inputs` lets the store keep objects for a job queued now with that `queue_ttl`."""
        self._connections = connections
        self._keep_inputs = keep_inputs

    def read_messages(self, job_ids: Sequence[str]) -> list[bytes]:
        """Return each job's message, of its dead letter or its kept spec; empty if it has none."""
        with self._connections.guard():
            pipe = self._connections.new_pipe()
            for job_id in job_ids:
                pipe.hget(dead_key(job_id), "message")
            for job_id in job_ids:
                pipe.get(spec_key(job_id))
            found: list[object] = pipe.execute(raise_on_error=False)
        count = len(job_ids)
        return [
            next((value for value in pair if isinstance(value, bytes)), b"")
            for pair in zip(found[:count], found[count:], strict=True)
        ]

    def read_requests(self, job_ids: Sequence[str]) -> list[JobRequest | None]:
        """Return the request of each job, None if it is not kept or cannot be read."""
        return [read_request(message) if message else None for message in self.read_messages(job_ids)]

    def start(self, runs: Sequence[NextRun], images: ImageChoice) -> list[RunState]:
        """Queue the jobs again, each if the given run is still its newest one and has ended."""
        parts = (runs[at : at + CHUNK_JOBS] for at in range(0, len(runs), CHUNK_JOBS))
        return [state for part in parts for state in self._start(part, images)]

    def _start(self, runs: Sequence[NextRun], images: ImageChoice) -> list[RunState]:
        states = self._start_known(runs, images)
        waiting = [at for at, state in enumerate(states) if state is RunState.IN_QUEUE]
        if waiting:
            self._move_ended([runs[at].job_id for at in waiting])
            for at, state in zip(waiting, self._start_known([runs[at] for at in waiting], images), strict=True):
                states[at] = state
        return states

    def _move_ended(self, job_ids: Sequence[str]) -> None:
        """Take messages of jobs that ended while queued out of their queues; keep their specs."""
        with self._connections.guard():
            pipe = self._connections.new_pipe()
            for job_id in job_ids:
                pipe.hmget(job_key(job_id), "queue", "step")
            lists: set[tuple[bytes, bytes]] = {(queue, step) for queue, step in pipe.execute() if queue and step}
            script = self._connections.script(read_script("move_ended"))
            for queue, step in lists:
                passed = 0
                while 0 <= passed < MAX_PASSED:
                    passed, _ = script(args=[KEY_PREFIX, queue, step, passed, MOVED_AT_ONCE])

    def _start_known(self, runs: Sequence[NextRun], images: ImageChoice) -> list[RunState]:
        plain = [run.job_id for run in runs if run.changed is None]
        messages = dict(zip(plain, self.read_messages(plain), strict=True)) if plain else {}
        requests = {job_id: read_request(message) for job_id, message in messages.items() if message}
        changed = [run.changed.spec for run in runs if run.changed is not None]
        self._keep_all([*(request.spec for request in requests.values() if request is not None), *changed])
        states = self._call([(run, "") for run in runs], images)
        gone = [at for at, state in enumerate(states) if state == RECORD_GONE]
        records = {at: _new_lost_record(requests.get(runs[at].job_id)) for at in gone}
        readable = [at for at in gone if records[at]]
        again = self._call([(runs[at], records[at]) for at in readable], images)
        found = dict(enumerate(states)) | dict.fromkeys(gone, RunState.UNREADABLE.value)
        found |= dict(zip(readable, again, strict=True))
        return [RunState(found[at]) for at in range(len(runs))]

    def _keep_all(self, specs: Iterable[SandboxSpec]) -> None:
        """Let the store keep what these jobs need: their inputs may be about to expire."""
        wanted: defaultdict[float, set[str]] = defaultdict(set)
        for spec in specs:
            for sha256, *_ in list_objects(spec):
                wanted[spec.queue_ttl].add(sha256)
        for queue_ttl, names in wanted.items():
            self._keep_inputs(names, queue_ttl)

    def _call(self, runs: Sequence[tuple[NextRun, str]], images: ImageChoice) -> list[str]:
        """Call the script for runs and, for those whose record is gone, what it said."""
        if not runs:
            return []
        arguments = [
            word
            for run, record in runs
            for word in (run.job_id, run.run, record, encode_changes(run.changed, run.queue) if run.changed else "")
        ]
        with self._connections.guard():
            script = self._connections.script(read_script("next_run"))
            answers: list[bytes] = script(args=[KEY_PREFIX, *arguments, *([] if images == "kept" else [images])])
        return [answer.decode() for answer in answers]


def encode_changes(job: EncodedJob, queue: str) -> bytes:
    """Return the fields that the next run of `job` changes, and its message, as JSON.

    Its key and its fingerprint stay those of the first run.
    """
    spec = job.spec
    changes: dict[str, Any] = {
        "step": str(step_of(spec.priority)),
        "queue_ttl": max(1, round(spec.queue_ttl * MILLI)),
        "max_attempts": spec.max_attempts,
        "record": job.encode_record().decode(),
        "needs": job.needs,
    }
    return msgspec.json.encode(changes | {"message": new_messages([job], queue)[0].decode()})


def _new_lost_record(request: JobRequest | None) -> str:
    """Make a job's lost record from its request, as JSON for the script; empty if there is none."""
    if request is None:
        return ""
    spec = request.spec
    record = new_record(spec, request.batch, spec_sha256(spec), time.time()).model_dump_json(exclude_defaults=True)
    return msgspec.json.encode(
        {
            "step": str(step_of(spec.priority)),
            "key": spec.idempotency_key,
            "fingerprint": request_sha256(spec),
            "queue_ttl": max(1, round(spec.queue_ttl * MILLI)),
            "max_attempts": spec.max_attempts,
            "record": record,
            "needs": join_needs(request.contract, encode_needs(spec)),
            "batch": request.batch or "",
        }
    ).decode()
