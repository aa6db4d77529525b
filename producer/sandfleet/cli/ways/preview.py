"""``sandfleet submit --dry-run``: the first jobs, what all of them need, and the batch's limits."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any, Final

from sandfleet_config.units import format_bytes, format_seconds

from sandfleet.cli.show import print_lines, safe_line
from sandfleet.submit.check import CheckedJob
from sandfleet.submit.encode import JobEncoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sandfleet_config.batch_limits import BatchLimits
    from sandfleet_config.spec import SandboxSpec

SHOWN_JOBS: Final = 3
SHOWN_TARGETS: Final = 5
"""Most names that are shown of the jobs and batches that jobs wait for."""
_HIDDEN: Final = {"env", "stdin", "files"}
"""Fields that may hold secrets, or a lot."""


def preview(specs: Sequence[SandboxSpec], batch: str | None, max_spec_bytes: int, upload_bytes: int) -> dict[str, Any]:
    """Return the totals of a submit.

    They are jobs, bytes to upload and to queue, the largest memory and timeout; 0 is the host's
    ceiling.
    """
    encoder = JobEncoder(batch, max_spec_bytes)
    return {
        "jobs": len(specs),
        "batch": batch,
        "images": sorted({spec.image for spec in specs}),
        "upload_bytes": upload_bytes,
        "queued_bytes": sum(len(encoder.encode(CheckedJob(spec, "")).text.encode()) for spec in specs),
        "largest_memory_bytes": max(spec.resources.memory_bytes for spec in specs),
        "longest_timeout": max(spec.timeout_seconds for spec in specs),
    }


def preview_rules(specs: Sequence[SandboxSpec], limits: BatchLimits | None, on_done: str) -> dict[str, Any]:
    """Return when jobs may start, when the batch stops, and who is told at its end.

    `awaited` names the jobs and batches of all specs' `after`, each once.
    """
    jobs = dict.fromkeys(job_id for spec in specs for job_id in spec.after.jobs)
    batches = dict.fromkeys(name for spec in specs for name in spec.after.batches)
    return {
        "limits": None if limits is None else limits.model_dump(mode="json", exclude_none=True),
        "waiting_jobs": sum(bool(spec.after) for spec in specs),
        "awaited": {"jobs": list(jobs), "batches": list(batches)},
        "on_done": on_done or None,
    }


def print_preview(specs: Sequence[SandboxSpec], totals: dict[str, Any], *, is_json: bool) -> None:
    """Print the first jobs and the totals on stdout."""
    if is_json:
        shown = [
            json.loads(spec.model_dump_json(exclude_defaults=True, exclude=_HIDDEN)) for spec in specs[:SHOWN_JOBS]
        ]
        print(json.dumps({**totals, "first": shown}, indent=2))
        return
    for number, spec in enumerate(specs[:SHOWN_JOBS], 1):
        print_lines([(f"job {number}", shlex.join(spec.command) or "(the image's own command)"), *_describe(spec)])
    if len(specs) > SHOWN_JOBS:
        print(f"... and {len(specs) - SHOWN_JOBS:,} more")
    print()
    print_lines(_describe_totals(totals))


def _describe(spec: SandboxSpec) -> Iterator[tuple[str, str]]:
    """Yield image, limits, labels and files of a job; the values of `env` are not shown."""
    yield "  image", spec.image
    if spec.resources.memory_bytes:
        yield "  memory", format_bytes(spec.resources.memory_bytes)
    yield "  timeout", format_seconds(spec.timeout_seconds)
    if spec.labels:
        yield "  labels", ", ".join(f"{key}={value}" for key, value in spec.labels.items())
    if spec.env:
        yield "  env", ", ".join(item.partition("=")[0] for item in spec.env)
    if spec.files:
        yield "  files", ", ".join(file.path for file in spec.files)


def _describe_totals(totals: dict[str, Any]) -> Iterator[tuple[str, str]]:
    memory: int = totals["largest_memory_bytes"]
    yield "jobs", f"{totals['jobs']:,}"
    if totals["batch"]:
        yield "batch", safe_line(totals["batch"])
    yield "images", ", ".join(totals["images"])
    yield "to upload", f"{format_bytes(totals['upload_bytes'])} at most"
    yield "to queue", format_bytes(totals["queued_bytes"])
    yield "most memory", format_bytes(memory) if memory else "the host's ceiling"
    yield "longest", format_seconds(totals["longest_timeout"])
    yield from _describe_rules(totals)
    yield "queued", "nothing: this was a dry run"


def _describe_rules(totals: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the limits and what the jobs wait for; nothing where there is nothing."""
    limits: dict[str, Any] = totals["limits"] or {}
    kept = "those that run are cancelled" if limits.get("on_stop") == "kill" else "those that run go on"
    if "at_most" in limits:
        yield "at most", f"{limits['at_most']:,} at once"
    if limits.get("fail_fast") or "max_failures" in limits:
        failures: int = 1 if limits.get("fail_fast") else limits["max_failures"]
        yield "stops", f"when {failures:,} {'job has' if failures == 1 else 'jobs have'} failed; {kept}"
    if "deadline" in limits:
        yield "deadline", f"{format_seconds(limits['deadline'])} after the submit; {kept}"
    if totals["waiting_jobs"]:
        jobs, batches = totals["awaited"]["jobs"], totals["awaited"]["batches"]
        names = [*(f"batch {name}" for name in batches), *(f"job {job_id}" for job_id in jobs)]
        more = f" and {len(names) - SHOWN_TARGETS:,} more" if len(names) > SHOWN_TARGETS else ""
        waiting = (
            "all jobs start" if totals["waiting_jobs"] == totals["jobs"] else f"{totals['waiting_jobs']:,} jobs start"
        )
        yield "after", safe_line(f"{waiting} when {', '.join(names[:SHOWN_TARGETS])}{more} ended OK")
    if totals["on_done"]:
        yield "on done", f"a webhook to endpoint {totals['on_done']}"
