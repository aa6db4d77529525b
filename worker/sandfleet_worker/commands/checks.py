"""Checks of this host and its Redis, for preflight and doctor: each finding has its fix."""

from __future__ import annotations

import os
import resource
import shutil
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import redis
from sandfleet_config.errors import SandboxError
from sandfleet_config.units import format_bytes

from sandfleet_worker.host import connect
from sandfleet_worker.sandbox.cgroup.tree import find_tree
from sandfleet_worker.sandbox.process.runsc import QUIET_FLAG, find_runsc, release_date
from sandfleet_worker.sandbox.process.sidecars import find_closed_path, find_sidecar_fault, sidecar_folder

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from sandfleet_config.settings import WorkerSettings

    from sandfleet_worker.sandbox.memory_budget import MemoryBudget
    from sandfleet_worker.sandbox.probe import ProbeReport
    from sandfleet_worker.sandbox.process.runsc import RunscBinary
    from sandfleet_worker.sandbox.runner import RunscRunner
    from sandfleet_worker.system.descriptors import DescriptorNeed

MIN_FREE_BYTES = 1 << 30
MIN_BUDGET_BYTES = 64 << 20
"""With less memory for all jobs than this, and than the ceiling of one, no worker starts."""
SAFE_POLICY = "noeviction"
RELEASES_PAGE = "docs/how-to/gvisor-releases.md"
TESTED_RELEASES = (20240729, 20250503, 20260905)
"""The tests pass on the first and the last of these with each change.

On the second they pass in `make test-releases`.
"""
CRASH_FIXED_RELEASE = 20260601
"""Before, a job ends its own sandbox by leaving a folder it removed (gVisor commit 9b9807a3c)."""
PREFERRED_RELEASE = 20260714
"""From here a boot waits for no membarrier call; an idle sandbox takes no CPU (since 20260622)."""
IMAGE_TOOLS = {
    "mkfs.erofs": "packs images: install erofs-utils",
    "umoci": "unpacks OCI images: install umoci",
    "skopeo": "copies images from registries and archives: install skopeo",
    "mmdebstrap": "makes starter images: install mmdebstrap",
}


class State(StrEnum):
    """Whether a finding keeps jobs from running; a tip only says what would be faster."""

    OK = "ok"
    TIP = "tip"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """One fact about the host; `fix` says what to do where it is not well."""

    name: str
    state: State
    detail: str
    fix: str = ""


def check_redis(settings: WorkerSettings) -> Iterator[Finding]:
    """Ask Redis whether it is there, keeps what it is given and writes it to disk."""
    client = connect(settings)
    try:
        info: dict[str, Any] = client.info()
    except (redis.RedisError, OSError) as error:
        detail = f"{settings.redis_address}: {error}"
        yield Finding(
            "redis",
            State.FAILED,
            detail,
            "start Redis, or set SANDFLEET_REDIS_URL; for one machine: sandfleet-worker local",
        )
        return
    finally:
        client.close()
    yield Finding("redis", State.OK, f"{settings.redis_address}, version {info.get('redis_version', '?')}")
    policy = info.get("maxmemory_policy", "unknown")
    if policy == SAFE_POLICY:
        yield Finding("redis eviction", State.OK, policy)
    else:
        yield Finding(
            "redis eviction",
            State.FAILED,
            f"maxmemory-policy is {policy}: a full Redis would drop queued jobs silently",
            f"redis-cli config set maxmemory-policy {SAFE_POLICY}, and the same line in redis.conf",
        )
    yield _check_redis_memory(settings, info)
    if info.get("aof_enabled"):
        yield Finding("redis persistence", State.OK, "append-only file")
    else:
        detail = "no append-only file: a restart of Redis loses queued jobs"
        yield Finding("redis persistence", State.WARNING, detail, "set appendonly yes in redis.conf")


def _check_redis_memory(settings: WorkerSettings, info: Mapping[str, Any]) -> Finding:
    used, maximum = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not maximum:
        detail = f"uses {format_bytes(used)}; without a maxmemory nothing stops producers and workers before its host is full"
        return Finding("redis memory", State.OK, detail)
    detail = f"uses {format_bytes(used)} of its maxmemory of {format_bytes(maximum)}"
    high = settings.claim_memory_percent
    if high and used * 100 > maximum * high:
        why = f"{detail}: workers claim nothing above {high} % (SANDFLEET_CLAIM_MEMORY_PERCENT)"
        return Finding(
            "redis memory", State.WARNING, why, "forget batches that nobody reads any more, or raise maxmemory"
        )
    return Finding("redis memory", State.OK, detail)


