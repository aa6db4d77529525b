"""Read the stream of ended runs, and decide what each entry is: the next run, a gap, or none of ours."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from sandfleet.channel.connection import Connections
from sandfleet_config.ended_run import MAX_SUMMARY_BYTES, cut_name, parse_summary
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_config.scripts import read_script

from sandfleet_web.history.rows import NewRow

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandfleet_config.settings import Settings

    from sandfleet_web.history.store import Position

PACKAGE: Final = "sandfleet_web"
MAX_ENTRIES: Final = 500
MAX_AHEAD_MS: Final = 300_000
"""An entry that is further ahead of Redis's clock was forged, or the clock was set back."""
MAX_DIGITS: Final = 18
REWIND_MS: Final = 60_000


class Entry(NamedTuple):
    """An entry of the stream as it is there."""

    entry_id: str
    number: bytes
    summary: bytes


class Chunk(NamedTuple):
    """Entries after a position. `now` is Redis's clock (ms), `head` the newest number, 0: unknown."""

    now: int
    head: int
    newest_id: str
    forgotten: Mapping[str, int]
    entries: Sequence[Entry]

    @property
    def is_full(self) -> bool:
        """Whether more entries may follow at once."""
        return len(self.entries) >= MAX_ENTRIES


class RunStream:
    """The stream in Redis. Each method raises `FleetUnavailable` if Redis is out of reach."""

    def __init__(self, settings: Settings) -> None:
        self._connections = Connections(settings)
        self.address = settings.redis_address

    def close(self) -> None:
        """Close the connections."""
        self._connections.close()

    def read(self, position: Position, forgotten_ms: int) -> Chunk:
        """Return the next entries, and the first batches that were forgotten after a time (ms)."""
        arguments = [KEY_PREFIX, position.stream_id, MAX_ENTRIES, MAX_SUMMARY_BYTES, forgotten_ms]
        with self._connections.guard():
            script = self._connections.script(read_script("read_ended_runs", PACKAGE))
            now, head, newest, names, raw = script(args=arguments)
        forgotten = {
            name.decode(errors="replace"): int(float(at)) for name, at in zip(names[::2], names[1::2], strict=True)
        }
        entries = [
            Entry(entry_id.decode(), number, summary)
            for entry_id, number, summary in zip(raw[::3], raw[1::3], raw[2::3], strict=True)
        ]
        return Chunk(now, _parse_number(head), newest.decode(), forgotten, entries)

    def read_run_id(self) -> str:
        """Return the id of the server's run: another one means that it was started anew."""
        client: Any = self._connections.redis
        with self._connections.guard():
            return str(client.info("server").get("run_id", ""))


def find_start(position: Position, address: str, run_id: str, newest_id: str) -> Position:
    """Return from where to read a server. Rows that are stored already are not stored twice.

    At the stream's begin if it is another server, or one whose stream was made anew. One that was
    started anew, or took over from its primary, may have lost the last second, and its clock may be
    behind: then a minute is read again.
    """
    is_other = bool(position.redis) and position.redis != address
    if is_other or is_anew(position, newest_id):
        position = replace(position, stream_id="0-0")
    elif position.redis_run not in {"", run_id}:
        position = replace(position, stream_id=f"{max(0, _split_id(position.stream_id)[0] - REWIND_MS)}-0")
    return replace(position, redis=address, redis_run=position.redis_run or run_id)


def is_anew(position: Position, newest_id: str) -> bool:
    """Whether the stream was made anew: its newest entry is older than the last one that was read."""
    return bool(newest_id) and _split_id(newest_id) < _split_id(position.stream_id)


def take_entries(
    position: Position, chunk: Chunk, forgotten: Mapping[str, int], run_id: str
) -> tuple[Position, list[NewRow]]:
    """Return the position after the chunk, with gaps counted, and the rows to store.

    A number that was given already is forged, unless the server was started anew since: then it may
    have lost the last second, and gives these numbers again.
    """
    if not chunk.entries and position.number < 0 and not chunk.newest_id:
        return replace(position, number=chunk.head), []  # the history begins where no run is in the stream
    may_fall = position.redis_run != run_id or 0 < chunk.head < position.number
    rows: list[NewRow] = []
    for entry in chunk.entries:
        position = replace(position, stream_id=entry.entry_id)
        number = _parse_number(entry.number)
        if may_fall and 0 < number <= position.number:
            position, may_fall = replace(position, number=number - 1), False
        if number <= position.number or (chunk.head and number > chunk.head):
            position = replace(position, skipped=position.skipped + 1)
            continue
        gap = number - position.number - 1 if position.number >= 0 else 0
        position = replace(position, number=number)
        if gap:
            position = replace(position, lost=position.lost + gap, lost_ms=chunk.now)
        row = _parse_row(entry, number, chunk.now)
        if row is None:
            position = replace(position, skipped=position.skipped + 1)
        elif not row.ended <= forgotten.get(row.run.batch, -1):
            rows.append(row)
    return replace(position, redis_run=run_id) if chunk.entries else position, rows


def note_forgotten(forgotten: dict[str, int], found: Mapping[str, int]) -> None:
    """Add batches, by their names as the history has them."""
    for name, at in found.items():
        forgotten[cut_name(name)] = max(at, forgotten.get(cut_name(name), 0))


def _parse_row(entry: Entry, number: int, now: int) -> NewRow | None:
    try:
        run = parse_summary(entry.summary)
    except ValueError:
        return None
    return NewRow(number, min(_split_id(entry.entry_id)[0], now + MAX_AHEAD_MS), run)


def _parse_number(raw: bytes) -> int:
    """Return the number in `raw`, 0 if there is none."""
    return int(raw) if raw.isdigit() and len(raw) <= MAX_DIGITS else 0


def _split_id(entry_id: str) -> tuple[int, int]:
    milliseconds, _, rest = entry_id.partition("-")
    return int(milliseconds), int(rest or 0)
