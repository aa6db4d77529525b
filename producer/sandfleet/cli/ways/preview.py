"""``sandfleet submit --dry-run``: the first jobs, and what all of them need."""

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

    from sandfleet_config.spec import SandboxSpec

SHOWN_JOBS: Final = 3
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
    yield "queued", "nothing: this was a dry run"
