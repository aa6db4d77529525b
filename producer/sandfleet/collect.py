"""Outcomes on their way back: what Celery stored, read as an `Outcome`, and streams of them as jobs end."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, cast

from pydantic import ValidationError
from sandfleet_config.errors import ErrorCode
from sandfleet_config.outcome import Outcome

from sandfleet.errors import JobUnknown, ResultTimeout, name_jobs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from sandfleet.channel import Channel, JobRecord

CHUNK_JOBS = 200
"""Outcomes fetched at once: with full output (64 KiB a stream, base64) about 35 MB."""
FIRST_PAUSE_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.05
PAUSE_GROWTH = 1.5
FIRST_LOOK_SECONDS = 1.0
EXPIRY_SLACK_SECONDS = 0.01
IDLE_SHARE = 4
"""A round over many jobs is followed by a pause this many times as long, so that waiting costs Redis little."""
PRESENCE_SECONDS = 10.0
FOREIGN_CHARS = 500
UNFINISHED = frozenset({"PENDING", "RECEIVED", "STARTED", "RETRY"})


def parse_outcome(
    raw: bytes, job_id: str, read_record: Callable[[str], JobRecord | None] = lambda _: None
) -> Outcome | None:
    """Read Celery's result record; None where the job has not ended.

    What is no outcome of ours becomes one with the code ``INTERNAL`` that says what was found, without repeating it.
    `read_record` is asked only then, for the batch the outcome belongs to.
    """
    code = ErrorCode.INTERNAL
    try:
        body = _as_dict(json.loads(raw))
        match body.get("status"):
            case str(status) if status in UNFINISHED:
                return None
            case "SUCCESS":
                return Outcome.model_validate(body.get("result"))
            case "FAILURE":
                code, message, outcome = _parse_failure(_as_dict(body.get("result")))
                if outcome is not None:
                    return outcome
            case "REVOKED":
                code, message = ErrorCode.CANCELLED, "the job was revoked"
            case _:
                message = "the job's result in Redis has a status that Celery does not know"
    except ValidationError as error:
        fields = ", ".join(sorted({".".join(map(str, item["loc"])) or "outcome" for item in error.errors()}))
        message = f"the job's outcome in Redis cannot be read (at {fields}): is the worker of another release?"
    except (ValueError, TypeError, RecursionError):
        message = "the job's result in Redis is damaged"
    record = read_record(job_id)
    batch, sha256 = (record.batch, record.spec_sha256) if record else (None, "")
    return Outcome.of(code, job_id, message, batch=batch, spec_sha256=sha256)


def _parse_failure(result: dict[str, Any]) -> tuple[ErrorCode, str, Outcome | None]:
    """Take code, message and outcome from a `SandboxError`; name an exception that is none of ours."""
    raw_args = result.get("exc_message")
    args = list(cast("Iterable[Any]", raw_args)) if isinstance(raw_args, list) else [raw_args]
    code = _find_code(args[0]) if len(args) > 1 else None
    if code is None:
        text = f"{result.get('exc_type')}: {' '.join(str(arg) for arg in args)}"
        return ErrorCode.INTERNAL, f"Celery ended the job: {text[:FOREIGN_CHARS]}", None
    try:
        outcome = Outcome.model_validate(args[2]) if len(args) > 2 and args[2] is not None else None  # noqa: PLR2004
    except ValidationError:
        outcome = None  # the code and the message still say what happened
    if outcome is not None and len(args) > 3:  # noqa: PLR2004
        faults = cast("Iterable[Any]", args[3] or ())
        outcome = outcome.with_errors([_as_dict(fault) for fault in faults])
    return code, str(args[1]), outcome


def _find_code(value: object) -> ErrorCode | None:
    """Return the code of an ending that is an error."""
    try:
        code = ErrorCode(str(value))
    except ValueError:
        return None
    return None if code is ErrorCode.OK else code


def split(ids: list[str]) -> list[list[str]]:
    """Return `ids` in portions for one round trip each."""
    return [ids[start : start + CHUNK_JOBS] for start in range(0, len(ids), CHUNK_JOBS)]


def _as_dict(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError
    return cast("dict[str, Any]", value)


class OutcomeStream:
    """The outcomes of some jobs as they end, each once; for ``for`` and for ``async for``.

    Raises, while iterated:
        ResultTimeout: `timeout` seconds after the start of the iteration jobs have not ended; they are in ``job_ids``.
        JobUnknown: after all the others, where Redis has forgotten a job.
        FleetUnavailable: Redis is out of reach for longer than a restart takes.
    """

    def __init__(self, channel: Channel, job_ids: Iterable[str], timeout: float | None = None) -> None:
        self._channel = channel
        self._job_ids = tuple(dict.fromkeys(job_ids))
        self._timeout = timeout

    def _new_wait(self) -> _Wait:
        return _Wait(self._channel, self._job_ids, self._timeout)

    def __iter__(self) -> Iterator[Outcome]:
        """Yield each outcome once."""
        wait = self._new_wait()
        while wait.pending:
            started = time.monotonic()
            for chunk in wait.chunks():
                yield from wait.fetch(chunk)
            if (pause := wait.next_pause(time.monotonic() - started)) is not None:
                time.sleep(pause)
        wait.raise_if_lost()

    async def __aiter__(self) -> AsyncIterator[Outcome]:
        """Yield each outcome once; the event loop stays free."""
        wait = self._new_wait()
        while wait.pending:
            started = time.monotonic()
            for chunk in await asyncio.to_thread(wait.chunks):
                for outcome in await asyncio.to_thread(wait.fetch, chunk):
                    yield outcome
            if (pause := await asyncio.to_thread(wait.next_pause, time.monotonic() - started)) is not None:
                await asyncio.sleep(pause)
        wait.raise_if_lost()


class _Wait:
    """One wait's state: which jobs are still awaited, and when to look again."""

    def __init__(self, channel: Channel, job_ids: Iterable[str], timeout: float | None) -> None:
        self._channel = channel
        self.pending = dict.fromkeys(job_ids)
        self._lost: list[str] = []
        now = time.monotonic()
        self._deadline = None if timeout is None else now + timeout
        self._next_look = now + min(FIRST_LOOK_SECONDS, PRESENCE_SECONDS)
        self._pause = FIRST_PAUSE_SECONDS
        self._has_found = False

    def chunks(self) -> list[list[str]]:
        """Return the jobs of one round, a few hundred at a time."""
        return split(list(self.pending))

    def fetch(self, chunk: list[str]) -> list[Outcome]:
        """Return the outcomes that are there, and await those jobs no longer."""
        ended: list[Outcome] = []
        for job_id, outcome in zip(chunk, self._channel.outcomes(chunk), strict=True):
            if outcome is not None:
                del self.pending[job_id]
                ended.append(outcome)
        self._has_found = self._has_found or bool(ended)
        return ended

    def next_pause(self, round_seconds: float) -> float | None:
        """Return how long to wait before the next round, None where nothing is awaited any more.

        Raises:
            ResultTimeout: the time is up.
        """
        now = time.monotonic()
        is_over = self._deadline is not None and now >= self._deadline
        if (is_over or now >= self._next_look) and self._look(now):
            return 0.0
        if not self.pending:
            return None
        self._pause = FIRST_PAUSE_SECONDS if self._has_found else min(LONGEST_PAUSE_SECONDS, self._pause * PAUSE_GROWTH)
        self._has_found = False
        pause = max(self._pause, IDLE_SHARE * round_seconds)
        if self._deadline is None:
            return pause
        if is_over:
            left = self._awaited()
            raise ResultTimeout(
                f"not ended in time: {name_jobs(left)} (still queued or running; wait again or cancel)", left
            )
        return min(pause, self._deadline - now)

    def _look(self, now: float) -> bool:
        """End what has expired, and stop waiting for what can never come: no record and, looked at after that, no outcome.

        Return whether outcomes are there to be fetched.
        """
        next_look, is_any = PRESENCE_SECONDS, False
        for chunk in split(self._awaited()):
            look = self._channel.look(chunk)
            is_any = is_any or look.ended > 0
            if look.next_expiry is not None:
                next_look = min(next_look, look.next_expiry + EXPIRY_SLACK_SECONDS)
            for job_id, outcome in zip(look.gone, self._channel.outcomes(look.gone), strict=True):
                if outcome is None:
                    self._lose(job_id)
                else:
                    is_any = True
        self._next_look = now + next_look
        return is_any

    def _awaited(self) -> list[str]:
        return list(self.pending)

    def _lose(self, job_id: str) -> None:
        self.pending.pop(job_id, None)
        self._lost.append(job_id)

    def raise_if_lost(self) -> None:
        """Raise `JobUnknown` for the jobs Redis has forgotten."""
        if self._lost:
            raise JobUnknown(f"the fleet no longer knows {name_jobs(self._lost)}", self._lost)


