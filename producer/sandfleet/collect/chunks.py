"""Chunks of live output as readers get them: with what was skipped, and as text. Pure: no I/O."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sandfleet_config.utf8 import cut_to_characters

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sandfleet_config.live import LiveEntry
    from sandfleet_config.outcome import Outcome

_Decoder: Final = codecs.getincrementaldecoder("utf-8")


@dataclass(frozen=True, slots=True)
class OutputChunk:
    r"""Output of a running program: `data` of `stream` (``stdout`` or ``stderr``).

    `offset` is that of its first byte in all that the attempt has written to the stream. `skipped`
    bytes before it were lost: the program wrote faster than they are sent, or this reader was too
    slow. Where the last bytes are missing, a chunk without `data` at the end says how many. `attempt`
    and `run` count from 1; each attempt begins at offset 0.

    `text` is `data` as text. A character whose last bytes come later is in the text of the chunk
    that has them; bytes that are not UTF-8 are ``\ufffd``.
    """

    stream: str
    offset: int
    data: bytes
    text: str
    skipped: int
    attempt: int
    run: int

    @property
    def end(self) -> int:
        """The offset behind the last byte."""
        return self.offset + len(self.data)


class _Position:
    """How far one stream of one attempt was read."""

    def __init__(self) -> None:
        self.end = 0
        self.decoder = _Decoder(errors="replace")

    def take_rest(self) -> str:
        """Return what stands for the first bytes of a character whose last bytes never came."""
        rest = self.decoder.decode(b"", final=True)
        self.decoder.reset()
        return rest


class ChunkReader:
    """Makes chunks of the entries of one job's stream, in their order."""

    def __init__(self) -> None:
        self._attempt = (0, 0)
        self._positions: dict[str, _Position] = {}

    def read(self, entries: Iterable[LiveEntry]) -> Iterator[OutputChunk]:
        """Yield the chunks of the next entries."""
        for entry in entries:
            attempt = (entry.run, entry.attempt)
            if attempt < self._attempt:
                continue  # of a worker that has lost the job
            if attempt > self._attempt:
                yield from self.finish()
                self._attempt, self._positions = attempt, {}
            position = self._positions.setdefault(entry.stream, _Position())
            if entry.offset >= position.end:  # else it was read
                yield self._new_chunk(entry, position)

    def _new_chunk(self, entry: LiveEntry, position: _Position) -> OutputChunk:
        skipped, data, before = entry.offset - position.end, entry.data, ""
        if skipped:
            before = position.take_rest()
            data = cut_to_characters(data, is_cut_at_start=True)
        position.end = entry.offset + len(entry.data)
        text = before + position.decoder.decode(data)
        return OutputChunk(entry.stream, entry.offset, entry.data, text, skipped, entry.attempt, entry.run)

    def finish(self) -> Iterator[OutputChunk]:
        """Yield the text of incomplete characters, in chunks without bytes."""
        run, attempt = self._attempt
        for name, position in self._positions.items():
            if rest := position.take_rest():
                yield OutputChunk(name, position.end, b"", rest, 0, attempt, run)

    def find_missing(self, outcome: Outcome | None) -> Iterator[OutputChunk]:
        """Yield how many bytes the last attempt has written beyond those that were read.

        They are in chunks without bytes. Nothing is known without an outcome.
        """
        if outcome is None:
            return
        last = outcome.run, max(1, len(outcome.attempts))
        if last < self._attempt:
            return  # of an earlier run
        positions = self._positions if last == self._attempt else {}
        for name, output in (("stdout", outcome.stdout), ("stderr", outcome.stderr)):
            total, end = output.total_bytes, positions[name].end if name in positions else 0
            if total > end:
                yield OutputChunk(name, total, b"", "", total - end, attempt=last[1], run=last[0])
