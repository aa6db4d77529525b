"""The fleet's Redis as a `Channel`: jobs go out as stock Celery messages, outcomes are read where Celery stores them."""

from __future__ import annotations

import time
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from kombu.exceptions import OperationalError
from pydantic import ValidationError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError
from sandfleet_config.codes import ErrorCode
from sandfleet_config.queues import CANCEL_TTL_SECONDS, KEY_PREFIX, batch_key, job_key, result_key, run_key
from sandfleet_config.scripts import DEAD_TTL_SECONDS, read_script, step_of, stored_result

from sandfleet.channel.capacity import Room, refuse_full
from sandfleet.channel.connection import Connections
from sandfleet.channel.ended_in_queue import new_ending, parse_attempts
from sandfleet.channel.message import new_messages
from sandfleet.channel.notices import Notices
from sandfleet.channel.pause import collector_paused
from sandfleet.channel.pipelined import Flight
from sandfleet.channel.records import Answer, AnswerKind, BatchState, CancelState, JobRecord, Look
from sandfleet.channel.redis_dead_letters import RedisLetters
from sandfleet.channel.stored_result import parse_outcome
from sandfleet.errors import QueueFull

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sandfleet_config.outcome import Outcome
    from sandfleet_config.settings import Settings

    from sandfleet.channel.protocol import BatchWatch, JobWatch
    from sandfleet.channel.records import DeadLetter, RunState, Ticket
    from sandfleet.channel.waker import Waker

MILLI: Final = 1000
ANSWER_KINDS: Final = {kind.value.encode(): kind for kind in AnswerKind}
TRIMMED_AT_ONCE: Final = 500
BUDGET_SECONDS: Final = 1.0
PARSED_AT_ONCE: Final = 50
"""Fewer objects than start the collector of garbage: it has nothing to do where a reader drops what it has read."""
RECORD_FIELDS: Final = ("record", "state", "queue", "run", "why", "why_at", "attempts")
FORGOTTEN_AT_ONCE: Final = 500