class BatchStream(OutcomeStream):
    """The outcomes of a batch as its jobs end, each once; for ``for`` and ``async for``. It raises what `OutcomeStream` does."""

    def __init__(self, channel: Channel, name: str, timeout: float | None = None) -> None:
        super().__init__(channel, (), timeout)
        self._name = name

    def _new_wait(self) -> _Wait:
        return _BatchWait(self._channel, self._name, self._timeout)


class _BatchWait(_Wait):
    """Follows the list of a batch's ended jobs: a round asks only about what is new in it."""

    def __init__(self, channel: Channel, name: str, timeout: float | None) -> None:
        super().__init__(channel, (), timeout)
        self._name = name
        self._read = 0
        self._seen: set[str] = set()
        # Not the jobs that are awaited, which nobody needs to list, but whether any is.
        self.pending = {name: None}

    def chunks(self) -> list[list[str]]:
        total, done = self._channel.batch_counts(self._name)
        if done < self._read:
            self._read = 0  # an ended job was taken out of the list: a dead letter runs again
        ended = self._channel.done_ids(self._name, self._read) if done > self._read else []
        self._read += len(ended)
        new = [job_id for job_id in dict.fromkeys(ended) if job_id not in self._seen]
        if self._read >= total:
            if len(self._seen) + len(new) < total:
                self._read = 0
            else:
                self.pending.clear()
        return split(new)

    def fetch(self, chunk: list[str]) -> list[Outcome]:
        found = self._channel.outcomes(chunk)
        without = [job_id for job_id, outcome in zip(chunk, found, strict=True) if outcome is None]
        gone = self._channel.look(without).gone
        # One that ended and is there without an outcome is a dead letter that runs again: it ends again.
        self._seen.update(job_id for job_id in chunk if job_id not in without)
        for job_id in gone:
            self._lose(job_id)
        ended = [outcome for outcome in found if outcome is not None]
        self._has_found = self._has_found or bool(ended)
        return ended

    def _awaited(self) -> list[str]:
        return [job_id for job_id in self._channel.batch_ids(self._name) if job_id not in self._seen]

    def _lose(self, job_id: str) -> None:
        self._seen.add(job_id)
        self._lost.append(job_id)
