"""``sandfleet hosts``: list the hosts, look at one, cordon or drain it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from sandfleet_config.units import format_count

from sandfleet.cli import opening
from sandfleet.cli.acting import DryRun, Reason, new_operator, read_duration
from sandfleet.cli.exits import SOME_NOT_OK, TIMEOUT
from sandfleet.cli.listing import ListOptions
from sandfleet.cli.option_fields import takes_fields
from sandfleet.cli.rows import (
    Columns,
    Form,
    FormOption,
    format_age,
    format_duration,
    format_size,
    print_rows,
    take,
)
from sandfleet.cli.show import note, print_lines, safe_line
from sandfleet.cli.watching import WatchGroup, print_watched
from sandfleet.overview.fields import host_fields, image_fields
from sandfleet.overview.hosts import HostState, group_hosts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from sandfleet.channel.fleet_state import Cordon, RunningJob
    from sandfleet.fleet import Fleet
    from sandfleet.overview.host_failures import HostFailures

DEFAULT_DEADLINE: Final = "30m"
POLL_SECONDS: Final = 0.5
MARGIN_SECONDS: Final = 60.0
"""How long a wait for a drain goes on after the deadline: sandboxes end, and claims are settled."""
SHOWN_IMAGES: Final = 20
HISTORY_SECONDS: Final = 1.0
"""How long a history on another host is waited for."""
HostName = Annotated[str, typer.Argument(metavar="HOST")]
app = typer.Typer(
    cls=WatchGroup,
    invoke_without_command=True,
    rich_markup_mode=None,
    help="List the hosts with their workers, slots and marks; look at one, cordon or drain it.",
)


@dataclass(frozen=True, kw_only=True)
class HostsOptions(ListOptions):
    """The command line of ``sandfleet hosts``."""

    ctx: typer.Context


@app.callback()
@takes_fields(HostsOptions)
def list_hosts(line: HostsOptions) -> None:
    """List the hosts with their workers, slots and marks; look at one, cordon or drain it."""
    if line.ctx.invoked_subcommand is not None:
        return
    with opening.open_fleet() as fleet:

        def show() -> None:
            rows, has_more = take(group_hosts(fleet.state.read_summary(), read_failures()), line.limit)
            if not print_rows(rows, HOSTS, line.shown, is_whole=line.is_whole):
                note("no worker lives: start one (sandfleet-worker start)")
            elif has_more():
                note(f"there are more hosts than the {line.limit} shown: -n 0 lists all")

        print_watched(show, line.watch, line.shown)


def read_failures() -> Mapping[str, HostFailures] | None:
    """Return how often attempts failed on each host in the last hour; None without a history in reach."""
    from sandfleet_config.settings import SettingsInvalid

    from sandfleet.errors import FleetError
    from sandfleet.history.finding import find_history
    from sandfleet.overview.host_failures import HOUR, read_host_failures

    now = time.time()
    try:
        return read_host_failures(find_history(HISTORY_SECONDS), now - HOUR, now)
    except (FleetError, SettingsInvalid, ValueError):  # the hosts are worth a look without it
        return None


@app.command()
def show(host: HostName, *, form: FormOption = Form.TABLE) -> None:
    """Show a host: its workers, what runs there, its images. -o json is for programs, -o ids lists its jobs."""
    with opening.open_fleet() as fleet:
        found = find_host(fleet, host)
        jobs = fleet.state.running_jobs(host)
        if form is Form.IDS:
            for job in jobs:
                print(job.job_id)
        elif form in {Form.JSON, Form.JSONL}:
            images = [image_fields(image) for image in fleet.state.host_images().get(host, ())]
            fields = host_fields(found) | {"jobs": [_job_fields(job) for job in jobs], "images": images}
            print(json.dumps(fields, indent=2 if form is Form.JSON else None))
        else:
            print_lines(_describe(fleet, found, jobs))


def find_host(fleet: Fleet, name: str) -> HostState:
    """Return a host.

    Raises:
        typer.Exit: there is none of that name.
    """
    hosts = group_hosts(fleet.state.read_summary(), read_failures())
    found = next((host for host in hosts if host.name == name), None)
    if found is None:
        note(f"there is no host {name}; there are: {', '.join(host.name for host in hosts[:10]) or 'none'}")
        raise typer.Exit(SOME_NOT_OK)
    return found


@app.command()
def cordon(host: HostName, *, reason: Reason, is_dry: DryRun = False) -> None:
    """Let a host start no more jobs; those that run go on. It holds until uncordon, over restarts, too."""
    with opening.open_fleet() as fleet:
        operator = new_operator(fleet)
        if is_dry:
            print(f"would cordon: {safe_line(operator.preview_host(host).text)}")
            return
        print(f"{safe_line(host)} is cordoned: {safe_line(operator.cordon(host, reason).text)}")


@app.command()
def uncordon(host: HostName, *, reason: Annotated[str, typer.Option("--reason", "-r", help="Why.")] = "") -> None:
    """Let a host start jobs again; ends a drain, too."""
    with opening.open_fleet() as fleet:
        result = new_operator(fleet).uncordon(host, reason)
        print(f"{safe_line(host)} starts jobs again" if result.done else safe_line(result.text))


@app.command()
def drain(
    host: HostName,
    *,
    reason: Reason,
    deadline: Annotated[
        str, typer.Option(help="When what still runs goes back to its queue, from now: 90s, 30m, 2h.")
    ] = DEFAULT_DEADLINE,
    is_waiting: Annotated[
        bool, typer.Option("--wait", help="Wait until nothing runs there. Ctrl-C stops the wait, not the drain.")
    ] = False,
    is_dry: DryRun = False,
) -> None:
    """Cordon a host, and give back what still runs there at the deadline.

    A job that is cut is told of that start, not charged; with max_attempts=1 it ends WORKER_LOST. The
    worker lives on, and works again after uncordon.
    """
    seconds = read_duration(deadline)
    with opening.open_fleet() as fleet:
        operator = new_operator(fleet)
        if is_dry:
            print(f"would drain within {format_duration(seconds)}: {safe_line(operator.preview_host(host).text)}")
            return
        print(f"{safe_line(host)} drains: {safe_line(operator.drain(host, reason, seconds).text)}", flush=True)
        if is_waiting:
            raise typer.Exit(_wait_for_drain(fleet, host, seconds))


def _wait_for_drain(fleet: Fleet, name: str, seconds: float) -> int:
    """Wait until nothing runs on the host; return the exit code."""
    end = time.monotonic() + seconds + MARGIN_SECONDS
    while time.monotonic() < end:
        found = next((host for host in group_hosts(fleet.state.read_summary()) if host.name == name), None)
        if found is None or found.cordon is None:
            note(f"{name} is no longer drained: somebody has uncordoned it")
            return SOME_NOT_OK
        if found.state in {"drained", "absent"}:
            print(f"{safe_line(name)} is drained")
            return 0
        time.sleep(POLL_SECONDS)
    note(f"jobs still run on {name}: see sandfleet hosts show {name}")
    return TIMEOUT


def _job_fields(job: RunningJob) -> dict[str, Any]:
    return {"job_id": job.job_id, "worker": job.owner, "slot": job.slot, "started": job.started or None}


def _describe(fleet: Fleet, host: HostState, jobs: list[RunningJob]) -> Iterator[tuple[str, str]]:
    now, newest = time.time(), host.newest
    yield "host", host.name
    yield "state", host.state
    if host.cordon is not None:
        yield "mark", describe_mark(host.cordon, now)
    yield "failed", _format_failures(host)
    yield "slots", f"{host.busy} of {host.slots} busy"
    if newest is not None:
        yield "memory", f"{format_size(newest.memory_free)} of {format_size(newest.memory_budget)} free for jobs"
        yield "disk", f"{format_size(newest.disk_free)} free"
        yield "load", f"{newest.load:g}"
        yield "runs", f"runsc {newest.runsc or '-'}, {newest.platform or '-'}; sandfleet {newest.version or '-'}"
        yield "labels", _format_mapping(newest.labels)
    yield "queues", ", ".join(host.queues) or "-"
    yield "spares", _format_warm(host.warm)
    if prepared := str(host.prepared):
        yield "prepared", prepared
    if newest is not None and newest.unenforced:
        yield "unenforced", ", ".join(newest.unenforced)
    for worker in host.workers:
        seen = format_age(worker.seen, now)
        yield "worker", f"{worker.owner} {worker.state}, {worker.running} run, {worker.waiting} wait, seen {seen}"
    for job in jobs:
        began = f"since {format_duration(max(0.0, now - job.started))}" if job.started else "waits"
        yield "job", f"{job.job_id} {began}"
    images = fleet.state.host_images().get(host.name, ())
    for image in sorted(images, key=lambda image: -image.used)[:SHOWN_IMAGES]:
        yield "image", f"{image.name} {format_size(image.size)}, used {format_age(image.used, now)}"
    if len(images) > SHOWN_IMAGES:
        yield "images", f"{len(images) - SHOWN_IMAGES} more: -o json has all"


def describe_mark(cordon: Cordon, now: float) -> str:
    """Return the mark on a host in one line."""
    until = ""
    if cordon.deadline is not None:
        left = cordon.deadline - now
        until = f", deadline in {format_duration(left)}" if left > 0 else ", its deadline has passed"
    kind = "cordoned" if cordon.deadline is None else "drained"
    return f"{kind} by {cordon.by or '?'} {format_age(cordon.at, now)}{until}: {cordon.reason or '?'}"


def _format_mapping(values: Mapping[str, Any]) -> str:
    return ",".join(f"{key}={value}" for key, value in values.items()) or "-"


def _format_warm(warm: Mapping[str, int]) -> str:
    return " ".join(f"{image}:{count}" for image, count in sorted(warm.items())) or "-"


def _format_failures(host: HostState) -> str:
    """Return the share of attempts that failed by our doing in the last hour, and whether that is odd."""
    found = host.failures
    if found is None or not found.tries:
        return "-"
    return f"{'odd: ' if found.is_odd else ''}{found.share:.1%} of {format_count(found.tries, 'attempt')}"


def _host_cells(host: HostState) -> Mapping[str, str]:
    now, newest = time.time(), host.newest
    return {
        "HOST": host.name,
        "STATE": host.state,
        "BUSY": f"{host.busy}/{host.slots}",
        "WAIT": str(host.waiting),
        "LOAD": f"{newest.load:g}" if newest else "-",
        "MEMORY FREE": format_size(newest.memory_free) if newest else "-",
        "SPARES": _format_warm(host.warm),
        "SEEN": format_age(newest.seen, now) if newest else "-",
        "FAILED 1H": _format_failures(host),
        "MARK": describe_mark(host.cordon, now) if host.cordon else "-",
    }


def _host_wide(host: HostState) -> Mapping[str, str]:
    newest = host.newest
    return {
        "WORKERS": str(len(host.workers)),
        "QUEUES": ",".join(host.queues) or "-",
        "DISK FREE": format_size(newest.disk_free) if newest else "-",
        "RUNSC": newest.runsc if newest else "-",
        "VERSION": newest.version if newest else "-",
        "LABELS": _format_mapping(newest.labels if newest else {}),
    }


HOSTS: Final = Columns[HostState](host_fields, _host_cells, _host_wide, lambda host: host.name)
