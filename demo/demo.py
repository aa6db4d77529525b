"""Run a batch of good and bad programs through the whole product, and check how each ends.

Run it by `make demo`. It starts Redis and a worker of its own. The exit code is 0 only if every job
ended as it must.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import charts
from jobs import JOBS, DemoJob
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sandfleet import ErrorCode, Fleet, Outcome, SandboxError
from stack import SCRIPTS, add_python_image, console, embedded_stack

JOB_DEADLINE_SECONDS = 300
WHERE_TO_LOOK = (
    "to look at a fleet: .venv/bin/sandfleet-worker local --demo prints the address of its pages and a password\n"
    "what they show: docs/how-to/watch-the-fleet.md"
)

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


def add_images() -> None:
    """Make the images of the demo, unless the host has them."""
    add_python_image()
    command = [str(SCRIPTS / "sandfleet-worker"), "images"]
    console.print(f"and of `{charts.IMAGE}`, from {charts.RECIPE.name} (the first time takes some minutes)")
    if subprocess.run([*command, "inspect", charts.IMAGE], capture_output=True, check=False).returncode:
        subprocess.run([*command, "build", charts.IMAGE, "-f", str(charts.RECIPE)], check=True)


def run_batch(fleet: Fleet) -> list[tuple[DemoJob, Outcome]]:
    """Submit every job and show a bar while they end; return each job's outcome, in order."""
    outcomes: dict[str, Outcome] = {}
    submitted = {}
    for job in JOBS:
        try:
            submitted[fleet.submit(job.to_spec(), batch="demo")] = job.label
        except SandboxError as error:  # refused at submit: it never reaches the queue
            outcomes[job.label] = Outcome.of(error.code, job_id="", message=error.message)
    with Progress(*COLUMNS, console=console) as progress:
        bar = progress.add_task("jobs", total=len(JOBS), completed=len(outcomes))
        labels = {job.id: label for job, label in submitted.items()}
        for outcome in fleet.as_completed(list(submitted), timeout=JOB_DEADLINE_SECONDS):
            outcomes[labels[outcome.job_id]] = outcome
            progress.advance(bar)
    return [(job, outcomes[job.label]) for job in JOBS]


def run_charts(fleet: Fleet) -> tuple[list[str], Path]:
    """Run the jobs that draw charts; return what went wrong, and the folder with the charts."""
    with Progress(*COLUMNS, console=console) as progress:
        bar = progress.add_task("charts", total=charts.JOBS)
        complaints: list[str] = []
        for outcome in charts.run_charts(fleet, JOB_DEADLINE_SECONDS):
            complaints += filter(None, [charts.complain(outcome)])
            progress.advance(bar)
    return complaints, charts.save_charts(fleet)


def show(rows: list[tuple[DemoJob, Outcome]]) -> int:
    """Print the table and return how many jobs did not end as they must."""
    table = Table(title="every ending tells the truth")
    for name in ("job", "code", "exit or signal", "time", "as it must"):
        table.add_column(name, justify="right" if name == "time" else "left", no_wrap=name == "code")
    failures = 0
    for job, outcome in rows:
        complaint = job.complaint(outcome)
        failures += bool(complaint)
        colour = "green" if outcome.code is ErrorCode.OK else "yellow"
        duration = "" if outcome.duration is None else f"{outcome.duration:.2f} s"
        mark = f"[red]{complaint}[/red]" if complaint else "yes"
        table.add_row(job.label, f"[{colour}]{outcome.code.value}[/{colour}]", describe(outcome), duration, mark)
    console.print(table)
    return failures


def describe(outcome: Outcome) -> str:
    """Return the program's own end: its exit code or its signal."""
    parts = []
    if outcome.exit_code is not None:
        parts.append(f"exit {outcome.exit_code}")
    if outcome.signal is not None:
        parts.append(f"signal {outcome.signal}")
    if outcome.timed_out is not None:
        parts.append(f"({outcome.timed_out} limit)")
    return " ".join(parts)


def main() -> int:
    """Run the demo; return the exit code."""
    if os.geteuid() != 0:
        console.print("the demo starts sandboxes with limits: run it as root")
        return 1
    add_images()
    with tempfile.TemporaryDirectory(prefix="sandfleet-demo-") as folder:
        console.print("starting Redis and one worker on this machine")
        with embedded_stack(Path(folder)) as settings, Fleet(settings) as fleet:
            started = time.monotonic()
            rows = run_batch(fleet)
            elapsed = time.monotonic() - started
            complaints, folder_of_charts = run_charts(fleet)
        failures = show(rows)
    for complaint in complaints:
        console.print(f"[red]a chart: {complaint}[/red]")
    if failures or complaints:
        console.print(f"[red]{failures + len(complaints)} jobs did not end as they must[/red]")
        return 1
    console.print(f"{len(rows)} jobs of all kinds in {elapsed:.1f} s, every one as it must")
    console.print(WHERE_TO_LOOK)
    console.print(f"{len(list(folder_of_charts.glob('*/chart.png')))} charts are in {folder_of_charts}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
