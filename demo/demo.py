"""Run a batch of good and bad programs through the whole product, and check how each ends.

Run it by `make demo`. It starts Redis and a worker of its own. The exit code is 0 only if every job
ended as it must.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import charts
from jobs import JOBS, DemoJob
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sandfleet import ErrorCode, Fleet, Outcome, SandboxError
from sandfleet_config.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

START_DEADLINE_SECONDS = 120
JOB_DEADLINE_SECONDS = 300
SCRIPTS = Path(sys.executable).parent

COLUMNS = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())

console = Console()


@contextmanager
def embedded_stack(folder: Path) -> Iterator[Settings]:
    """Run `sandfleet-worker local` (Redis, one worker, no Flower) with its state in `folder`."""
    environment = {
        **os.environ,
        "SANDFLEET_LOCAL_DIR": str(folder / "local"),
        "SANDFLEET_LOCAL_STATE_DIR": str(folder / "state"),
        "SANDFLEET_SLOTS_DIR": str(folder / "slots"),
        "SANDFLEET_RUNSC__ROOT_DIR": str(folder / "runsc"),
        "SANDFLEET_FILES__CACHE_DIR": str(folder / "files"),
        "SANDFLEET_FILES__SPOOL_DIR": str(folder / "spool"),
    }
    environment.pop("SANDFLEET_REDIS_URL", None)
    log_path = folder / "stack.log"
    with log_path.open("wb") as log:
        command = [str(SCRIPTS / "sandfleet-worker"), "local", "--no-flower"]
        stack = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for_worker(stack, log_path)
        yield Settings(local_dir=folder / "local")
    finally:
        stack.send_signal(signal.SIGTERM)
        try:
            stack.wait(60)
        except subprocess.TimeoutExpired:
            stack.kill()
            stack.wait()


def wait_for_worker(stack: subprocess.Popen[bytes], log_path: Path) -> None:
    """Wait until the stack says that its worker takes jobs; show its log where it ends instead."""
    deadline = time.monotonic() + START_DEADLINE_SECONDS
    while time.monotonic() < deadline:
        text = log_path.read_text(errors="replace")
        if "sandfleet is up" in text:
            return
        if stack.poll() is not None:
            break
        time.sleep(0.1)
    console.print(log_path.read_text(errors="replace"), markup=False)
    sys.exit("the embedded stack did not come up; its log is above")


def add_images() -> None:
    """Make the images of the demo, unless the host has them."""
    command = [str(SCRIPTS / "sandfleet-worker"), "images"]
    console.print("making sure of the image `python` (the first time takes about half a minute)")
    subprocess.run([*command, "add", "python"], check=True)
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


def run_charts(fleet: Fleet) -> list[str]:
    """Run the jobs that draw charts and save the charts; return what went wrong."""
    with Progress(*COLUMNS, console=console) as progress:
        bar = progress.add_task("charts", total=charts.JOBS)
        complaints: list[str] = []
        for outcome in charts.run_charts(fleet, JOB_DEADLINE_SECONDS):
            complaints += filter(None, [charts.complain(outcome)])
            progress.advance(bar)
    folder = charts.save_charts(fleet)
    console.print(f"{len(list(folder.glob('*/chart.png')))} charts are in {folder}")
    return complaints


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
            complaints = run_charts(fleet)
        failures = show(rows)
    for complaint in complaints:
        console.print(f"[red]a chart: {complaint}[/red]")
    if failures or complaints:
        console.print(f"[red]{failures + len(complaints)} jobs did not end as they must[/red]")
        return 1
    console.print(f"{len(rows)} jobs of all kinds in {elapsed:.1f} s, every one as it must")
    return 0


if __name__ == "__main__":
    sys.exit(main())