def check_folder(name: str, folder: Path, setting: str) -> Finding:
    """Whether we can make and write `folder`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        return Finding(
            name, State.FAILED, f"{folder}: {error.strerror}", f"set {setting} to a folder this user can write"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        return Finding(
            name, State.FAILED, f"{folder} is not writable", f"set {setting} to a folder this user can write"
        )
    return Finding(name, State.OK, str(folder))


def check_runsc(settings: WorkerSettings) -> Iterator[Finding]:
    """Whether there is a runsc, of which release, and whether its helpers fit it."""
    try:
        binary = find_runsc(settings.runsc.path)
    except SandboxError as error:
        yield Finding("runsc", State.FAILED, error.message, "install gVisor, or set SANDFLEET_RUNSC__PATH")
        return
    yield check_release(binary)
    yield check_sidecars(binary)


def check_release(binary: RunscBinary) -> Finding:
    """Whether this release of runsc was tested, and what is known of it."""
    released = release_date(binary.version)
    found = f"{binary.path}, release {binary.version}"
    tested = ", ".join(map(str, TESTED_RELEASES))
    fix = f"install the newest official release with its folder gvisor-bin: {RELEASES_PAGE}"
    if released is None:
        detail = f"{found}: it names no date, so nobody can say whether it was tested (these were: {tested})"
        return Finding("runsc", State.WARNING, detail, fix)
    if not TESTED_RELEASES[0] <= released <= TESTED_RELEASES[-1]:
        which = "older" if released < TESTED_RELEASES[0] else "newer"
        detail = f"{found}: {which} than every release that was tested ({tested})"
        return Finding("runsc", State.WARNING, detail, f"run `make test` on it, or {fix}")
    if released < CRASH_FIXED_RELEASE:
        detail = f"{found}: a job can crash its own sandbox (fixed in {CRASH_FIXED_RELEASE})"
        return Finding("runsc", State.WARNING, detail, fix)
    if released < PREFERRED_RELEASE:
        return Finding("runsc", State.TIP, f"{found}: from {PREFERRED_RELEASE} on a sandbox boots faster", fix)
    return Finding("runsc", State.OK, found)


def check_sidecars(binary: RunscBinary) -> Finding:
    """Whether the helper binaries beside runsc are a whole set of its own release."""
    name, folder = "runsc's helpers", sidecar_folder(binary)
    if QUIET_FLAG not in binary.flags:
        return Finding(name, State.OK, "this release has none")
    if fault := find_sidecar_fault(binary):
        return Finding(name, State.FAILED, f"no sandbox boots: {fault}", f"{RELEASES_PAGE} says how to install both")
    if folder.is_dir():
        return Finding(name, State.OK, f"{', '.join(sorted(path.name for path in folder.iterdir()))} in {folder}")
    detail = f"no {folder}: each boot takes some ms longer, and releases after 2026-10 will not boot without it"
    return Finding(name, State.TIP, detail, f"install it beside runsc: {RELEASES_PAGE}")


def check_sentry(settings: WorkerSettings, report: ProbeReport) -> Finding:
    """Whether the kernel of a sandbox has any right on this host."""
    name = "sandbox process"
    if report.is_sentry_nobody:
        return Finding(name, State.OK, "on this host it is nobody, without capabilities")
    if settings.runsc.rootless:
        return Finding(name, State.OK, "rootless: it is the worker's user, in a user namespace")
    detail = "on this host it is root, with six capabilities: runsc does not boot with --directfs=false"
    closed = find_closed_path(find_runsc(settings.runsc.path))
    if closed is None:
        return Finding(name, State.WARNING, detail, f"start again; if it stays, a newer release may: {RELEASES_PAGE}")
    rights, what = ("o+x", "enter") if closed.is_dir() else ("o+rx", "read and execute")
    why = f"{detail}, since the user nobody may not {what} {closed}"
    return Finding(name, State.WARNING, why, f"chmod {rights} {closed}, and restart the workers of this host")


def check_platform(settings: WorkerSettings, runner: RunscRunner, platform: str) -> Iterator[Finding]:
    """Boot a sandbox on `platform` and run a program in it; comes back within the boot deadline."""
    is_needed = platform == settings.runsc.platform
    name = f"platform {platform}"
    try:
        report = runner.probe(platform)
    except SandboxError as error:
        state = State.FAILED if is_needed else State.WARNING
        fix = (
            "try the other platforms: SANDFLEET_RUNSC__PLATFORM"
            if is_needed
            else "not needed: jobs run on another platform"
        )
        yield Finding(name, state, error.message, fix)
        return
    used = ", used for jobs" if is_needed else ""
    yield Finding(name, State.OK, f"a sandbox was up after {report.boot_seconds * 1000:.0f} ms{used}")
    if is_needed:
        yield check_sentry(settings, report)


def check_limits(settings: WorkerSettings) -> Finding:
    """Which of a job's limits this host can hold it to."""
    tree = find_tree(settings.runsc.cgroup_parent)
    wanted = ("memory", "cpu", "pids")
    missing = [name for name in wanted if name not in tree.enforceable]
    detail = f"cgroup v{tree.version}; enforced: {', '.join(name for name in wanted if name not in missing) or 'none'}"
    refused = [name for name in missing if name not in settings.allow_unenforced]
    if not missing:
        return Finding("limits", State.OK, detail)
    fix = f"make the cgroup tree writable, or accept jobs without: SANDFLEET_ALLOW_UNENFORCED={','.join(missing)}"
    return Finding(
        "limits", State.FAILED if refused else State.WARNING, f"{detail}; missing: {', '.join(missing)}", fix
    )


