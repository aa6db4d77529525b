"""The settings of a host about its sandboxes: runsc, what a job may have, and spares."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator

from sandfleet_config.bounds import MIN_CPU_QUOTA, MIN_DISK_BYTES, MIN_MEMORY_BYTES, MIN_TIMEOUT_SECONDS, least
from sandfleet_config.fields import Bytes
from sandfleet_config.section import NameList, Section

LimitName = Literal["memory", "cpu", "pids", "disk"]
WARM_PER_CORE = 2


class RunscSettings(Section):
    """How this host runs runsc; the seed's ``Config``."""

    path: str = Field(default="runsc", description="The runsc binary, a name on PATH or an absolute path.")
    platform: str = Field(default="systrap", description="systrap, ptrace or kvm.")
    root_dir: Path = Field(default=Path("/var/run/gvisor"), description="State of running sandboxes; best on tmpfs.")
    boot_deadline_seconds: float = Field(default=20.0, gt=0, description="A sandbox that is not up by then is killed.")
    cgroup_parent: str = Field(default="sandfleet", description="The cgroup under which each sandbox gets its own.")
    rootless: bool = Field(default=False, description="Pass --rootless to runsc: for containers without CAP_SYS_ADMIN.")
    membarrier: bool = Field(
        default=False,
        description="Let programs use membarrier(2) on runsc before 20260721; each boot then takes some 30 ms longer.",
    )

    @field_validator("cgroup_parent")
    @classmethod
    def _refuse_escape(cls, value: str) -> str:
        if not value or value.startswith("/") or ".." in value.split("/"):
            msg = "must be a relative path below the cgroup mount, such as sandfleet"
            raise ValueError(msg)
        return value


class PolicySettings(Section):
    """The ceilings and permissions of this host.

    Every message is checked against them, a forged one too.
    """

    memory_bytes: Bytes = Field(default=512 << 20, ge=MIN_MEMORY_BYTES, description="Ceiling and default of memory.")
    cpu_quota: Annotated[int, least("cpu_quota", MIN_CPU_QUOTA)] = Field(
        default=0, ge=0, description="Ceiling in microseconds each 100 ms; 0 is all cores."
    )
    pids_limit: int = Field(default=256, gt=0, description="Ceiling and default of processes and threads.")
    disk_bytes: Bytes = Field(default=256 << 20, ge=MIN_DISK_BYTES, description="Ceiling and default of writable disk.")
    timeout_seconds: float = Field(default=3600.0, ge=MIN_TIMEOUT_SECONDS, description="Ceiling of `timeout`.")
    grace_seconds: float = Field(default=60.0, ge=0, description="Ceiling of `grace`.")
    output_bytes: Bytes = Field(
        default=1 << 20, gt=0, description="Ceiling of `output.max_bytes`; outcomes are kept in Redis."
    )
    artifact_files: int = Field(default=1000, gt=0, description="Files that one job may leave as artifacts.")
    artifact_bytes: Bytes = Field(default=64 << 20, gt=0, description="Ceiling of one artifact.")
    artifacts_bytes: Bytes = Field(default=256 << 20, gt=0, description="Bytes of all artifacts of one job.")
    stored_output_bytes: Bytes = Field(
        default=64 << 20, gt=0, description="Bytes of one stream that `output.store` keeps in the store."
    )
    images: NameList = Field(default=("*",), description="Allowed images: glob patterns of names or digests.")
    datasets: NameList = Field(
        default=("*",),
        description="Allowed datasets: glob patterns of names, or of digests where a spec gives no name.",
    )
    platforms: NameList = Field(default=(), description="Platforms a spec may name beside the host's.")
    allow_root: bool = Field(default=False, description="Let a spec's user be root (without capabilities).")


class WarmSettings(Section):
    """Spares: sandboxes that are booted before their job comes. Each is used for one job."""

    size: int = Field(
        default_factory=lambda: WARM_PER_CORE * (os.cpu_count() or 1),
        ge=0,
        le=1024,
        description="Booted sandboxes that are kept idle at most, by all processes of `start` together, 48 MiB each at most;"
        " 0: each boots when its job comes.",
    )
    images: NameList = Field(
        default=(), description="Images to boot sandboxes of from the start; others follow from the jobs that come."
    )
    idle_seconds: float = Field(
        default=300.0, gt=0, description="An image that no job has used for so long gets no more sandboxes ahead."
    )
