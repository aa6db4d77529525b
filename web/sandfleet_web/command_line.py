"""The settings of a command of `sandfleet-web`, and how it tells its errors."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer
from pydantic import ValidationError
from sandfleet.errors import FleetError
from sandfleet_config.environment import check_environment, describe_settings_faults
from sandfleet_config.settings import SettingsInvalid
from sandfleet_config.web_settings import WebSettings

if TYPE_CHECKING:
    from collections.abc import Generator


def read_settings() -> WebSettings:
    """Read the settings of this process.

    Raises:
        SettingsInvalid: a variable is wrong, or unknown.
    """
    check_environment()
    try:
        return WebSettings()
    except ValidationError as error:
        raise SettingsInvalid(describe_settings_faults(error, WebSettings)) from None


@contextmanager
def print_known_errors() -> Generator[None]:
    """Turn the errors people can mend into one red sentence and exit code 1.

    Anything else keeps its traceback.
    """
    try:
        yield
    except (FleetError, SettingsInvalid) as error:
        print_error(str(error))
        raise typer.Exit(1) from None
    except OSError as error:
        if error.filename is None:
            raise
        print_error(f"{error.filename}: {error.strerror}")
        raise typer.Exit(1) from None


def print_error(text: str) -> None:
    """Print one red line on stderr."""
    from rich.console import Console

    Console(stderr=True).print(f"error: {text}", style="red", markup=False, highlight=False, soft_wrap=True)
