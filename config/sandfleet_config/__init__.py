"""The contract between producers and workers: specs, outcomes, error codes, settings, names.

A name is imported at its first use: the command line needs few of them, and starts in a third of
the time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

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
_MODULES: Final = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Import a public name; Python calls it for a name that is not here yet."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_MODULES[name]), name)
    return value


def __dir__() -> list[str]:
    """Return the names that are here, and those that can be imported."""
    return sorted({*globals(), *__all__})
