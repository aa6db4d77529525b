"""Print the output of running jobs as it comes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from sandfleet_config.terminal import safe_text
from sandfleet_config.units import format_bytes

from sandfleet.cli.show import note

if TYPE_CHECKING:
    from sandfleet_config.outcome import Outcome

    from sandfleet.collect.chunks import OutputChunk
    from sandfleet.job import Job

STREAMS: Final[tuple[str, ...]] = ("stdout", "stderr")


class OutputPrinter:
    """Prints chunks on the stream that they are of, and on stderr what was skipped.

    Bytes are written unchanged; if `is_safe`, a terminal gets text that cannot control it.
    """

    def __init__(self, *, is_safe: bool = False) -> None:
        self._safe = {name: is_safe and getattr(sys, name).isatty() for name in STREAMS}
        self._attempt = (1, 1)
        self._offsets: dict[str, int] = dict.fromkeys(STREAMS, 0)
        self.is_any = False
        """Whether anything was printed."""

    def print(self, chunk: OutputChunk) -> None:
        """Print one chunk; `finish` prints or tells what is missing at the end."""
        if chunk.skipped and not chunk.data:
            return
        self._begin(chunk.run, chunk.attempt)
        if chunk.skipped:
            note(f"{format_bytes(chunk.skipped)} of {chunk.stream} were skipped here")
        self._write(chunk.stream, chunk.text if self._safe[chunk.stream] else chunk.data)
        self._offsets[chunk.stream] = chunk.end

    def _begin(self, run: int, attempt: int) -> None:
        if (run, attempt) != self._attempt:
            if self.is_any:
                note(f"attempt {attempt} of run {run} begins anew")
            self._attempt, self._offsets = (run, attempt), dict.fromkeys(STREAMS, 0)

    def _write(self, stream: str, output: str | bytes) -> None:
        self.is_any = self.is_any or bool(output)
        target = getattr(sys, stream)
        if isinstance(output, bytes):
            target.flush()
            target.buffer.write(output)
        else:
            target.write(safe_text(output))
        target.flush()

    def finish(self, outcome: Outcome) -> None:
        """Print what of the job's output was not printed yet, and say what is missing."""
        self._begin(outcome.run, max(1, len(outcome.attempts)))
        for name in STREAMS:
            output, end = getattr(outcome, name), self._offsets[name]
            if not output.truncated or not end:
                rest = output.bytes[end:]
                self._write(name, rest.decode(errors="replace") if self._safe[name] else rest)
            if output.truncated and not end:
                note(
                    f"{name} was cut: {format_bytes(len(output.bytes))} of {format_bytes(output.total_bytes)} are kept"
                )
            elif output.truncated and end < output.total_bytes:
                missing = format_bytes(output.total_bytes - end)
                note(f"the last {missing} of {name} were not shown: sandfleet show {outcome.job_id} has what is kept")


def follow_job(job: Job) -> Outcome:
    """Print the job's output until it ends, all of it once; return its outcome."""
    printer = OutputPrinter()
    for chunk in job.stream():
        printer.print(chunk)
    outcome = job.outcome()
    printer.finish(outcome)
    return outcome
