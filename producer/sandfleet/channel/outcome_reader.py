"""Read outcomes from where Celery stores results."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from sandfleet_config.queues import result_key, run_key

from sandfleet.channel.pipelined import PipelinedCall
from sandfleet.channel.record_reader import parse_record, read_record_fields

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sandfleet_config.outcome import Outcome

    from sandfleet.channel.connection import Connections
    from sandfleet.channel.records import JobRecord

PARSED_AT_ONCE: Final = 50
"""So few objects that the garbage collector does not start if the caller drops each outcome.

Measured: 200 at once take 1.4 times the CPU.
"""


class OutcomeReader:
    """Reads outcomes.

    A result that cannot be read becomes the outcome ``INTERNAL``, which says why.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections

    def read_chunks(self, chunks: Iterable[Sequence[str]]) -> Iterator[tuple[Sequence[str], list[Outcome | None]]]:
        """Read chunk by chunk; parse one while Redis looks up the next."""
        # Not at the top of the module: a submit needs no outcomes. Not within the guard: it would tell
        # an OSError of the import as one of Redis.
        import_module("sandfleet.channel.stored_result")
        last: tuple[Sequence[str], list[bytes | None]] = ((), [])
        for job_ids in chunks:
            call = PipelinedCall(self._connections.redis, "MGET", *map(result_key, job_ids))
            with self._connections.guard(), call:
                yield from self._parse(*last)
                found: list[bytes | None] = call.answer()
            last = job_ids, found
        yield from self._parse(*last)

    def _parse(
        self, job_ids: Sequence[str], found: Sequence[bytes | None]
    ) -> Iterator[tuple[Sequence[str], list[Outcome | None]]]:
        from sandfleet.channel.stored_result import parse_outcome

        read_record = self._read_record
        for start in range(0, len(job_ids), PARSED_AT_ONCE):
            part = slice(start, start + PARSED_AT_ONCE)
            yield (
                job_ids[part],
                [
                    None if raw is None else parse_outcome(raw, job_id, read_record)
                    for job_id, raw in zip(job_ids[part], found[part], strict=True)
                ],
            )

    def read_run(self, job_id: str, run: int) -> Outcome | None:
        """Read the outcome of an earlier run, which the next run has moved."""
        with self._connections.guard():
            client: Any = self._connections.redis
            raw: bytes | None = client.get(run_key(job_id, run))
        from sandfleet.channel.stored_result import parse_outcome

        return None if raw is None else parse_outcome(raw, job_id, self._read_record)

    def _read_record(self, job_id: str) -> JobRecord | None:
        return parse_record(read_record_fields(self._connections, [job_id])[0])
