"""Check the ``SANDFLEET_*`` variables: refuse unknown ones, and name the variable of each fault."""

from __future__ import annotations

import difflib
import os
import re
from typing import TYPE_CHECKING

from sandfleet_config.faults import describe_faults
from sandfleet_config.settings import NESTED, PREFIX, SettingsInvalid, WorkerSettings, setting_names

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic import BaseModel, ValidationError

WEB_PREFIX = f"{PREFIX}WEB{NESTED}"
"""How the variables of `WebSettings` begin.

Few processes have one, so its models are built only then.
"""

COMMAND_VARIABLES = frozenset(
    f"{PREFIX}{name}" for name in ("BATCH", "TOTAL", "OK", "NOT_OK", "WEB_URL", "WEB_TOKEN_FILE")
)
"""Variables that are no settings.

Of the command of ``sandfleet batch wait --exec``, which may call us; and where the command line
finds the history.
"""


def check_environment(environ: Mapping[str, str] | None = None) -> None:
    """Refuse ``SANDFLEET_*`` variables that no setting reads: a misspelling is no silent default.

    Raises:
        SettingsInvalid: it names each one, with the nearest known name.
    """
    known = {key for key, *_ in setting_names()} | COMMAND_VARIABLES
    present = os.environ if environ is None else environ
    given = [key for key in present if key.upper().startswith(PREFIX)]
    if any(key.upper().startswith(WEB_PREFIX) for key in given):
        from sandfleet_config.web_settings import is_endpoint_variable, web_setting_names

        known |= web_setting_names()
        given = [key for key in given if not is_endpoint_variable(key.upper())]
    unknown = sorted(key for key in given if key.upper() not in known)
    if unknown:
        hints: list[str] = []
        for key in unknown:
            near = difflib.get_close_matches(key.upper(), known, n=1)
            hints.append(f"{key} (did you mean {near[0]}?)" if near else key)
        msg = f"unknown settings in the environment: {', '.join(hints)}"
        raise SettingsInvalid(msg)


def describe_settings_faults(error: ValidationError, model: type[BaseModel] = WorkerSettings) -> str:
    """Return the faults of settings in one line, each with the name of its variable.

    No value is repeated.
    """
    faults = [fault for fault, _ in describe_faults(error, model)]
    # An item of a list has no variable of its own.
    names = [re.sub(r"(\.\d+)+$", "", fault["field"]).replace(".", NESTED).upper() for fault in faults]
    return "; ".join(f"{PREFIX}{name}: {fault['message']}" for name, fault in zip(names, faults, strict=True))
