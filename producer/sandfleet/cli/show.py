"""Print outcomes for people. Text of a program or a stranger must not control the terminal."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

from sandfleet_config.codes import Category
from sandfleet_config.terminal import safe_text, write_line
from sandfleet_config.units import format_bytes, format_limit

from sandfleet.cli.exits import SOME_NOT_OK

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from rich.console import Console
    from sandfleet_config.codes import ErrorCode
    from sandfleet_config.outcome import Attempt, Outcome, StreamOutput

    from sandfleet.channel.records import JobRecord

SHOWN_ARTIFACTS = 10


def safe_line(text: str) -> str:
    """Return `text` safe and on one line."""
    return safe_text(text).replace("\n", "\\n").replace("\t", " ")


def note(text: str) -> None:
    """Print a message on stderr, as one line."""
    write_line(f"sandfleet: {safe_line(text)}")


def stderr_console() -> Console:
    """Return rich's console on stderr, with markup and highlighting off."""
    from rich.console import Console

    return Console(stderr=True, markup=False, highlight=False)


def explain(outcome: Outcome) -> str:
    """Return the outcome's code and message, or its exit, in one line."""
    return f"{outcome.code.value}: {outcome.message}" if outcome.message else outcome.to_summary().rstrip(": ")


def outcome_lines(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Yield the facts of an outcome, except its output, as (name, text)."""
    yield "job", outcome.job_id
    yield from run_line(outcome.run)
    yield "outcome", explain(outcome)
    if outcome.exit_code is not None:
        yield "exit", str(outcome.exit_code)
    if outcome.signal is not None:
        yield "signal", str(outcome.signal)
    if outcome.timed_out is not None:
        yield "timed out", f"{outcome.timed_out} limit"
    if outcome.retryable:
        yield "try again", "may end better"
    if outcome.batch is not None:
        yield "batch", outcome.batch
    if outcome.labels:
        yield "labels", ", ".join(f"{key}={value}" for key, value in outcome.labels.items())
    yield from _measured(outcome)
    if outcome.limits:
        yield "limits", describe_limits({name: limit.value for name, limit in outcome.limits.items()})
    loose = [name for name, limit in outcome.limits.items() if not limit.enforced]
    if loose:
        yield "not enforced", ", ".join(loose)
    yield from attempt_lines(outcome.attempts)
    if outcome.image_ref:
        yield "image", outcome.image_ref
    if outcome.image_digest:
        yield "digest", outcome.image_digest


def describe_limits(limits: Mapping[str, float]) -> str:
    """Return limits with their units, on one line."""
    return ", ".join(f"{name} {format_limit(name, value)}" for name, value in limits.items())


def describe_place(attempt: Attempt) -> str:
    """Return the host, the slot and the worker of an attempt; a worker of old says no slot."""
    slot = "" if attempt.slot is None else f", slot {attempt.slot}"
    return f"{attempt.host}{slot} ({attempt.worker})"


def run_line(run: int) -> Iterator[tuple[str, str]]:
    """Yield the number of the run if it is not the first, and how to see earlier ones."""
    if run > 1:
        earlier = "run 1" if run == 2 else f"runs 1 to {run - 1}"  # noqa: PLR2004
        yield "run", f"{run} (--run shows {earlier}, as long as outcomes are kept)"


def _measured(outcome: Outcome) -> Iterator[tuple[str, str]]:
    """Yield the measured times and usage."""
    if outcome.duration is not None:
        yield "time", f"{outcome.duration:.3f} s"
    if outcome.start:
        yield "start", outcome.start
    steps = [f"{name} {value:.3f}" for name, value in asdict(outcome.timing).items() if value is not None]
    if steps:
        yield "steps", ", ".join(steps) + " (seconds)"
    usage = outcome.usage
    used = [
        *([] if usage.cpu_seconds is None else [f"{usage.cpu_seconds:g} s of CPU"]),
        *([] if usage.memory_peak_bytes is None else [f"{format_bytes(usage.memory_peak_bytes)} of memory at most"]),
        *([] if usage.pids_peak is None else [f"{usage.pids_peak} host tasks at most"]),
    ]
    if used:
        yield "used", ", ".join(used)


def attempt_lines(attempts: Iterable[Attempt]) -> Iterator[tuple[str, str]]:
    """Yield one line for each attempt."""
    for number, attempt in enumerate(attempts, 1):
        code = attempt.code.value if attempt.code else "running"
        started = attempt.started.isoformat(timespec="seconds")
        charged = "" if attempt.charged else ", not charged"
        yield f"attempt {number}", f"{code} on {describe_place(attempt)}, started {started}{charged}"


def file_lines(record: JobRecord | None, outcome: Outcome | None = None) -> Iterator[tuple[str, str]]:
    """Yield how many files entered and left the sandbox, as (name, text); artifacts one by one."""
    if record is not None and record.files:
        yield "files", f"{record.files} ({format_bytes(record.file_bytes)})"
    if outcome is None:
        return
    if outcome.artifacts:
        total = sum(artifact.size for artifact in outcome.artifacts)
        yield "artifacts", f"{len(outcome.artifacts)} ({format_bytes(total)})"
    for artifact in outcome.artifacts[:SHOWN_ARTIFACTS]:
        yield "", f"{artifact.path} ({format_bytes(artifact.size)})"
    if (more := len(outcome.artifacts) - SHOWN_ARTIFACTS) > 0:
        yield "", f"and {more} more: sandfleet artifacts {outcome.job_id}"
    if outcome.artifacts_lost:
        yield "lost", f"artifacts: {outcome.artifacts_lost}"
    for name, stream in (("stdout", outcome.stdout), ("stderr", outcome.stderr)):
        if stream.stored is not None:
            yield name, f"{format_bytes(stream.stored.size)} in the store: {stream.stored.sha256}"


def print_lines(lines: Iterable[tuple[str, str]]) -> None:
    """Print names and texts in two columns."""
    for name, text in lines:
        print(f"{name:<13} {safe_line(text)}")


def print_stream(name: str, stream: StreamOutput) -> None:
    """Print a program's output; on a terminal with its control characters escaped."""
    cut = f", cut to {format_bytes(len(stream.bytes))}" if stream.truncated else ""
    print(f"\n--- {name} ({format_bytes(stream.total_bytes)}{cut}) ---")
    text = safe_text(stream.text) if sys.stdout.isatty() else stream.text
    print(text, end="" if text.endswith("\n") or not text else "\n")


def print_summary(counts: Mapping[ErrorCode, int], *, is_output: bool = False) -> int:
    """Print the number of jobs with each code; return 1 if any is not ``OK``.

    It prints on stderr or as the command's own output.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table("code", "category", "jobs", box=None, pad_edge=False)
    for code in sorted(counts, key=lambda code: (not _is_ok(code), code.value)):
        table.add_row(code.value, code.category.value, str(counts[code]))
    if counts:
        (Console(markup=False, highlight=False) if is_output else stderr_console()).print(table)
    return 0 if all(_is_ok(code) for code in counts) else SOME_NOT_OK


def _is_ok(code: ErrorCode) -> bool:
    return code.category is Category.OK
