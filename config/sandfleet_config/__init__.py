"""The contract between producers and workers: specs, outcomes, error codes, settings, names.

A name is imported at its first use: the command line needs few of them, and starts in a third of
the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandfleet_config.lazy_names import import_lazily

if TYPE_CHECKING:
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

_NAMES: Final = {
    "sandfleet_config.codes": "Category ErrorCode",
    "sandfleet_config.errors": "ERROR_CLASSES SandboxError",
    "sandfleet_config.execute": "ExecuteLimits ExecuteRequest ExecuteResult",
    "sandfleet_config.outcome": "Outcome SandboxResult StreamOutput",
    "sandfleet_config.spec": "OutputSpec Payload ResourceSpec SandboxSpec SecuritySpec",
}

__getattr__, __dir__ = import_lazily(__name__, _NAMES)
