"""Tell the errors of a command: one line each, and the exit code."""

from __future__ import annotations

from sandfleet_config.errors import RequestError, SandboxError
from sandfleet_config.settings import SettingsInvalid
from sandfleet_config.store.protocol import StoreError
from sandfleet_config.terminal import safe_text

from sandfleet.cli import exits
from sandfleet.cli.show import note
from sandfleet.errors import ActionRefused, FleetError, FleetUnavailable

_OUT_OF_REACH = (SandboxError, FleetUnavailable, SettingsInvalid, StoreError)


def is_told(error: Exception) -> bool:
    """Whether the message of `error` is all that a person needs; any other is our defect."""
    return isinstance(error, (*_OUT_OF_REACH, FleetError, OSError, UnicodeError))


def find_exit(error: Exception, usage: int) -> int:
    """Print the message of `error`; return the exit code.

    `usage` is that of a wrong command line.
    """
    if isinstance(error, OSError) and not isinstance(error, FleetError) and error.filename is not None:
        note(f"{error.filename}: {error.strerror}")
    elif isinstance(error, UnicodeEncodeError) and error.encoding == "utf-8":
        note(f"not valid UTF-8: {safe_text(error.object[error.start : error.end])}")
    else:
        note(str(error))
    if isinstance(error, (RequestError, ActionRefused)):  # what was typed, or what it names, cannot be
        return usage
    if isinstance(error, _OUT_OF_REACH):
        return exits.OUR_FAILURE
    return exits.SOME_NOT_OK if isinstance(error, FleetError) else usage
