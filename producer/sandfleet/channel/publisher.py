"""Publish jobs to Redis, a chunk by each call of ``submit.lua``."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoScriptError, OutOfMemoryError
from sandfleet_config.errors import SpecInvalid
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.scripts import read_script, step_of

from sandfleet.channel.capacity import new_queue_full
from sandfleet.channel.connection import ReplicasMissing
from sandfleet.channel.message import new_messages
from sandfleet.channel.pipelined import PipelinedCall
from sandfleet.channel.records import SubmitState, Submitted
from sandfleet.errors import QueueFull

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sandfleet_config.settings import Settings
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.channel.capacity import Capacity
    from sandfleet.channel.connection import Connections
    from sandfleet.channel.records import EncodedJob

MILLI: Final = 1000
REFUSALS: Final = (b"full", b"unknown", b"awaited")
SUBMIT_STATES: Final = {state.value.encode(): state for state in SubmitState}


class Publisher:
    """Writes each job's record and message in one step, unless they are there already.

    So a call may be repeated if nobody knows how far it came: by redis-py after a lost answer, by a
    producer after its death.
    """

    def __init__(self, connections: Connections, capacity: Capacity, max_queued: int) -> None:
        self._connections = connections
        self._capacity = capacity
        self._max_queued = max_queued

    def publish_chunks(
        self, chunks: Iterable[Sequence[EncodedJob]], queue: str, wanted: int
    ) -> Iterator[tuple[Sequence[EncodedJob], list[Submitted]]]:
        """Publish chunk by chunk; encode the next one while Redis works on the last.

        No call is under way at a yield.
        """
        source = self._new_calls(chunks, queue, wanted)
        current = next(source, None)
        while current is not None:
            jobs, arguments = current
            with self._connections.guard():
                self._capacity.check(self._connections.redis)
            script = self._connections.script(read_script("submit"))
            with self._new_call(script.sha, arguments) as call:
                try:
                    following = next(source, None)
                except BaseException:
                    yield jobs, self._read_reply(call, arguments, jobs)
                    raise
                submitted = self._read_reply(call, arguments, jobs)
            yield jobs, submitted
            current = following

    def _new_calls(
        self, chunks: Iterable[Sequence[EncodedJob]], queue: str, wanted: int
    ) -> Iterator[tuple[Sequence[EncodedJob], list[Any]]]:
        for jobs in chunks:
            yield jobs, self._new_arguments(jobs, queue, wanted)
            wanted -= len(jobs)

    def _new_arguments(self, jobs: Sequence[EncodedJob], queue: str, wanted: int) -> list[Any]:
        batch = jobs[0].batch or ""
        arguments: list[Any] = [KEY_PREFIX, queue, self._max_queued, batch, max(wanted, len(jobs))]
        for job, message in zip(jobs, new_messages(jobs, queue), strict=True):
            spec = job.spec
            arguments += (
                job.job_id,
                message,
                job.key,
                job.fingerprint,
                _encode_delivery(spec.priority, spec.queue_ttl, spec.max_attempts) + _encode_after(spec),
                job.encode_record(),
                job.needs,
            )
        return arguments

    def _read_reply(self, call: PipelinedCall, arguments: Sequence[Any], jobs: Sequence[EncodedJob]) -> list[Submitted]:
        with self._connections.guard(*(job.job_id for job in jobs)):
            try:
                reply = self._wait_for_reply(call, arguments)
            except OutOfMemoryError as error:
                raise QueueFull(
                    f"not queued: Redis is out of memory ({error}): let jobs end, or raise maxmemory"
                ) from error
        if reply[0] == b"full":
            _, queue, _, _, wanted, *_ = arguments
            raise new_queue_full(queue, reply[1], wanted, self._max_queued)
        if reply[0] in {b"unknown", b"awaited"}:
            raise new_after_refusal(*(word.decode() for word in reply))
        if reply == [b"new"]:
            return [Submitted(SubmitState.NEW, job.job_id) for job in jobs]
        return [
            Submitted(SUBMIT_STATES[state], job_id.decode())
            for state, job_id in zip(reply[::2], reply[1::2], strict=True)
        ]

    def _new_call(self, sha: str, arguments: Sequence[Any]) -> PipelinedCall:
        replicas = self._connections.settings.replicas
        wait = ("WAIT", replicas, round(self._connections.settings.redis.replica_seconds * MILLI)) if replicas else ()
        return PipelinedCall(self._connections.redis, "EVALSHA", sha, 0, *arguments, following=wait)

    def _wait_for_reply(self, call: PipelinedCall, arguments: Sequence[Any]) -> list[Any]:
        """Return the answer once enough replicas have the jobs, too.

        Redis may fail over in between, to a replica without them. So a call whose wait is in vain
        is repeated, which queues only what is missing.
        """
        reply, acknowledged = self._read_answer(call, arguments)
        settings = self._connections.settings
        until = time.monotonic() + settings.redis.failover_seconds
        while acknowledged < settings.replicas and reply[0] not in REFUSALS:
            if time.monotonic() >= until:
                raise _new_replicas_missing(settings, acknowledged)
            script = self._connections.script(read_script("submit"))
            later, acknowledged = self._read_answer(self._new_call(script.sha, arguments), arguments)
            reply = later if later[0] in REFUSALS else reply
        return reply

    def _read_answer(self, call: PipelinedCall, arguments: Sequence[Any]) -> tuple[list[Any], int]:
        """Return the answer, and how many replicas have the jobs."""
        try:
            reply = call.answer()
        except NoScriptError:
            text = read_script("submit")
            client: Any = self._connections.redis
            client.script_load(text)
            call = self._new_call(self._connections.script(text).sha, arguments)
            reply = call.answer()
        return reply, int(call.followed or 0)


def _new_replicas_missing(settings: Settings, acknowledged: int) -> ReplicasMissing:
    text = f"{acknowledged} of {settings.replicas} replicas of Redis have confirmed the jobs: a fail-over may lose them"
    return ReplicasMissing(f"{text}. See to the replicas, or set SANDFLEET_REDIS__REPLICAS=0, and submit again")


def _encode_after(spec: SandboxSpec) -> str:
    return f" {spec.after.model_dump_json(exclude_defaults=True)}" if spec.after else ""


def new_unknown_after(target: str) -> SpecInvalid:
    """Return the error for a job that waits for a missing target, such as ``job one``."""
    kind = target.partition(" ")[0]
    field = "after.jobs" if kind == "job" else "after.batches"
    message = f"there is no {target}, or it ended too long ago: submit it first, and wait for what exists"
    return SpecInvalid.of(f"{field}: {message}", errors=[{"field": field, "message": message}])


def new_after_refusal(kind: str, *names: str) -> SpecInvalid:
    """Return the error for an answer of ``submit.lua``.

    The answer is ``unknown`` with kind and name, or ``awaited`` with a batch.
    """
    if kind == "unknown":
        return new_unknown_after(" ".join(names))
    message = f"other jobs wait for batch {names[0]}, so its new jobs cannot wait for others: give them another batch"
    return SpecInvalid.of(f"after: {message}", errors=[{"field": "after", "message": message}])


@lru_cache(maxsize=256)
def _encode_delivery(priority: int, queue_ttl: float, max_attempts: int) -> str:
    return f"{step_of(priority)} {max(1, round(queue_ttl * MILLI))} {max_attempts}"
