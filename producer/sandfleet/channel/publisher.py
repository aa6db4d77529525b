"""Publish jobs to Redis, a chunk by each call of ``submit.lua``."""

from __future__ import annotations

import time
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from redis.exceptions import NoScriptError, OutOfMemoryError
from sandfleet_config.errors import SpecInvalid
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.scripts import read_script

from sandfleet.channel.capacity import new_queue_full
from sandfleet.channel.connection import ReplicasMissing
from sandfleet.channel.job_arguments import MILLI, WIDTH, list_arguments, pack_head, pack_words
from sandfleet.channel.pipelined import PackedCall
from sandfleet.channel.records import SubmitState, Submitted
from sandfleet.errors import QueueFull

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sandfleet_config.settings import Settings

    from sandfleet.channel.capacity import Capacity
    from sandfleet.channel.connection import Connections
    from sandfleet.channel.job_arguments import PackedJobs, SentJob
    from sandfleet.channel.records import EncodedJob

REFUSALS: Final = (b"full", b"unknown", b"awaited")
SUBMIT_STATES: Final = {state.value.encode(): state for state in SubmitState}
_Job = TypeVar("_Job", "EncodedJob", "SentJob")


class _Target(NamedTuple):
    """The queue, and how many more jobs it has to take."""

    queue: str
    wanted: int


class _Call(NamedTuple, Generic[_Job]):
    """The jobs of one call of ``submit.lua``, the call in Redis's protocol, and its arguments."""

    jobs: Sequence[_Job]
    target: _Target
    packed: Sequence[bytes]
    list_arguments: Callable[[], list[Any]]


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
        return self._publish(self._encode_calls(chunks, queue, wanted))

    def publish_packed(
        self, chunks: Iterable[PackedJobs], queue: str, batch: str | None, wanted: int
    ) -> Iterator[tuple[Sequence[SentJob], list[Submitted]]]:
        """Do what `publish_chunks` does with jobs that another process has encoded."""
        return self._publish(self._read_calls(chunks, queue, batch, wanted))

    def _encode_calls(
        self, chunks: Iterable[Sequence[EncodedJob]], queue: str, wanted: int
    ) -> Iterator[_Call[EncodedJob]]:
        for jobs in chunks:
            arguments: list[Any] = list_arguments(jobs, queue)
            target = _Target(queue, max(wanted, len(jobs)))
            yield self._pack_call(jobs, target, pack_words(arguments), arguments.copy)
            wanted -= len(jobs)

    def _read_calls(
        self, chunks: Iterable[PackedJobs], queue: str, batch: str | None, wanted: int
    ) -> Iterator[_Call[SentJob]]:
        for packed in chunks:
            jobs = packed.list_jobs(batch)
            target = _Target(queue, max(wanted, len(jobs)))
            yield self._pack_call(jobs, target, packed.packed, packed.list_arguments)
            wanted -= len(jobs)

    def _pack_call(
        self, jobs: Sequence[_Job], target: _Target, packed: bytes, list_own: Callable[[], Sequence[Any]]
    ) -> _Call[_Job]:
        options: Sequence[Any] = (KEY_PREFIX, target.queue, self._max_queued, jobs[0].batch or "", target.wanted)
        words = ("EVALSHA", self._script.sha, 0, *options)
        head = pack_head(len(words) + WIDTH * len(jobs)) + pack_words(words)
        return _Call(jobs, target, (head, packed), lambda: [*options, *list_own()])

    @property
    def _script(self) -> Any:
        return self._connections.script(read_script("submit"))

    def _publish(self, source: Iterator[_Call[_Job]]) -> Iterator[tuple[Sequence[_Job], list[Submitted]]]:
        current = next(source, None)
        while current is not None:
            with self._connections.guard():
                self._capacity.check(self._connections.redis)
            with self._open_call(current) as call:
                try:
                    following = next(source, None)
                except BaseException:
                    yield current.jobs, self._read_reply(call, current)
                    raise
                submitted = self._read_reply(call, current)
            yield current.jobs, submitted
            current = following

    def _list_words(self, sent: _Call[_Job]) -> list[Any]:
        return ["EVALSHA", self._script.sha, 0, *sent.list_arguments()]

    def _read_reply(self, call: PackedCall, sent: _Call[_Job]) -> list[Submitted]:
        ids = [job.job_id for job in sent.jobs]
        with self._connections.guard(*ids):
            try:
                reply = self._wait_for_reply(call, sent)
            except OutOfMemoryError as error:
                raise QueueFull(
                    f"not queued: Redis is out of memory ({error}): let jobs end, or raise maxmemory"
                ) from error
        if reply[0] == b"full":
            raise new_queue_full(sent.target.queue, reply[1], sent.target.wanted, self._max_queued)
        if reply[0] in {b"unknown", b"awaited"}:
            raise new_after_refusal(*(word.decode() for word in reply))
        if reply == [b"new"]:
            return list(map(Submitted, repeat(SubmitState.NEW), ids))
        return [
            Submitted(SUBMIT_STATES[state], job_id.decode())
            for state, job_id in zip(reply[::2], reply[1::2], strict=True)
        ]

    def _open_call(self, sent: _Call[_Job]) -> PackedCall:
        settings = self._connections.settings
        wait = ("WAIT", settings.replicas, round(settings.redis.replica_seconds * MILLI)) if settings.replicas else ()
        return PackedCall(self._connections.redis, sent.packed, partial(self._list_words, sent), wait)

    def _wait_for_reply(self, call: PackedCall, sent: _Call[_Job]) -> list[Any]:
        """Return the answer once enough replicas have the jobs, too.

        Redis may fail over in between, to a replica without them. So a call whose wait is in vain
        is repeated, which queues only what is missing.
        """
        reply, acknowledged = self._read_answer(call, sent)
        settings = self._connections.settings
        until = time.monotonic() + settings.redis.failover_seconds
        while acknowledged < settings.replicas and reply[0] not in REFUSALS:
            if time.monotonic() >= until:
                raise _new_replicas_missing(settings, acknowledged)
            later, acknowledged = self._read_answer(self._open_call(sent), sent)
            reply = later if later[0] in REFUSALS else reply
        return reply

    def _read_answer(self, call: PackedCall, sent: _Call[_Job]) -> tuple[list[Any], int]:
        """Return the answer, and how many replicas have the jobs."""
        try:
            reply = call.answer()
        except NoScriptError:
            client: Any = self._connections.redis
            client.script_load(read_script("submit"))
            call = self._open_call(sent)
            reply = call.answer()
        return reply, int(call.followed or 0)


def _new_replicas_missing(settings: Settings, acknowledged: int) -> ReplicasMissing:
    text = f"{acknowledged} of {settings.replicas} replicas of Redis have confirmed the jobs: a fail-over may lose them"
    return ReplicasMissing(f"{text}. See to the replicas, or set SANDFLEET_REDIS__REPLICAS=0, and submit again")


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