def check_open_files(fitting: DescriptorNeed, wanted_spares: int) -> Finding:
    """Whether a worker has enough descriptors.

    Its limit is raised already as far as may be; `fitting` is what fits under it.
    """
    name, limit = "open files", resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    wanted = replace(fitting, spares=wanted_spares)
    if limit == resource.RLIM_INFINITY:
        return Finding(name, State.OK, f"no limit, {wanted.total} are needed")
    if fitting.total > limit:
        detail = f"{fitting.jobs} sandboxes at once need a limit of {fitting.total}, and the hard limit is {limit}"
        return Finding(name, State.FAILED, detail, f"{_raise_to(fitting.total)}, or a smaller SANDFLEET_CONCURRENCY")
    if fitting.spares < wanted.spares:
        detail = (
            f"the hard limit is {limit}: {fitting.spares} sandboxes are booted ahead instead of {wanted.spares}, "
            f"which need {wanted.total}"
        )
        return Finding(name, State.TIP, detail, f"{_raise_to(wanted.total)}, or a smaller SANDFLEET_WARM__SIZE")
    return Finding(name, State.OK, f"a limit of {limit}, {wanted.total} are needed")


def check_memory(budget: MemoryBudget, ceiling_bytes: int) -> Finding:
    """Find the memory that jobs may have together, and its source.

    Find also whether one of the largest jobs fits.
    """
    name, detail = "memory for jobs", f"{budget.job_bytes >> 20} MiB by their limits, {budget.describe()}"
    if budget.job_bytes >= ceiling_bytes:
        return Finding(name, State.OK, detail)
    fix = f"give {budget.bound} more, or lower SANDFLEET_POLICY__MEMORY_BYTES"
    if budget.job_bytes < MIN_BUDGET_BYTES:
        least = format_bytes(MIN_BUDGET_BYTES)
        text = f"{detail}: jobs need at least {least}, or they end as OUT_OF_MEMORY for what the host lacks"
        return Finding(name, State.FAILED, text, fix)
    text = f"{detail}: less than the ceiling of one job ({format_bytes(ceiling_bytes)}), which is lowered to it"
    return Finding(name, State.WARNING, text, fix)


def _raise_to(limit: int) -> str:
    return f"ulimit -Hn {limit}, LimitNOFILE={limit} in the unit"


def check_tools() -> Iterator[Finding]:
    """Whether images can be added here."""
    path = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
    for tool, purpose in IMAGE_TOOLS.items():
        found = shutil.which(tool, path=path)
        yield Finding(tool, State.OK if found else State.WARNING, found or "not found", "" if found else purpose)


def check_disk(settings: WorkerSettings) -> Finding:
    """Whether there is room for images."""
    folder = next(parent for parent in (settings.images.root, *settings.images.root.parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    detail = f"{free / (1 << 30):.1f} GiB free for images in {settings.images.root}"
    if free >= MIN_FREE_BYTES:
        return Finding("disk", State.OK, detail)
    return Finding("disk", State.WARNING, detail, "make room, or set SANDFLEET_IMAGES__ROOT to a larger disk")
