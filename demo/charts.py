"""The demo's second part: twenty jobs that read a file and write one.

Each job gets the same script and a table of its own, and leaves a chart.
"""

from __future__ import annotations

import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet import ArtifactSpec, FileSpec, Payload, SandboxSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet import FileRef, Fleet, Outcome

IMAGE = "demo-charts"
RECIPE = Path(__file__).with_name("charts.toml")
SCRIPT = Path(__file__).with_name("draw.py")
JOBS = 20
STEPS = 200
BATCH = "demo-charts"


def run_charts(fleet: Fleet, timeout_seconds: float) -> Iterator[Outcome]:
    """Submit the jobs and yield their outcomes as they end."""
    script = fleet.upload(SCRIPT)
    jobs = fleet.submit_many([_new_spec(number, script) for number in range(JOBS)], batch=BATCH)
    yield from fleet.as_completed(jobs, timeout=timeout_seconds)


def save_charts(fleet: Fleet) -> Path:
    """Save all charts in a new folder, and return it."""
    folder = Path(tempfile.mkdtemp(prefix="sandfleet-charts-"))
    fleet.batch(BATCH).artifacts.save(folder)
    return folder


def complain(outcome: Outcome) -> str:
    """Say what is wrong with an outcome; empty if nothing is."""
    if not outcome.is_ok:
        return f"{outcome.to_summary()}: {outcome.stderr.text[-300:]}"
    if [artifact.path for artifact in outcome.artifacts] != ["chart.png"]:
        return f"no chart came back: {outcome.artifacts_lost}"
    return ""


def _new_spec(number: int, script: FileRef) -> SandboxSpec:
    return SandboxSpec(
        image=IMAGE,
        command=["python3", "draw.py"],
        timeout=60,
        labels={"name": f"walk-{number}"},
        files=[script.at("draw.py"), FileSpec(path="data.csv", content=Payload(data=_walk(number)))],
        artifacts=[ArtifactSpec(glob="*.png")],
        env=["MPLCONFIGDIR=/tmp"],
    )


def _walk(seed: int) -> str:
    """Return a random walk as CSV."""
    source, height, lines = random.Random(seed), 0.0, ["step,height"]  # noqa: S311  no secret
    for step in range(STEPS):
        height += source.gauss(0, 1)
        lines.append(f"{step},{height:.3f}")
    return "\n".join(lines) + "\n"
