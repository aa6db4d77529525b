"""The part of `RedisChannel` that reads and changes batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sandfleet_config.queues import KEY_PREFIX, batch_key
from sandfleet_config.scripts import read_script

from sandfleet.channel.ended_reader import EndedReader
from sandfleet.channel.records import BatchState, parse_codes
from sandfleet.channel.redis_dead_letters import RedisDeadLetters

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sandfleet.channel.connection import Connections
    from sandfleet.channel.records import NewEntries

FORGOTTEN_AT_ONCE: Final = 500


class RedisBatches:
    """Part of `RedisChannel`: batches, and the scripts that all of its parts run."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._ended = EndedReader(connections)
        self._dead_letters = RedisDeadLetters(connections)

    def read_batch(self, name: str, cursor: str = "", limit: int = 0) -> BatchState:
        """Read counts and stream entries in one step."""
        with self._connections.guard():
            total, ended, last, entries, imported, counts = self._run("read_batch", [KEY_PREFIX, name, cursor, limit])
        fields = dict(zip(counts[::2], counts[1::2], strict=True))
        lines = [line.partition(" ") for line in entries.decode().split("\n")]
        return BatchState(
            total,
            ended,
            parse_codes(fields),
            b"sealed" in fields,
            [(job_id, int(run)) for job_id, _, run in lines if run],
            last.decode(),
            imported,
        )

    def ended_chunks(self, name: str, cursor: str) -> Iterator[NewEntries]:
        """Read stream entries, the next ones while the caller works."""
        return self._ended.read_chunks(name, cursor)

    def batch_ids(self, name: str) -> list[str]:
        """Read the batch's list of job ids, each once.

        A job whose record was lost, and that was run again, is in the list twice.
        """
        with self._connections.guard():
            client: Any = self._connections.redis
            return list(dict.fromkeys(item.decode() for item in client.lrange(batch_key(name), 0, -1)))

    def batch_page(self, name: str, position: int, limit: int) -> list[str]:
        """Read a part of the batch's list of job ids."""
        with self._connections.guard():
            client: Any = self._connections.redis
            return [item.decode() for item in client.lrange(batch_key(name), position, position + limit - 1)]

    def seal(self, name: str, on_done: str = "") -> None:
        """Set the field `sealed` of the batch's counts; queue a webhook if it is done."""
        with self._connections.guard():
            self._run("seal", [KEY_PREFIX, name, on_done])

    def forget_batch(self, name: str) -> Iterator[tuple[int, int]]:
        """Delete some hundred jobs at a time."""
        with self._connections.guard():
            client: Any = self._connections.redis
            # Once at least: the history may have runs of a batch that Redis does not have any more.
            left: int = client.llen(batch_key(name)) or 1
        while left > 0:
            with self._connections.guard():
                not_ended, *raw = self._run("forget_batch", [KEY_PREFIX, name, min(left, FORGOTTEN_AT_ONCE)])
            ids = [job_id.decode() for job_id in raw]
            if ids:
                self._dead_letters.purge(ids)
            left -= FORGOTTEN_AT_ONCE
            yield len(ids), not_ended

    def _script(self, name: str) -> Any:
        return self._connections.script(read_script(name))

    def _run(self, name: str, arguments: Iterable[Any]) -> Any:
        return self._script(name)(args=list(arguments))