class RedisChannel:
    """Talks to the fleet through Redis. Connections are lazy and shared by threads; a forked child makes its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._connections = Connections(settings)
        self._room = Room(settings)
        self._largest_budget: int | None = None
        self._budget_read = float("-inf")
        self._letters = RedisLetters(self._connections)
        self._notices = Notices(self._connections)

    def publish(self, tickets: Sequence[Ticket], queue: str, wanted: int) -> list[Answer]:
        """Leave each job's record and its message in one step, unless they are there already.

        So it may be repeated when nobody knows how far it came: by redis-py after a lost answer, by a producer after its death.
        """
        return next(answers for _, answers in self.publish_portions([tickets], queue, wanted))

    def publish_portions(
        self, portions: Iterable[Sequence[Ticket]], queue: str, wanted: int
    ) -> Iterator[tuple[Sequence[Ticket], list[Answer]]]:
        """Publish portion by portion; the next is made while Redis works on the last, and nothing is under way at a yield."""
        source = self._prepare(portions, queue, wanted)
        current = next(source, None)
        while current is not None:
            tickets, command = current
            with self._connections.guard():
                self._room.check(self._connections.redis)
            with Flight(self._connections.redis, "EVALSHA", self._script("submit").sha, 0, *command) as flight:
                try:
                    following = next(source, None)
                except BaseException:
                    yield tickets, self._land(flight, command, tickets)
                    raise
                answers = self._land(flight, command, tickets)
            yield tickets, answers
            current = following

    def _prepare(
        self, portions: Iterable[Sequence[Ticket]], queue: str, wanted: int
    ) -> Iterator[tuple[Sequence[Ticket], list[Any]]]:
        for tickets in portions:
            yield tickets, self._new_submit(tickets, queue, wanted)
            wanted -= len(tickets)

    def _new_submit(self, tickets: Sequence[Ticket], queue: str, wanted: int) -> list[Any]:
        batch = tickets[0].batch or ""
        arguments: list[Any] = [KEY_PREFIX, queue, self.settings.max_queued, batch, max(wanted, len(tickets))]
        for ticket, message in zip(tickets, new_messages(tickets, queue), strict=True):
            spec = ticket.spec
            arguments += (
                ticket.job_id,
                message,
                ticket.key,
                ticket.fingerprint,
                _encode_delivery(spec.priority, spec.queue_ttl, spec.max_attempts),
                ticket.encode_record(),
                ticket.needs,
            )
        return arguments

    def _land(self, flight: Flight, command: Sequence[Any], tickets: Sequence[Ticket]) -> list[Answer]:
        with self._connections.guard(*(ticket.job_id for ticket in tickets)):
            try:
                answer = self._await_script(flight, "submit", command)
            except OutOfMemoryError as error:
                raise QueueFull(
                    f"not queued: Redis is out of memory ({error}): let jobs end, or raise maxmemory"
                ) from error
        if answer[0] == b"full":
            _, queue, _, _, wanted, *_ = command
            raise refuse_full(queue, answer[1], wanted, self.settings.max_queued)
        if answer == [b"new"]:
            return [Answer(AnswerKind.NEW, ticket.job_id) for ticket in tickets]
        return [
            Answer(ANSWER_KINDS[kind], job_id.decode()) for kind, job_id in zip(answer[::2], answer[1::2], strict=True)
        ]

    def _await_script(self, flight: Flight, name: str, arguments: Sequence[Any]) -> list[Any]:
        try:
            found: list[Any] = flight.answer()
        except NoScriptError:
            found = self._run(name, arguments)  # sends it whole
        return found

    def outcomes(self, job_ids: Sequence[str]) -> list[Outcome | None]:
        """Read the results Celery stored. What cannot be read is an outcome too: ``INTERNAL``, and why."""
        return [outcome for _, found in self.outcome_portions([job_ids]) for outcome in found] if job_ids else []

    def outcome_portions(
        self, portions: Iterable[Sequence[str]]
    ) -> Iterator[tuple[Sequence[str], list[Outcome | None]]]:
        """Read portion by portion, and parse one, a few outcomes at a time, while Redis looks up the next."""
        last: tuple[Sequence[str], list[bytes | None]] = ((), [])
        for job_ids in portions:
            flight = Flight(self._connections.redis, "MGET", *map(result_key, job_ids))
            with self._connections.guard(), flight:
                yield from self._parse(*last)
                found: list[bytes | None] = flight.answer()
            last = job_ids, found
        yield from self._parse(*last)

    def _parse(
        self, job_ids: Sequence[str], found: Sequence[bytes | None]
    ) -> Iterator[tuple[Sequence[str], list[Outcome | None]]]:
        for start in range(0, len(job_ids), PARSED_AT_ONCE):
            part = job_ids[start : start + PARSED_AT_ONCE]
            yield part, self._parse_part(part, found[start : start + PARSED_AT_ONCE])

    def _parse_part(self, job_ids: Sequence[str], found: Sequence[bytes | None]) -> list[Outcome | None]:
        with collector_paused():
            return [
                None if raw is None else parse_outcome(raw, job_id, self._read_record)
                for job_id, raw in zip(job_ids, found, strict=True)
            ]

    def explain_no_claims(self) -> str:
        """Compare Redis's memory with the mark at which workers stop to claim."""
        with self._connections.guard():
            return self._room.explain_no_claims(self._connections.redis)

    def records(self, job_ids: Sequence[str]) -> list[JobRecord | None]:
        """Read what producers left at submit, and the state of now."""
        with self._connections.guard():
            pipe = self._connections.new_pipe()
            for job_id in job_ids:
                pipe.hmget(job_key(job_id), *RECORD_FIELDS)
            return [_parse_record(facts) for facts in pipe.execute()]

    def _read_record(self, job_id: str) -> JobRecord | None:
        return self.records([job_id])[0]

    def look(self, job_ids: Sequence[str]) -> Look:
        """Look at the jobs' records, and end as ``EXPIRED`` what any worker's sweep would have ended, if one lived."""
        if not job_ids:
            return Look([], 0, None)
        with self._connections.guard():
            soonest, *found = self._run("look", [KEY_PREFIX, *job_ids])
        states = dict(zip(job_ids, found, strict=True))
        gone = [job_id for job_id, state in states.items() if state == b"gone"]
        expired = [job_id for job_id, state in states.items() if state == b"expired"]
        ended = self._finish(ErrorCode.EXPIRED, expired)
        return Look(gone, len(ended), None if soonest < 0 else soonest / MILLI)

    def find_largest_budget(self) -> int | None:
        """Ask Redis for what live workers say about their hosts, once a second at most."""
        now = time.monotonic()
        if now - self._budget_read >= BUDGET_SECONDS:
            with self._connections.guard():
                found = int(self._run("budgets", [KEY_PREFIX]))
            self._largest_budget, self._budget_read = found or None, now
        return self._largest_budget

    def cancel(self, job_ids: Sequence[str]) -> list[CancelState]:
        """Forbid each start, durably; end what is queued; tell the workers about the rest, whose ends they record."""
        with self._connections.guard():
            pipe = self._connections.new_pipe()
            script = self._script("cancel")
            for job_id in job_ids:
                script(args=[KEY_PREFIX, job_id, CANCEL_TTL_SECONDS], client=pipe)
            states = dict(zip(job_ids, pipe.execute(), strict=True))
        queued = [job_id for job_id, state in states.items() if state == b"queued"]
        ended = self._finish(ErrorCode.CANCELLED, queued)
        asked = [job_id for job_id, state in states.items() if state != b"ended" and job_id not in ended]
        if asked:
            with self._connections.guard():
                # One broadcast for all. A worker that does not hear it finds the mark at its next beat.
                self._connections.app.control.revoke(asked, terminate=True, signal="TERM")
        kinds = dict.fromkeys(asked, CancelState.REQUESTED) | dict.fromkeys(ended, CancelState.CANCELLED)
        return [kinds.get(job_id, CancelState.ENDED) for job_id in job_ids]

    def _finish(self, code: ErrorCode, job_ids: Sequence[str]) -> set[str]:
        """End jobs that are queued; return those that still were."""
        if not job_ids:
            return set()
        with self._connections.guard():
            pipe = self._connections.new_pipe()
            for job_id in job_ids:
                pipe.hmget(job_key(job_id), *RECORD_FIELDS)
            facts = pipe.execute()
            pipe = self._connections.new_pipe()
            script = self._script("finish")
            queues: set[str] = set()
            for job_id, fields in zip(job_ids, facts, strict=True):
                record = _parse_record(fields) or JobRecord()
                queues.add(record.queue)
                result = stored_result(new_ending(code, job_id, record, parse_attempts(fields[-1])))
                keeping = (self.settings.result_ttl_seconds, "", DEAD_TTL_SECONDS)
                script(args=[KEY_PREFIX, "", "", job_id, code.value, result, *keeping], client=pipe)
            ended = {job_id for job_id, answer in zip(job_ids, pipe.execute(), strict=True) if answer == 1}
            for queue in queues - {""}:
                while self._run("trim", [KEY_PREFIX, queue, TRIMMED_AT_ONCE]):
                    pass
        return ended

    def watch_jobs(self, job_ids: Sequence[str], waker: Waker) -> JobWatch:
        """Subscribe to the notices that `finish.lua` publishes."""
        return self._notices.watch_jobs(job_ids, waker)

    def watch_batch(self, name: str, waker: Waker) -> BatchWatch:
        """Follow the stream of the batch's ends."""
        return self._notices.watch_batch(name, waker)

    def earlier_outcome(self, job_id: str, run: int) -> Outcome | None:
        """Read the result record that the next run has moved."""
        with self._connections.guard():
            client: Any = self._connections.redis
            raw: bytes | None = client.get(run_key(job_id, run))
        return None if raw is None else parse_outcome(raw, job_id, self._read_record)

    def read_batch(self, name: str, place: str = "", limit: int = 0) -> BatchState:
        """Read counts and ends in one step."""
        with self._connections.guard():
            total, ended, last, ends, imported, counts = self._run("read_batch", [KEY_PREFIX, name, place, limit])
        fields = dict(zip(counts[::2], counts[1::2], strict=True))
        return BatchState(
            total,
            ended,
            {key.decode(): int(value) for key, value in fields.items() if key.isupper()},
            b"sealed" in fields,
            [
                (job_id, int(run))
                for job_id, _, run in (line.partition(" ") for line in ends.decode().split("\n"))
                if run
            ],
            last.decode(),
            imported,
        )

    def batch_ids(self, name: str) -> list[str]:
        """Read the list that submits write; a job whose record was lost, and that was run again, stands in it twice."""
        with self._connections.guard():
            client: Any = self._connections.redis
            return list(dict.fromkeys(item.decode() for item in client.lrange(batch_key(name), 0, -1)))

    def seal(self, name: str) -> None:
        """Set a field of the batch's counts."""
        with self._connections.guard():
            self._run("seal", [KEY_PREFIX, name])

    def forget_batch(self, name: str) -> Iterator[tuple[int, int]]:
        """Delete some hundred jobs at a time."""
        with self._connections.guard():
            client: Any = self._connections.redis
            left: int = client.llen(batch_key(name))
        while left > 0:
            with self._connections.guard():
                kept, *raw = self._run("forget_batch", [KEY_PREFIX, name, min(left, FORGOTTEN_AT_ONCE)])
            ids = [job_id.decode() for job_id in raw]
            if ids:
                self._letters.purge(ids)
            left -= FORGOTTEN_AT_ONCE
            yield len(ids), kept

    def dead_letters(self, limit: int) -> list[DeadLetter]:
        """Read the newest."""
        return self._letters.read_newest(limit)

    def dead_letter(self, job_id: str) -> DeadLetter | None:
        """Read one."""
        return self._letters.read(job_id)

    def dead_runs(self, batch: str | None) -> Iterator[list[tuple[str, int]]]:
        """Read ids and runs only."""
        return self._letters.find_runs(batch)

    def start_runs(self, runs: Sequence[tuple[str, int]]) -> list[RunState]:
        """Put each message back as it was."""
        return self._letters.start_runs(runs)

    def purge_dead(self, job_ids: Sequence[str] | None) -> int:
        """Delete letters."""
        return self._letters.purge(job_ids)

    def count_dropped_dead(self) -> int:
        """Read the counter."""
        return self._letters.count_dropped()

    def has_workers(self, timeout_seconds: float) -> bool:
        """Ping all workers and return at the first answer."""
        with self._connections.guard():
            try:
                answers = self._ping_workers(timeout_seconds)
            except (RedisConnectionError, OperationalError):
                # Celery keeps its connections, and asks one that Redis has closed meanwhile before it makes another.
                answers = self._ping_workers(timeout_seconds)
        return bool(answers)

    def _ping_workers(self, timeout_seconds: float) -> Any:
        control = self._connections.app.control
        return control.broadcast("ping", reply=True, timeout=timeout_seconds, limit=1)

    def ping(self) -> None:
        """Ask Redis for a sign of life."""
        with self._connections.guard():
            self._connections.redis.ping()  # pyright: ignore[reportUnknownMemberType]

    def close(self) -> None:
        """Close every connection; the next use opens new ones."""
        self._notices.close()
        self._connections.close()

    def _script(self, name: str) -> Any:
        return self._connections.script(read_script(name))

    def _run(self, name: str, arguments: Iterable[Any]) -> Any:
        return self._script(name)(args=list(arguments))


@lru_cache(maxsize=256)
def _encode_delivery(priority: int, queue_ttl: float, max_attempts: int) -> str:
    return f"{step_of(priority)} {max(1, round(queue_ttl * MILLI))} {max_attempts}"


def _parse_record(facts: Sequence[bytes | None]) -> JobRecord | None:
    """Return what the values of `RECORD_FIELDS` say; a stock producer's job has a state, from its claim on, and no record."""
    found = dict(zip(RECORD_FIELDS, facts, strict=True))
    state, run, why, why_at = found["state"], found["run"], found["why"], found["why_at"]
    if state is None:
        return None
    try:
        record = JobRecord.model_validate_json(found["record"] or b"{}")
    except ValidationError:
        record = JobRecord()  # it is there, so the job is known
    number = int(run) if run and run.isdigit() else 1
    known: dict[str, object] = {"state": state.decode(), "queue": (found["queue"] or b"").decode(), "run": number}
    if why and state == b"queued":
        at = float(why_at) / MILLI if why_at and why_at.isdigit() else 0.0
        known |= {"why": why.decode(errors="replace"), "why_at": at}
    return record.model_copy(update=known)
