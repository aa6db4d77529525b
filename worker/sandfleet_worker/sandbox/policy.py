"""This host's policy: what a spec may have here.

It outranks the spec, and so also a forged message. Pure: no I/O. `admit` turns requested limits
into limits in force, or refuses with every reason at once.
"""

from __future__ import annotations

import fnmatch
import os
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from sandfleet_config.errors import SecurityViolation, SpecInvalid
from sandfleet_config.image_names import REGISTRY_PREFIX, normalize_image
from sandfleet_config.units import CPU_PERIOD_MICROSECONDS, format_bytes, format_limit

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from sandfleet_config.settings import HostSettings, PolicySettings
    from sandfleet_config.spec import SandboxSpec


@dataclass(frozen=True)
class Admitted:
    """A spec and the limits in force: bytes, seconds, CPU microseconds per 100 ms (0: no quota)."""

    spec: SandboxSpec
    memory_bytes: int
    cpu_quota: int
    pids_limit: int
    disk_bytes: int
    timeout_seconds: float
    grace_seconds: float
    output_bytes: int
    platform: str
    allow_root: bool

    def shortened(self, soft_seconds: float | None, hard_seconds: float | None) -> Admitted:
        """Return these limits cut by those of a message's header, which may only shorten a job."""
        timeout, end = self.timeout_seconds, self.timeout_seconds + self.grace_seconds
        if hard_seconds is not None and hard_seconds > 0:
            end = min(end, hard_seconds)
        if soft_seconds is not None and soft_seconds > 0:
            timeout = min(timeout, soft_seconds)
        timeout = min(timeout, end)
        return replace(self, timeout_seconds=timeout, grace_seconds=min(self.grace_seconds, end - timeout))


def admit(spec: SandboxSpec, host: HostSettings) -> Admitted:
    """Return the limits `spec` gets on this host.

    Raises:
        SecurityViolation: the spec names a binary, folder, platform, network, profile or image that
            the policy does not list.
        SpecInvalid: a limit is above the host's ceiling (the request is refused, never silently
            shortened).
    """
    if violations := list(_violations(spec, host)):
        raise SecurityViolation.of(_join(violations), errors=violations)
    if faults := [*_above_ceiling(spec, host.policy), *_large_artifacts(spec, host.policy)]:
        raise SpecInvalid.of(_join(faults), errors=faults)
    policy, requested = host.policy, spec.resources
    return Admitted(
        spec=spec,
        memory_bytes=requested.memory_bytes or policy.memory_bytes,
        cpu_quota=requested.cpu_quota or policy.cpu_quota,
        pids_limit=requested.pids_limit or policy.pids_limit,
        disk_bytes=requested.disk_bytes or policy.disk_bytes,
        timeout_seconds=spec.timeout_seconds if spec.timeout else min(spec.timeout_seconds, policy.timeout_seconds),
        grace_seconds=min(spec.grace, policy.grace_seconds),
        output_bytes=spec.output.max_bytes or policy.output_bytes,
        platform=spec.platform or host.runsc.platform,
        allow_root=policy.allow_root,
    )


def _fault(field: str, message: str) -> dict[str, str]:
    return {"field": field, "message": message}


def _join(faults: Iterable[dict[str, str]]) -> str:
    return "; ".join(f"{fault['field']}: {fault['message']}" for fault in faults)


def _violations(spec: SandboxSpec, host: HostSettings) -> Iterator[dict[str, str]]:
    runsc, policy = host.runsc, host.policy
    if spec.platform and spec.platform not in {runsc.platform, *policy.platforms}:
        yield _fault("platform", f"{spec.platform!r} is not in this host's policy (SANDFLEET_POLICY__PLATFORMS)")
    if spec.runsc_path and spec.runsc_path != runsc.path:
        yield _fault("runsc_path", "this host's policy lets no spec choose a host binary")
    if spec.root_dir and os.path.normpath(spec.root_dir) != os.path.normpath(runsc.root_dir):
        yield _fault("root_dir", "this host's policy lets no spec choose a host folder")
    if spec.security.network_mode != "none":
        yield _fault("security.network_mode", f"{spec.security.network_mode!r} is not set up on this host, only 'none'")
    if spec.security.seccomp_profile:
        yield _fault("security.seccomp_profile", f"{spec.security.seccomp_profile!r} is not in this host's policy")
    image = normalize_image(spec.image) if spec.image.startswith(REGISTRY_PREFIX) else spec.image
    if not any(fnmatch.fnmatchcase(image, pattern) for pattern in policy.images):
        yield _fault("image", f"{image!r} is not in this host's policy (SANDFLEET_POLICY__IMAGES)")
    for index, dataset in enumerate(spec.datasets):
        name = dataset.name or f"sha256:{dataset.sha256}"
        if not any(fnmatch.fnmatchcase(name, pattern) for pattern in policy.datasets):
            yield _fault(f"datasets.{index}", f"{name!r} is not in this host's policy (SANDFLEET_POLICY__DATASETS)")


@cache
def count_cores() -> int:
    """Return the number of this host's cores at the first call.

    Each call of ``os.cpu_count`` would read a file. Restart the worker when cores are added.
    """
    return os.cpu_count() or 1


def find_ceilings(policy: PolicySettings) -> dict[str, float]:
    """Return the most that a spec may ask for, by the names of `wire.find_requested_limits`."""
    return {
        "memory_bytes": policy.memory_bytes,
        "cpu_quota": policy.cpu_quota or count_cores() * CPU_PERIOD_MICROSECONDS,
        "pids_limit": policy.pids_limit,
        "disk_bytes": policy.disk_bytes,
        "timeout": policy.timeout_seconds,
        "grace": policy.grace_seconds,
        "output_bytes": policy.output_bytes,
    }


def _large_artifacts(spec: SandboxSpec, policy: PolicySettings) -> Iterator[dict[str, str]]:
    most = policy.artifact_bytes
    for index, artifact in enumerate(spec.artifacts):
        if artifact.max_bytes > most:
            text = f"{format_bytes(artifact.max_bytes)} is above this host's ceiling of {format_bytes(most)}"
            yield _fault(f"artifacts.{index}.max_bytes", f"{text}, set by SANDFLEET_POLICY__ARTIFACT_BYTES")


def _above_ceiling(spec: SandboxSpec, policy: PolicySettings) -> Iterator[dict[str, str]]:
    requested, ceilings = spec.resources, find_ceilings(policy)
    requests = (
        ("resources.memory_bytes", requested.memory_bytes, "memory_bytes", "MEMORY_BYTES"),
        ("resources.cpu_quota", requested.cpu_quota, "cpu_quota", "CPU_QUOTA"),
        ("resources.pids_limit", requested.pids_limit, "pids_limit", "PIDS_LIMIT"),
        ("resources.disk_bytes", requested.disk_bytes, "disk_bytes", "DISK_BYTES"),
        ("timeout", spec.timeout, "timeout", "TIMEOUT_SECONDS"),
        ("grace", spec.grace, "grace", "GRACE_SECONDS"),
        ("output.max_bytes", spec.output.max_bytes, "output_bytes", "OUTPUT_BYTES"),
    )
    for field, request, name, setting in requests:
        ceiling = ceilings[name]
        if request <= ceiling:
            continue
        by = f", set by SANDFLEET_POLICY__{setting}" if getattr(policy, setting.lower()) else ""
        yield _fault(
            field, f"{format_limit(field, request)} is above this host's ceiling of {format_limit(field, ceiling)}{by}"
        )
