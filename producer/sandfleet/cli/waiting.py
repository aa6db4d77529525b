"""Wait for many jobs: print progress, outcomes and a summary, and how to resume."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections import Counter
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from sandfleet_config.units import format_count

from sandfleet.cli.batch_lines import print_output
from sandfleet.cli.exits import INTERRUPTED, TIMEOUT
from sandfleet.cli.jsonl import STDIN, write_outcome
from sandfleet.cli.progress import Progress
from sandfleet.cli.show import explain, note, print_summary, safe_line
from sandfleet.errors import FleetError, ResultTimeout

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from contextlib import AbstractContextManager

    from sandfleet_config.codes import ErrorCode
    from sandfleet_config.outcome import Outcome

    from sandfleet.batch import Batch
    from sandfleet.collect.stream import OutcomeStream
    from sandfleet.fleet import Fleet
    from sandfleet.job import Job

IDS_ON_A_LINE = 5


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
    is_quiet: bool = False,
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
    progress = Progress(len(left), batch or "jobs", is_quiet=is_quiet)
    return _wait(stream, progress, forget, resume, results=results, is_listed=is_listed)


def wait_for_batch(
    batch: Batch,
    *,
    out: str | None = None,
    timeout: float | None = None,
    is_listed: bool = False,
    is_quiet: bool = False,
    find_name: Callable[[str], str] | None = None,
) -> int:
    """Wait for all jobs of `batch` as `wait_for_jobs` does; return the exit code.

    With `find_name`, which returns a job's name, print the live output of its jobs, too.
    """
    stream, progress = batch.as_completed(timeout), Progress(batch.counts.total, batch.name, is_quiet=is_quiet)

    def resume() -> str:
        return resume_batch(batch.name, out)

    shown = print_output(batch, find_name, progress.print_line) if find_name is not None else None
    with open_results(out) as results:
        return _wait(stream, progress, lambda _: None, resume, results=results, is_listed=is_listed, shown=shown)[0]


def _wait(
    stream: OutcomeStream,
    progress: Progress,
    take: Callable[[Outcome], None],
    resume: Callable[[], str],
    *,
    results: Results,
    is_listed: bool,
    shown: AbstractContextManager[None] | None = None,
) -> tuple[int, Counter[ErrorCode]]:
    counts: Counter[ErrorCode] = Counter()

    def note_stop(reason: str) -> None:
        note(f"{reason}; {format_count(progress.left, 'job goes', 'jobs go')} on. To resume: {resume()}")

    try:
        with progress, shown or nullcontext():
            for outcome in stream:
                take(outcome)
                counts[outcome.code] += 1
                if results.file is not None:
                    write_outcome(results.file, outcome.to_json())
                elif is_listed:
                    print(f"{outcome.job_id}\t{safe_line(explain(outcome))}", flush=True)
                progress.count(outcome)
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
