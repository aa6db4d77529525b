"""Open the fleet of a command.

What that needs is imported then, so that help and completion start fast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandfleet.fleet import Fleet


def open_fleet() -> Fleet:
    """Return the fleet that the environment's ``SANDFLEET_*`` name.

    Raises:
        SettingsInvalid: a variable is wrong.
    """
    from sandfleet.fleet import Fleet

    return Fleet()
