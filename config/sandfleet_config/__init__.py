"""The contract between producers and workers: specs, outcomes, error codes, settings, names."""

from sandfleet_config.codes import Category, ErrorCode
from sandfleet_config.errors import ERROR_CLASSES, SandboxError
from sandfleet_config.execute import ExecuteLimits, ExecuteRequest, ExecuteResult
from sandfleet_config.outcome import Outcome, SandboxResult, StreamOutput
from sandfleet_config.spec import OutputSpec, Payload, ResourceSpec, SandboxSpec, SecuritySpec

__all__ = [
    "ERROR_CLASSES",
    "Category",
    "ErrorCode",
    "ExecuteLimits",
    "ExecuteRequest",
    "ExecuteResult",
    "Outcome",
    "OutputSpec",
    "Payload",
    "ResourceSpec",
    "SandboxError",
    "SandboxResult",
    "SandboxSpec",
    "SecuritySpec",
    "StreamOutput",
]
