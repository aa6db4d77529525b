"""Waiting for many jobs at a terminal: a progress bar, results as they come, a summary, and a way to resume."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sandfleet.cli.exits import INTERRUPTED, TIMEOUT
from sandfleet.cli.jsonl import STDIN, write_outcome
from sandfleet.cli.show import explain, note, print_summary, safe_line, stderr_console
from sandfleet.errors import FleetError, ResultTimeout

if TYPE_CHECKING:
    from sandfleet_config.errors import ErrorCode
    from sandfleet_config.outcome import Outcome

    from sandfleet.fleet import Fleet

PLAIN_SECONDS = 5.0
"""Without a terminal one line of progress is printed at most this often."""
IDS_ON_A_LINE = 5


class _Meter:
    """Says how far the wait is: a bar on a terminal, a line now and then elsewhere; always on stderr."""

    def __init__(self, total: int) -> None:
        self.done = 0
        self._total = total
        self._not_ok = 0
        self._said = time.monotonic()
        console = stderr_console()
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task("jobs", total=total)

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def count(self, outcome: Outcome) -> None:
        self.done += 1
        self._not_ok += not outcome.is_ok
        if self._bar is not None:
            self._bar.update(self._task, advance=1, description=f"jobs ({self._not_ok} not OK)")
        elif time.monotonic() - self._said >= PLAIN_SECONDS or self.done == self._total:
            self._said = time.monotonic()
            note(f"{self.done} of {self._total} jobs ended, {self._not_ok} not OK")


def wait_for_jobs(
    fleet: Fleet, job_ids: list[str], *, out: str | None, timeout: float | None = None, is_listed: bool = True
) -> tuple[int, Counter[ErrorCode]]:
    """Wait for `job_ids`, write outcomes to `out` as they come, sum up; return exit code and counts.

    `is_listed` prints one line a job on stdout where `out` takes none of it. Ctrl-C and the timeout only end the wait.
    """
    left = dict.fromkeys(job_ids)
    counts: Counter[ErrorCode] = Counter()
    with ExitStack() as stack:
        file = _open_out(stack, out)
        try:
            with _Meter(len(left)) as meter:
                for outcome in fleet.as_completed(left, timeout):
                    left.pop(outcome.job_id, None)
                    counts[outcome.code] += 1
                    if file is not None:
                        write_outcome(file, outcome.to_json())
                    elif is_listed:
                        print(f"{outcome.job_id}\t{safe_line(explain(outcome))}", flush=True)
                    meter.count(outcome)
        except KeyboardInterrupt:
            note(f"stopped waiting; {len(left)} jobs go on. To resume: {resume_command(left, out)}")
            return INTERRUPTED, counts
        except ResultTimeout:
            note(f"the time is up; {len(left)} jobs go on. To resume: {resume_command(left, out)}")
            print_summary(counts)
            return TIMEOUT, counts
        except FleetError:
            note(f"stopped waiting; {len(left)} jobs go on. To resume: {resume_command(left, out)}")
            raise
    return print_summary(counts), counts


def _open_out(stack: ExitStack, out: str | None) -> IO[str] | None:
    if out is None:
        return None
    if out == STDIN:
        return sys.stdout
    return stack.enter_context(Path(out).open("a", encoding="utf-8"))


def resume_command(job_ids: dict[str, None], out: str | None) -> str:
    """Return the command that waits for the rest; many ids go through a file."""
    ids = list(job_ids)
    if len(ids) <= IDS_ON_A_LINE:
        words = ids
    else:
        descriptor, name = tempfile.mkstemp(prefix="sandfleet-wait-", suffix=".ids")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(f"{job_id}\n" for job_id in ids)
        words = ["--file", name]
    return shlex.join(["sandfleet", "wait", *words, *(["--out", out] if out else [])])
