"""Dead letters in Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sandfleet_config.codes import ErrorCode, read_code
from sandfleet_config.queues import KEY_PREFIX, dead_key, job_key
from sandfleet_config.scripts import DEAD_TTL_SECONDS, MAX_DEAD_BYTES, MAX_DEAD_LETTERS, read_script

from sandfleet.channel.message import read_request

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from sandfleet.channel.connection import Connections
    from sandfleet.channel.dead_letter import DeadLetter

DEAD: Final = f"{KEY_PREFIX}dead"
MILLI: Final = 1000
CHUNK_JOBS: Final = 200
SHOWN_BYTES: Final = 200


class RedisDeadLetters:
    """Reads dead letters and drops them; `RedisRuns` queues them again."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def read_newest(self, limit: int) -> list[DeadLetter]:
        """Return the newest `limit`, newest first."""
        with self._connections.guard():
            client: Any = self._connections.redis
            ids: list[bytes] = client.zrange(DEAD, 0, max(0, limit - 1), desc=True)
            pipe = self._connections.new_pipe()
            for job_id in ids:
                pipe.hgetall(dead_key(job_id.decode()))
            found = pipe.execute()
        return [self._parse(job_id.decode(), fields) for job_id, fields in zip(ids, found, strict=True) if fields]

    def read(self, job_id: str) -> DeadLetter | None:
        """Return one dead letter, None if there is none."""
        fields = self._read_fields(job_id)
        return self._parse(job_id, fields) if fields else None

    def _parse(self, job_id: str, fields: Mapping[bytes, bytes]) -> DeadLetter:
        return parse_dead_letter(job_id, fields, shows_whole=self._connections.settings.shows_whole_commands)

    def _read_fields(self, job_id: str) -> dict[bytes, bytes]:
        with self._connections.guard():
            client: Any = self._connections.redis
            found: dict[bytes, bytes] = client.hgetall(dead_key(job_id))
        return found

    def find_runs(self, batch: str | None) -> Iterator[list[tuple[str, int]]]:
        """Yield (job id, run) of dead letters, oldest first.

        Messages that are no job are left out.
        """
        with self._connections.guard():
            client: Any = self._connections.redis
            ids: list[str] = [item.decode(errors="replace") for item in client.zrange(DEAD, 0, -1)]
        for at in range(0, len(ids), CHUNK_JOBS):
            part = ids[at : at + CHUNK_JOBS]
            with self._connections.guard():
                pipe = self._connections.new_pipe()
                for job_id in part:
                    pipe.hmget(dead_key(job_id), "code", "run", "batch")
                    pipe.hget(job_key(job_id), "batch")  # an older release did not write it to the dead letter
                found = pipe.execute()
            dead_letters = zip(part, found[::2], found[1::2], strict=True)
            yield [
                (job_id, _parse_run(run))
                for job_id, (code, run, named), recorded in dead_letters
                if code and (batch is None or (named or recorded or b"").decode() == batch)
            ]

    def purge(self, job_ids: Sequence[str] | None) -> int:
        """Delete dead letters, a few hundred at a time; all of them for None."""
        if job_ids is not None:
            return sum(self._drop(job_ids[at : at + CHUNK_JOBS]) for at in range(0, len(job_ids), CHUNK_JOBS))
        total = 0
        client: Any = self._connections.redis
        while True:
            with self._connections.guard():
                ids = [item.decode() for item in client.zrange(DEAD, 0, CHUNK_JOBS - 1)]
            if not ids:
                return total
            total += self._drop(ids)

    def _drop(self, job_ids: Sequence[str]) -> int:
        bounds = (DEAD_TTL_SECONDS, MAX_DEAD_LETTERS, MAX_DEAD_BYTES)
        with self._connections.guard():
            count: Any = self._connections.script(read_script("drop_dead"))(args=[KEY_PREFIX, *bounds, *job_ids])
        return int(count)

    def count_dropped(self) -> int:
        """Read how many were dropped early."""
        with self._connections.guard():
            client: Any = self._connections.redis
            found: bytes | None = client.get(f"{DEAD}_dropped")
        return int(found) if found and found.isdigit() else 0


def parse_dead_letter(job_id: str, fields: Mapping[bytes, bytes], *, shows_whole: bool = False) -> DeadLetter:
    """Return what people may see of a dead letter: not its message, unless that is no job."""
    from sandfleet.channel.dead_letter import DeadLetter
    from sandfleet.channel.ended_in_queue import parse_attempts

    message = fields.get(b"message", b"")
    request = read_request(message)
    return DeadLetter(
        job_id=job_id,
        code=_read_code(fields.get(b"code", b"").decode(errors="replace")),
        reason=fields.get(b"reason", b"").decode(errors="replace"),
        at=float(fields.get(b"at", b"0")) / MILLI,
        queue=fields.get(b"queue", b"").decode(errors="replace"),
        batch=request.batch if request else None,
        line=request.spec.to_line(is_whole=shows_whole) if request else "",
        attempts=parse_attempts(fields.get(b"attempts")),
        garbage="" if request else show_bytes(message),
        run=_parse_run(fields.get(b"run")),
    )


def _read_code(text: str) -> ErrorCode | None:
    try:
        return read_code(text)
    except ValueError:
        return None


def _parse_run(raw: bytes | None) -> int:
    return int(raw) if raw and raw.isdigit() else 1


def show_bytes(raw: bytes) -> str:
    r"""Return the first bytes as text that is safe to print, ``\x1b`` and the like spelled out."""
    text = ascii(raw[:SHOWN_BYTES])[2:-1]
    return text if len(raw) <= SHOWN_BYTES else f"{text}... ({len(raw)} bytes)"
