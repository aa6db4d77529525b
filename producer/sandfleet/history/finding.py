"""Find the history that is in reach of this process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandfleet.errors import HistoryUnavailable

if TYPE_CHECKING:
    from sandfleet.history.questions import History

URL_VARIABLE: Final = "SANDFLEET_WEB_URL"
TOKEN_VARIABLE: Final = "SANDFLEET_WEB_TOKEN_FILE"  # noqa: S105  the name of a variable


def find_history(timeout_seconds: float | None = None) -> History:
    """Return the history of `SANDFLEET_WEB_URL`, else that of the file on this host.

    `timeout_seconds` bounds each answer of the former.

    Raises:
        HistoryUnavailable: neither is in reach; the message says how to have one.
        SettingsInvalid: a variable is wrong.
    """
    if url := os.environ.get(URL_VARIABLE, ""):
        from sandfleet.history.remote_history import TIMEOUT_SECONDS, RemoteHistory

        token = os.environ.get(TOKEN_VARIABLE, "")
        return RemoteHistory(url, Path(token) if token else None, timeout_seconds or TIMEOUT_SECONDS)
    path = _find_file()
    if not os.path.exists(path):  # noqa: PTH110  pathlib's raises for a folder that may not be read
        raise HistoryUnavailable(
            f"there is no history in reach: set {URL_VARIABLE} and {TOKEN_VARIABLE} of a sandfleet-web, or run"
            f" sandfleet-web serve or sandfleet-web history run on this host (it writes {path})"
        )
    from sandfleet.history.file_history import FileHistory

    return FileHistory(path)


def _find_file() -> Path:
    from pydantic import ValidationError
    from sandfleet_config.environment import describe_settings_faults
    from sandfleet_config.settings import SettingsInvalid
    from sandfleet_config.web_settings import WebSettings

    try:
        return WebSettings().history_file
    except ValidationError as error:
        raise SettingsInvalid(describe_settings_faults(error, WebSettings)) from None
