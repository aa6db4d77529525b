"""Dead letters as Redis holds them."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from sandfleet_config.errors import ErrorCode, read_code
from sandfleet_config.queues import KEY_PREFIX, dead_key
from sandfleet_config.scripts import DEAD_TTL_SECONDS, MAX_DEAD_BYTES, MAX_DEAD_LETTERS, read_script, step_of
from sandfleet_config.wire import request_sha256, spec_sha256

from sandfleet.dead import DeadLetter
from sandfleet.endings import parse_attempts
from sandfleet.message import read_request
from sandfleet.ticket import new_record

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandfleet.connection import Connections

DEAD: Final = f"{KEY_PREFIX}dead"
MILLI: Final = 1000
CHUNK: Final = 200
SHOWN_BYTES: Final = 200


class RedisLetters:
    """Reads, revives and drops dead letters."""

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
        return [parse_letter(job_id.decode(), fields) for job_id, fields in zip(ids, found, strict=True) if fields]

    def read(self, job_id: str) -> DeadLetter | None:
        """Return one."""
        fields = self._read_fields(job_id)
        return parse_letter(job_id, fields) if fields else None

    def _read_fields(self, job_id: str) -> dict[bytes, bytes]:
        with self._connections.guard():
            client: Any = self._connections.redis
            found: dict[bytes, bytes] = client.hgetall(dead_key(job_id))
        return found

    def revive(self, job_id: str) -> str:
        """Queue the letter's message again, with a new record: the old one may be gone."""
        fields = self._read_fields(job_id)
        if not fields:
            return "unknown"
        request = read_request(fields.get(b"message", b""))
        if request is None:
            return "unreadable"
        spec = request.spec
        record = new_record(spec, request.batch, spec_sha256(spec), time.time()).model_dump_json(exclude_defaults=True)
        what = (KEY_PREFIX, job_id, step_of(spec.priority), spec.idempotency_key, request_sha256(spec))
        how = (max(1, round(spec.queue_ttl * MILLI)), spec.max_attempts, record, request.batch or "")
        with self._connections.guard():
            answer: Any = self._connections.script(read_script("revive"))(args=[*what, *how])
        return str(answer.decode())

    def purge(self, job_ids: Sequence[str] | None) -> int:
        """Drop letters, a few hundred at a time."""
        if job_ids is not None:
            return sum(self._drop(job_ids[at : at + CHUNK]) for at in range(0, len(job_ids), CHUNK))
        total = 0
        client: Any = self._connections.redis
        while True:
            with self._connections.guard():
                ids = [item.decode() for item in client.zrange(DEAD, 0, CHUNK - 1)]
            if not ids:
                return total
            total += self._drop(ids)

    def _drop(self, job_ids: Sequence[str]) -> int:
        bounds = (DEAD_TTL_SECONDS, MAX_DEAD_LETTERS, MAX_DEAD_BYTES)
        with self._connections.guard():
            count: Any = self._connections.script(read_script("drop_dead"))(args=[KEY_PREFIX, *bounds, *job_ids])
        return int(count)

    def count_dropped(self) -> int:
        """Read how many were dropped before their time."""
        with self._connections.guard():
            client: Any = self._connections.redis
            found: bytes | None = client.get(f"{DEAD}_dropped")
        return int(found) if found and found.isdigit() else 0


def parse_letter(job_id: str, fields: Mapping[bytes, bytes]) -> DeadLetter:
    """Return what people may see of a letter: never the message, unless it is no job's."""
    message = fields.get(b"message", b"")
    request = read_request(message)
    return DeadLetter(
        job_id=job_id,
        code=_read_code(fields.get(b"code", b"").decode(errors="replace")),
        reason=fields.get(b"reason", b"").decode(errors="replace"),
        at=float(fields.get(b"at", b"0")) / MILLI,
        queue=fields.get(b"queue", b"").decode(errors="replace"),
        batch=request.batch if request else None,
        line=request.spec.to_line() if request else "",
        attempts=parse_attempts(fields.get(b"attempts")),
        garbage="" if request else show_bytes(message),
    )


def _read_code(text: str) -> ErrorCode | None:
    try:
        return read_code(text)
    except ValueError:
        return None


def show_bytes(raw: bytes) -> str:
    r"""Return the first bytes as text that is safe to print, ``\x1b`` and the like spelled out."""
    text = ascii(raw[:SHOWN_BYTES])[2:-1]
    return text if len(raw) <= SHOWN_BYTES else f"{text}... ({len(raw)} bytes)"
