"""What this host and its Redis can do, one finding a fact, each with its fix; preflight and doctor choose among them."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import redis
from sandfleet_config.errors import SandboxError

from sandfleet_worker.host import connect
from sandfleet_worker.sandbox.cgroup_tree import find_tree
from sandfleet_worker.sandbox.runsc import find_runsc

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sandfleet_config.settings import WorkerSettings

    from sandfleet_worker.sandbox.runner import RunscRunner

MIN_FREE_BYTES = 1 << 30
SAFE_POLICY = "noeviction"
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
    if info.get("aof_enabled"):
        yield Finding("redis persistence", State.OK, "append-only file")
    else:
        detail = "no append-only file: a restart of Redis loses queued jobs"
        yield Finding("redis persistence", State.WARNING, detail, "set appendonly yes in redis.conf")


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


def check_runsc(settings: WorkerSettings) -> Finding:
    """Whether there is a runsc, and which."""
    try:
        binary = find_runsc(settings.runsc.path)
    except SandboxError as error:
        return Finding("runsc", State.FAILED, error.message, "install gVisor, or set SANDFLEET_RUNSC__PATH")
    return Finding("runsc", State.OK, f"{binary.path}, version {binary.version}")


def check_platform(settings: WorkerSettings, runner: RunscRunner, platform: str) -> Finding:
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
        return Finding(name, state, error.message, fix)
    used = ", used for jobs" if is_needed else ""
    return Finding(name, State.OK, f"a sandbox was up after {report.boot_seconds * 1000:.0f} ms{used}")


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
