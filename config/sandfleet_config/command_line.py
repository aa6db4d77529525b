"""Describe errors of a command line, for `sandfleet` and `sandfleet-worker` alike.

The errors are typer's. They are recognized by their attributes, so that the contract does not
depend on typer.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

NEARNESS: Final = 0.7
"""The least similarity of two names (`difflib`, 0 to 1) at which one is suggested for the other."""

_VALUE: Final = re.compile(r"Invalid value(?: for '?(?P<name>[^':]+)'?)?: (?P<said>.*)", re.DOTALL)
_VALUES: Final = (
    (re.compile(r".*valid number.*"), "must be a number"),
    (re.compile(r".*valid integer.*"), "must be a whole number"),
    (re.compile(r".*greater than or equal to (\S+).*"), r"must be at least \1"),
    (re.compile(r".*less than or equal to (\S+).*"), r"must be at most \1"),
)
_MISSING: Final = re.compile(r"Missing argument '(.*?)'")
_UNKNOWN_COMMAND: Final = re.compile(r"No such command '(.*?)'\.", re.DOTALL)


def is_help(error: Any) -> bool:
    """Whether `error` is not a mistake but the help that a command without arguments prints."""
    return type(error).__name__ == "NoArgsIsHelpError"


def describe_usage_error(error: Any, others: Mapping[str, str], units: Mapping[str, str] | None = None) -> str:
    """Return the message of `error`; `others` maps words of other tools to advice on ours.

    `units` maps options that take a number to its unit and an example, such as
    ``seconds, such as 60``.
    """
    message: str = error.format_message()
    context = getattr(error, "ctx", None)
    if context is not None and hasattr(error, "possibilities"):
        known = [name for parameter in context.command.params for name in parameter.opts]
        option = error.option_name
        return f"no such option: {option}{_suggest(option, known, others, context.command_path)}"
    if context is not None and (unknown := _UNKNOWN_COMMAND.match(message)):
        known = context.command.list_commands(context)
        return f"no such command: {unknown[1]}{_suggest(unknown[1], known, others, context.command_path)}"
    if value := _VALUE.fullmatch(message):
        unit = (units or {}).get(value["name"] or "", "")
        return f"{value['name']}: {_describe_value(value['said'], unit)}" if value["name"] else value["said"]
    words = message[:1].lower() + message[1:].rstrip(".")
    if missing := _MISSING.match(message):
        words = f"missing argument {missing[1].rstrip('.').upper()}"
    return f"{words} ({context.command_path} --help tells more)" if context is not None else words


def _describe_value(said: str, unit: str) -> str:
    for form, words in _VALUES:
        if found := form.fullmatch(said):
            described = found.expand(words)
            return f"{described} of {unit}" if unit and described.endswith("number") else described
    return said


def _suggest(name: str, known: Iterable[str], others: Mapping[str, str], command: str) -> str:
    if name in others:
        return f": {others[name]}"
    names = list(known)
    # A prefix of the name, or its plural: --mem, --cpus.
    near = [other for other in names if len(name) > len("--x") and (other.startswith(name) or name == f"{other}s")]
    near.sort(key=len)  # the shortest is the nearest
    near += difflib.get_close_matches(name, names, n=1, cutoff=NEARNESS)
    return f": did you mean {near[0]}?" if near else f" ({command} --help lists them)"
