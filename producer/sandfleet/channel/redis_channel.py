"""The `Channel` on Redis: stock Celery messages out, Celery's stored results in."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from redis.exceptions import ConnectionError as RedisConnectionError
from sandfleet_config.codes import ErrorCode
from sandfleet_config.queues import CANCEL_TTL_SECONDS, KEY_PREFIX
from sandfleet_config.run_summary import cut_summary, encode_summary, read_facts
from sandfleet_config.scripts import DEAD_TTL_SECONDS, stored_result

from sandfleet.channel.batch_control import RedisBatchControl
from sandfleet.channel.capacity import Capacity
from sandfleet.channel.connection import Connections
from sandfleet.channel.notices import Notices
from sandfleet.channel.outcome_reader import OutcomeReader
from sandfleet.channel.overview import ImageChoice, NextRun
from sandfleet.channel.publisher import Publisher
from sandfleet.channel.record_reader import END_FIELDS, parse_record, read_record_fields
from sandfleet.channel.records import CancelState, ExpiryCheck, JobRecord
from sandfleet.channel.redis_batches import RedisBatches
from sandfleet.channel.redis_live import RedisLive
from sandfleet.errors import FleetUnavailable
from sandfleet.files.objects import Objects

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Sequence

    from sandfleet_config.outcome import Outcome
    from sandfleet_config.settings import Settings

    from sandfleet.channel.dead_letter import DeadLetter
    from sandfleet.channel.protocol import BatchWatch, JobWatch, PackedPublisher
    from sandfleet.channel.records import EncodedJob, RunState, Submitted
    from sandfleet.channel.redis_fleet_state import RedisFleetState
    from sandfleet.channel.redis_overview import RedisOverview
    from sandfleet.channel.waker import Waker

MILLI: Final = 1000
DROPPED_AT_ONCE: Final = 500
BUDGET_SECONDS: Final = 1.0
"""How long the largest memory budget that hosts have announced counts as current."""


FORK_SAFE: Final = ("file:", "redis:")


class _OpenObjects(NamedTuple):
    """The store, the Redis client that it was opened with, and the process that opened it."""

    client: Any
    objects: Objects
    pid: int


class RedisChannel(RedisBatches):
    """The fleet's Redis.

    Connections are lazy and shared by threads; a forked child makes its own.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        super().__init__(Connections(settings))
        self._capacity = Capacity(settings)
        self.control = RedisBatchControl(self._connections)
        self._publisher = Publisher(self._connections, self._capacity, settings.max_queued)
        self._outcomes = OutcomeReader(self._connections)
        self._notices = Notices(self._connections)
        self.live = RedisLive(self._connections, self._notices)
        self._overview: RedisOverview | None = None
        self._fleet_state: RedisFleetState | None = None
        self._objects: _OpenObjects | None = None
        self._largest_budget: int | None = None
        self._budget_read = float("-inf")

    @property
    def overview(self) -> RedisOverview:
        """Batches and jobs, by pages; imported at its first use: most commands do not need it."""
        if self._overview is None:
            from sandfleet.channel.redis_overview import RedisOverview

            self._overview = RedisOverview(self._connections, self._keep_inputs)
        return self._overview

    @property
    def fleet_state(self) -> RedisFleetState:
        """Workers, queues, and what operators did; imported at its first use, too."""
        if self._fleet_state is None:
            from sandfleet.channel.redis_fleet_state import RedisFleetState

            self._fleet_state = RedisFleetState(self._connections, self.settings.queue)
        return self._fleet_state

    @property
    def objects(self) -> Objects:
        """The store of the settings; a forked child opens its own."""
        client = self._connections.redis
        if self._objects is None or self._objects.client is not client:
            self._check_fork()
            from sandfleet_config.store import References, open_store

            store = open_store(self.settings, client)
            objects = Objects(store, References(client, store), self._connections.guard)
            self._objects = _OpenObjects(client, objects, os.getpid())
        return self._objects.objects

    def _check_fork(self) -> None:
        """Refuse a bucket that the parent used: threads do not survive a fork, it would hang."""
        known = self._objects
        if known is not None and known.pid != os.getpid() and not self.settings.store_url.startswith(FORK_SAFE):
            raise FleetUnavailable(
                f"{known.objects.place} was used before this process was forked, and its client does not work here:"
                " let the child be the first to use files, or start it by spawn"
            )

    def _keep_inputs(self, names: Collection[str], queue_ttl: float) -> None:
        """Let the store keep the inputs of a job that is queued now, as long as a submit would."""
        self.objects.keep(names, queue_ttl + self.settings.result_ttl_seconds)

    def publish(self, jobs: Sequence[EncodedJob], queue: str, wanted: int) -> list[Submitted]:
        """Write records and messages in one step; see `Publisher`."""
        return next(submitted for _, submitted in self.publish_chunks([jobs], queue, wanted))

    def publish_chunks(
        self, chunks: Iterable[Sequence[EncodedJob]], queue: str, wanted: int
    ) -> Iterator[tuple[Sequence[EncodedJob], list[Submitted]]]:
        """Publish chunk by chunk; encode the next one while Redis works on the last."""
        return self._publisher.publish_chunks(chunks, queue, wanted)

    @property
    def packed_publisher(self) -> PackedPublisher:
        """Publishes jobs that other processes encoded."""
        return self._publisher

    def outcomes(self, job_ids: Sequence[str]) -> list[Outcome | None]:
        """Read the results that Celery stored."""
        return [outcome for _, found in self.outcome_chunks([job_ids]) for outcome in found] if job_ids else []

    def outcome_chunks(self, chunks: Iterable[Sequence[str]]) -> Iterator[tuple[Sequence[str], list[Outcome | None]]]:
        """Read chunk by chunk; parse one while Redis looks up the next."""
        return self._outcomes.read_chunks(chunks)

    def earlier_outcome(self, job_id: str, run: int) -> Outcome | None:
        """Read the result that the next run has moved."""
        return self._outcomes.read_run(job_id, run)

    def records(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """Read records and current states."""
        found = [parse_record(values) for values in read_record_fields(self._connections, job_ids)]
        return self.control.correct_whys(found)

    def explain_no_claims(self) -> str:
        """Compare Redis's memory with the mark above which workers claim nothing."""
        with self._connections.guard():
            return self._capacity.explain_no_claims(self._connections.redis)

    def find_largest_budget(self) -> int | None:
        """Ask Redis for what live hosts have announced, at most once a second."""
        now = time.monotonic()
        if now - self._budget_read >= BUDGET_SECONDS:
            with self._connections.guard():
                found = int(self._run("largest_budget", [KEY_PREFIX]))
            self._largest_budget, self._budget_read = found or None, now
        return self._largest_budget

    def expire_overdue(self, job_ids: Sequence[str]) -> ExpiryCheck:
        """End as ``EXPIRED`` the jobs whose queue_ttl is over, as any live worker would."""
        if not job_ids:
            return ExpiryCheck([], 0, None)
        with self._connections.guard():
            soonest, *found = self._run("check_jobs", [KEY_PREFIX, *job_ids])
        states = dict(zip(job_ids, found, strict=True))
        unknown = [job_id for job_id, state in states.items() if state == b"gone"]
        overdue = [job_id for job_id, state in states.items() if state == b"expired"]
        ended = self._finish(ErrorCode.EXPIRED, overdue)
        return ExpiryCheck(unknown, len(ended), None if soonest < 0 else soonest / MILLI)

    def cancel(self, job_ids: Sequence[str]) -> list[CancelState]:
        """Mark the jobs as cancelled, end the queued ones, and tell the workers of the others."""
        with self._connections.guard():
            pipe = self._connections.new_pipe()
            script = self._script("cancel")
            for job_id in job_ids:
                script(args=[KEY_PREFIX, job_id, CANCEL_TTL_SECONDS], client=pipe)
            states = dict(zip(job_ids, pipe.execute(), strict=True))
        queued = [job_id for job_id, state in states.items() if state == b"queued"]
        ended = self._finish(ErrorCode.CANCELLED, queued)
        requested = [job_id for job_id, state in states.items() if state != b"ended" and job_id not in ended]
        if requested:
            with self._connections.guard():
                # One broadcast for all. A worker that misses it finds the mark at its next beat.
                self._connections.app.control.revoke(requested, terminate=True, signal="TERM")
        found = dict.fromkeys(requested, CancelState.REQUESTED) | dict.fromkeys(ended, CancelState.CANCELLED)
        return [found.get(job_id, CancelState.ENDED) for job_id in job_ids]

    def _finish(self, code: ErrorCode, job_ids: Sequence[str]) -> set[str]:
        """End jobs that are queued; return those that still were."""
        if not job_ids:
            return set()
        from sandfleet.channel.ended_in_queue import new_ending, parse_attempts

        found = read_record_fields(self._connections, job_ids, END_FIELDS)
        with self._connections.guard():
            pipe = self._connections.new_pipe()
            script = self._script("finish")
            queues: set[str] = set()
            for job_id, (*values, attempts, needs, submitted) in zip(job_ids, found, strict=True):
                record = parse_record(values) or JobRecord()
                queues.add(record.queue)
                ending = new_ending(code, job_id, record, parse_attempts(attempts))
                facts, result = read_facts(values[0], needs, values[2], submitted), stored_result(ending)
                summary = cut_summary(encode_summary(ending, facts), ending, result)
                rest = (self.settings.result_ttl_seconds, "", DEAD_TTL_SECONDS, "", "", summary)
                script(args=[KEY_PREFIX, "", "", job_id, code.value, result, *rest], client=pipe)
            ended = {job_id for job_id, reply in zip(job_ids, pipe.execute(), strict=True) if reply == 1}
            for queue in queues - {""}:
                while self._run("drop_ended_messages", [KEY_PREFIX, queue, DROPPED_AT_ONCE]):
                    pass
        return ended

    def watch_jobs(self, job_ids: Sequence[str], waker: Waker) -> JobWatch:
        """Subscribe to the notices that ``finish.lua`` publishes."""
        return self._notices.watch_jobs(job_ids, waker)

    def watch_batch(self, name: str, waker: Waker) -> BatchWatch:
        """Follow the stream of the batch's ended jobs."""
        return self._notices.watch_batch(name, waker)

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Read the newest dead letters."""
        return self._dead_letters.read_newest(limit)

    def dead_letter(self, job_id: str) -> DeadLetter | None:
        """Read one dead letter."""
        return self._dead_letters.read(job_id)

    def dead_runs(self, batch: str | None) -> Iterator[list[tuple[str, int]]]:
        """Read the ids and runs of dead letters."""
        return self._dead_letters.find_runs(batch)

    def start_runs(self, runs: Sequence[tuple[str, int]], *, resolves_images: bool = False) -> list[RunState]:
        """Queue the messages of dead letters again, unchanged."""
        images: ImageChoice = "resolved" if resolves_images else "kept"
        return self.overview.start_runs([NextRun(*run) for run in runs], images=images)

    def purge_dead(self, job_ids: Sequence[str] | None) -> int:
        """Delete dead letters."""
        return self._dead_letters.purge(job_ids)

    def count_dropped_dead(self) -> int:
        """Read the counter of dead letters that were dropped early."""
        return self._dead_letters.count_dropped()

    def has_workers(self, timeout_seconds: float) -> bool:
        """Ping all workers and return at the first answer."""
        from kombu.exceptions import OperationalError

        with self._connections.guard():
            try:
                answers = self._ping_workers(timeout_seconds)
            except (RedisConnectionError, OperationalError):
                # Celery keeps its connections, and first tries one that Redis has closed meanwhile.
                answers = self._ping_workers(timeout_seconds)
        return bool(answers)

    def _ping_workers(self, timeout_seconds: float) -> Any:
        control = self._connections.app.control
        return control.broadcast("ping", reply=True, timeout=timeout_seconds, limit=1)

    def ping(self) -> None:
        """Ping Redis."""
        with self._connections.guard():
            self._connections.redis.ping()  # pyright: ignore[reportUnknownMemberType]

    def close(self) -> None:
        """Close every connection; the next use opens new ones."""
        self._notices.close()
        self._connections.close()
