"""Request and result of the seed's ``Backend.Execute``: it runs code and returns its value."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from sandfleet_config.fields import Bytes, ContractModel, Seconds
from sandfleet_config.outcome import Outcome
from sandfleet_config.record import Record

Profile = Literal["dev", "standard", "hardened"]


class ExecuteLimits(ContractModel):
    """Limits of one execution; zero is the host's ceiling.

    `cpu_quota_millis`: milliseconds of CPU in each 100 ms.
    """

    cpu_quota_millis: Annotated[int, Field(ge=0)] = 0
    memory_bytes: Bytes = 0
    pids_max: Annotated[int, Field(ge=0)] = 0
    disk_bytes: Bytes = 0


class ExecuteRequest(ContractModel):
    """Code to run, its language, its limits and the profile to run it with."""

    code: Annotated[str, Field(min_length=1)]
    language: str = "python"
    timeout: Seconds = 0.0
    limits: ExecuteLimits = ExecuteLimits()
    profile: Profile | Literal[""] = ""
    metadata: dict[str, str] = Field(default_factory=dict)


class BackendInfo(Record):
    """The backend that ran the code."""

    kind: str = "gvisor"
    readiness: str = "ready"
    details: dict[str, str] = Field(default_factory=dict)


class LimitsEnforced(Record):
    """The limits that the host enforced."""

    timeout: bool = False
    memory: bool = False
    cpu: bool = False
    pids: bool = False
    disk: bool = False


class ExecuteResult(Record):
    """The result of the code.

    `value`: its last ``__OUT__:`` line, or its last JSON object with the key ``__out``. `compile`
    is the outcome of the compile job, None if the language is not compiled. If the code did not
    compile, exit code and outputs are the compiler's.
    """

    value: Any = None
    exit_code: int = 0
    stdout: str = Field(default="", repr=False)
    stderr: str = Field(default="", repr=False)
    duration: float = 0.0
    backend: BackendInfo = BackendInfo()
    limits_enforced: LimitsEnforced = LimitsEnforced()
    compile: Outcome | None = Field(default=None, repr=False)

    @property
    def did_compile(self) -> bool:
        """Whether the code ran: it is not compiled, or the compiler exited 0."""
        return self.compile is None or self.compile.is_ok
