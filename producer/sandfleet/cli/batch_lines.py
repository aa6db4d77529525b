"""Print the live output of a batch's jobs line by line, each with the name of its job."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from sandfleet_config.units import format_bytes

from sandfleet.cli.progress import SHORT_ID, SHOWN_NAME
from sandfleet.cli.show import note, safe_line
from sandfleet.errors import FleetError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sandfleet.batch import Batch
    from sandfleet.collect.chunks import OutputChunk

MAX_LINE_CHARS: Final = 1000
"""A longer line is printed in parts."""
MAX_NAMES: Final = 10_000
"""Most jobs whose names, and whose lines without an end, are remembered."""
PART_SECONDS: Final = 1.0
"""A line without an end is printed if nothing was added to it for so long: it may be a question."""
END_SECONDS: Final = 3.0
"""How long the last lines may take after the last job has ended."""


class _Part(NamedTuple):
    """The beginning of a line, and when the last of it came."""

    text: str
    at: float


class BatchLines:
    """Joins chunks to lines; `print_line` gets each, with the name of its job before it."""

    def __init__(
        self,
        find_name: Callable[[str], str],
        print_line: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._find_name, self._print_line, self._clock = find_name, print_line, clock
        self._names: dict[str, str] = {}
        self._parts: dict[tuple[str, str], _Part] = {}
        self._attempts: dict[str, tuple[int, int]] = {}

    def add(self, job_id: str, chunk: OutputChunk) -> None:
        """Print the lines that are complete by now."""
        key, attempt = (job_id, chunk.stream), (chunk.run, chunk.attempt)
        if self._attempts.setdefault(job_id, attempt) != attempt:
            self._end_lines(job_id)
            self._attempts[job_id] = attempt
            self._print(job_id, f"[attempt {chunk.attempt} of run {chunk.run} begins anew]")
        if chunk.skipped:
            self._end_line(key)
            self._print(job_id, f"[{format_bytes(chunk.skipped)} of {chunk.stream} were skipped]")
        before = self._parts.pop(key, None)
        *lines, rest = ((before.text if before else "") + chunk.text).split("\n")
        for line in lines:
            self._print(job_id, line)
        while len(rest) > MAX_LINE_CHARS:
            self._print(job_id, rest[:MAX_LINE_CHARS])
            rest = rest[MAX_LINE_CHARS:]
        if rest:
            if len(self._parts) >= MAX_NAMES:
                self.finish()
            self._parts[key] = _Part(rest, self._clock())

    def print_old(self) -> None:
        """Print the lines without an end to which nothing was added for a while."""
        now = self._clock()
        for key in [key for key, part in self._parts.items() if now - part.at >= PART_SECONDS]:
            self._end_line(key)

    def finish(self) -> None:
        """Print what has no end of line."""
        for key in list(self._parts):
            self._end_line(key)

    def _end_lines(self, job_id: str) -> None:
        for stream in ("stdout", "stderr"):
            self._end_line((job_id, stream))

    def _end_line(self, key: tuple[str, str]) -> None:
        if (part := self._parts.pop(key, None)) is not None:
            self._print(key[0], part.text)

    def _print(self, job_id: str, line: str) -> None:
        if job_id not in self._names:
            if len(self._names) >= MAX_NAMES:
                self._names.clear()
                self._attempts.clear()
            name = safe_line(self._find_name(job_id) or job_id[:SHORT_ID])
            self._names[job_id] = name if len(name) <= SHOWN_NAME else f"{name[: SHOWN_NAME - 3]}..."
        self._print_line(f"{self._names[job_id]} | {safe_line(line)}")


@contextmanager
def print_output(batch: Batch, find_name: Callable[[str], str], print_line: Callable[[str], object]) -> Generator[None]:
    """Print lines in another thread, until the context is left.

    `find_name` returns the name of a job, empty if it has none.
    """
    lines = BatchLines(find_name, print_line)
    stop = threading.Event()

    def follow() -> None:
        try:
            for job_id, chunk in batch.stream(cancel=stop, on_round=lines.print_old):
                lines.add(job_id, chunk)
        except BrokenPipeError:
            return  # nobody reads the lines any more; the wait goes on
        except FleetError as error:
            if not stop.is_set():  # else the wait for the batch has raised it, too
                note(f"no more output is shown: {error}")
        lines.finish()

    thread = threading.Thread(target=follow, name="sandfleet-output", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()  # it prints what has come by now
        thread.join(END_SECONDS)
