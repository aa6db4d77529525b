"""Findings of `doctor` about settings that would make this host faster.

Nothing is set: a host is not ours alone. The figures come from docs/how-to/tune-a-host.md, which
tells how they were measured and what each change costs.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sandfleet_config.processes import AUTO, CORES_A_PROCESS, count_processes
from sandfleet_config.units import format_count

from sandfleet_worker.commands.checks import Finding, State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_config.settings import WorkerSettings

PAGE = "docs/how-to/tune-a-host.md"
SLOTS_PER_CORE = 2
HUGE = frozenset({"huge=always", "huge=within_size"})
"""Of tmpfs(5): the options under which a program's own pages are huge."""


def check_tuning(
    settings: WorkerSettings,
    *,
    sys: Path = Path("/sys"),
    mountinfo: Path = Path("/proc/self/mountinfo"),
    cores: int | None = None,
) -> Iterator[Finding]:
    """Compare the host with what was measured to be faster."""
    yield from check_grace_periods(sys)
    cores = cores or len(os.sched_getaffinity(0))
    yield check_slots_per_core(settings.concurrency, cores)
    yield check_processes(settings, cores)
    mounts = mountinfo.read_text()
    yield check_state_folder(settings.runsc.root_dir, mounts)
    yield from check_runsc_pages(settings.runsc.path, mounts)


def check_grace_periods(sys: Path) -> Iterator[Finding]:
    """Whether the kernel hurries its RCU grace periods.

    Each boot and end of a sandbox waits for several.
    """
    expedited, normal = (_read(sys / "kernel" / name) for name in ("rcu_expedited", "rcu_normal"))
    if expedited is None:  # a kernel that does not tell, or a container that does not see
        return
    name = "grace periods"
    if normal not in {None, "0"}:
        detail = f"rcu_normal is {normal}: the kernel may not hurry them"
        yield Finding(name, State.TIP, detail, f"echo 0 > /sys/kernel/rcu_normal on the host, then see {PAGE}")
    elif expedited == "0":
        detail = "rcu_expedited is 0: a program in a new sandbox took 93 ms where it was measured, and 76 with 1"
        yield Finding(name, State.TIP, detail, f"echo 1 > /sys/kernel/rcu_expedited on the host; what it costs: {PAGE}")
    else:
        yield Finding(name, State.OK, f"expedited (rcu_expedited is {expedited})")


def check_slots_per_core(slots: int, cores: int) -> Finding:
    """Whether more jobs run at once than are of use where jobs are short."""
    name, detail = "slots per core", f"{format_count(slots, 'slot')}, {format_count(cores, 'core')}"
    if slots <= SLOTS_PER_CORE * cores:
        return Finding(name, State.OK, detail)
    text = f"{detail}: short jobs end no faster with more than {SLOTS_PER_CORE} slots a core, each only takes longer"
    fix = f"SANDFLEET_CONCURRENCY={SLOTS_PER_CORE * cores}, unless jobs mostly wait; figures: {PAGE}"
    return Finding(name, State.TIP, text, fix)


def check_processes(settings: WorkerSettings, cores: int) -> Finding:
    """Whether the worker has as many processes as `cores` of short jobs need."""
    slots = settings.concurrency
    count, wanted = count_processes(settings.processes, slots, cores), count_processes(AUTO, slots, cores)
    why = " (auto)" if settings.processes == AUTO else ""
    processes = format_count(count, "process", "processes")
    detail = f"{processes}{why} for {format_count(cores, 'core')} and {format_count(slots, 'slot')}"
    if count >= wanted:
        return Finding("processes", State.OK, detail)
    text = f"{detail}: one process starts and ends the short jobs of some {CORES_A_PROCESS} cores, not of more"
    fix = f"SANDFLEET_PROCESSES={AUTO}, here {wanted}, unless jobs take seconds; figures: {PAGE}"
    return Finding("processes", State.TIP, text, fix)


def check_state_folder(folder: Path, mountinfo: str) -> Finding:
    """Whether the state of running sandboxes is in memory."""
    kind = find_mount(folder, mountinfo).kind
    detail = f"{folder} is on {kind}"
    if kind in {"tmpfs", "ramfs"}:
        return Finding("sandboxes' state", State.OK, detail)
    text = (
        f"{detail}: each sandbox writes there, and what a crash of the host leaves stays until the next worker starts"
    )
    fix = "set SANDFLEET_RUNSC__ROOT_DIR (with compose, SANDFLEET_RUN_DIR on the host) to a folder on tmpfs, below /run"
    return Finding("sandboxes' state", State.TIP, text, fix)


def check_runsc_pages(name: str, mountinfo: str) -> Iterator[Finding]:
    """Whether runsc's own program, which each boot starts four times, is in huge pages."""
    path = shutil.which(name)
    if path is None:  # told by another check
        return
    mount = find_mount(Path(path), mountinfo)
    if mount.kind == "tmpfs" and mount.options & HUGE:
        yield Finding("runsc's pages", State.OK, f"{path} is on tmpfs with huge pages")
        return
    detail = (
        f"{path} is on {mount.kind}: from a tmpfs with huge pages jobs took 6 to 9 % less CPU where it was measured"
    )
    yield Finding(
        "runsc's pages",
        State.TIP,
        detail,
        f"copy it there and set SANDFLEET_RUNSC__PATH; how, and what it costs: {PAGE}",
    )


class Mount(NamedTuple):
    """A filesystem: its type, and the options of the filesystem itself."""

    kind: str
    options: frozenset[str]


def find_mount(path: Path, mountinfo: str) -> Mount:
    """Return the filesystem that `path` is on, or would be made on.

    proc(5): its type follows the lone ``-``.
    """
    real = path.resolve()
    depth, found = -1, Mount("an unknown filesystem", frozenset())
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        mount_point = Path(_unescape(left.split(" ")[4]))
        # Of two mounts on one place the later one is seen.
        if real.is_relative_to(mount_point) and len(mount_point.parts) >= depth:
            kind, _, options = right.split(" ", 2)
            depth, found = len(mount_point.parts), Mount(kind, frozenset(options.split(",")))
    return found


def _unescape(text: str) -> str:
    r"""Undo the octal escapes of mountinfo, as ``\040`` for a blank."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None
