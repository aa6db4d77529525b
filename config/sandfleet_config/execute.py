"""The seed's ``Backend.Execute``: code in, value out."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from sandfleet_config.fields import Bytes, ContractModel, Seconds
from sandfleet_config.outcome import Record

Profile = Literal["dev", "standard", "hardened"]


class ExecuteLimits(ContractModel):
    """Limits of one execution; zero is the host's ceiling. `cpu_quota_millis` is CPU milliseconds in each 100 ms."""

    cpu_quota_millis: Annotated[int, Field(ge=0)] = 0
    memory_bytes: Bytes = 0
    pids_max: Annotated[int, Field(ge=0)] = 0
    disk_bytes: Bytes = 0


class ExecuteRequest(ContractModel):
    """Code to run, in a language the backend knows, under a profile."""

    code: Annotated[str, Field(min_length=1)]
    language: str = "python"
    timeout: Seconds = 0.0
    limits: ExecuteLimits = ExecuteLimits()
    profile: Profile | Literal[""] = ""
    metadata: dict[str, str] = Field(default_factory=dict)


class BackendInfo(Record):
    """What ran the code."""

    kind: str = "gvisor"
    readiness: str = "ready"
    details: dict[str, str] = Field(default_factory=dict)


class LimitsEnforced(Record):
    """Which limits the host really held the code to."""

    timeout: bool = False
    memory: bool = False
    cpu: bool = False
    pids: bool = False
    disk: bool = False


class ExecuteResult(Record):
    """What the code answered: `value` is the last ``__OUT__:`` line or JSON object with the key ``__out``."""

    value: Any = None
    exit_code: int = 0
    stdout: str = Field(default="", repr=False)
    stderr: str = Field(default="", repr=False)
    duration: float = 0.0
    backend: BackendInfo = BackendInfo()
    limits_enforced: LimitsEnforced = LimitsEnforced()
