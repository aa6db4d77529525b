"""Wait for many jobs: print progress, outcomes and a summary, and how to resume."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from sandfleet.cli.exits import INTERRUPTED, TIMEOUT
from sandfleet.cli.jsonl import STDIN, write_outcome
from sandfleet.cli.show import explain, note, print_summary, safe_line, stderr_console
from sandfleet.errors import FleetError, ResultTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence

    from sandfleet_config.codes import ErrorCode
    from sandfleet_config.outcome import Outcome

    from sandfleet.batch import Batch
    from sandfleet.collect.stream import OutcomeStream
    from sandfleet.fleet import Fleet
    from sandfleet.job import Job

PLAIN_SECONDS = 5.0
"""Least time between lines of progress if stderr is no terminal."""
IDS_ON_A_LINE = 5


class _Meter:
    """Prints progress on stderr: a bar on a terminal, else a line now and then."""

    def __init__(self, total: int) -> None:
        self.done = 0
        self._total = total
        self._not_ok = 0
        self._printed_at = time.monotonic()
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
        elif time.monotonic() - self._printed_at >= PLAIN_SECONDS or self.done == self._total:
            self._printed_at = time.monotonic()
            note(f"{self.done} of {self._total} jobs ended, {self._not_ok} not OK")


@dataclass(frozen=True)
class Results:
    """The file that outcomes are written to, and its name as typed; None for no file.

    `take` is called with each outcome once it is written.
    """

    name: str | None = None
    file: IO[str] | None = None
    take: Callable[[Outcome], object] | None = None


@contextmanager
def open_results(name: str | None, take: Callable[[Outcome], object] | None = None) -> Generator[Results]:
    """Open the file `name` to append to; ``-`` is stdout.

    Raises:
        OSError: it cannot be written.
    """
    if name is None or name == STDIN:
        yield Results(name, None if name is None else sys.stdout, take)
        return
    with Path(name).open("a", encoding="utf-8") as file:
        yield Results(name, file, take)


def wait_for_jobs(
    fleet: Fleet,
    jobs: Sequence[Job | str],
    results: Results,
    *,
    timeout: float | None = None,
    batch: str | None = None,
    is_listed: bool = True,
) -> tuple[int, Counter[ErrorCode]]:
    """Wait for `jobs`, write outcomes as they come, print a summary; return exit code and counts.

    `is_listed` prints one line for each job on stdout if `results` has no file. Ctrl-C and the
    timeout end the wait, not the jobs. `batch` is the name of the batch if `jobs` are all of it.
    """
    left = dict.fromkeys(job if isinstance(job, str) else job.id for job in jobs)

    def forget(outcome: Outcome) -> None:
        left.pop(outcome.job_id, None)

    def resume() -> str:
        return resume_batch(batch, results.name) if batch else resume_jobs(left, results.name)

    stream = fleet.as_completed(jobs, timeout)
    return _wait(stream, len(left), forget, resume, results=results, is_listed=is_listed)


def wait_for_batch(batch: Batch, *, out: str | None, timeout: float | None = None) -> int:
    """Wait for all jobs of `batch` as `wait_for_jobs` does; return the exit code."""
    stream, total = batch.as_completed(timeout), batch.counts.total
    with open_results(out) as results:
        return _wait(
            stream, total, lambda _: None, lambda: resume_batch(batch.name, out), results=results, is_listed=True
        )[0]


def _wait(
    stream: OutcomeStream,
    total: int,
    take: Callable[[Outcome], None],
    resume: Callable[[], str],
    *,
    results: Results,
    is_listed: bool,
) -> tuple[int, Counter[ErrorCode]]:
    counts: Counter[ErrorCode] = Counter()

    def note_stop(reason: str) -> None:
        note(f"{reason}; {max(0, total - counts.total())} jobs go on. To resume: {resume()}")

    try:
        with _Meter(total) as meter:
            for outcome in stream:
                take(outcome)
                counts[outcome.code] += 1
                if results.file is not None:
                    write_outcome(results.file, outcome.to_json())
                elif is_listed:
                    print(f"{outcome.job_id}\t{safe_line(explain(outcome))}", flush=True)
                meter.count(outcome)
                if results.take is not None:
                    results.take(outcome)
    except KeyboardInterrupt:
        note_stop("stopped waiting")
        return INTERRUPTED, counts
    except ResultTimeout:
        note_stop("the time is up")
        print_summary(counts)
        return TIMEOUT, counts
    except FleetError:
        note_stop("stopped waiting")
        raise
    return print_summary(counts), counts


def resume_batch(name: str, out: str | None) -> str:
    """Return the command that waits for a whole batch, with a remark if it repeats outcomes."""
    command = shlex.join(["sandfleet", "batch", "wait", name, *(["--out", out] if out else [])])
    return f"{command} (it writes those that have ended once more)" if out else command


def resume_jobs(job_ids: Iterable[str], out: str | None) -> str:
    """Return the command that waits for these jobs; many ids are written to a file."""
    ids = list(job_ids)
    if len(ids) <= IDS_ON_A_LINE:
        words = ids
    else:
        descriptor, name = tempfile.mkstemp(prefix="sandfleet-wait-", suffix=".ids")
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(f"{job_id}\n" for job_id in ids)
        words = ["--file", name]
    return shlex.join(["sandfleet", "wait", *words, *(["--out", out] if out else [])])
