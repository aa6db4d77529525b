"""Print the list of commands, from their own help; with --write, put it into its page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import sandfleet.cli.commands
import sandfleet_web.cli
import sandfleet_worker.cli
from typer.main import get_command

if TYPE_CHECKING:
    from collections.abc import Iterator

from generated import print_or_write, replace_part

PAGE = Path(__file__).parent.parent / "docs/reference/commands.md"
BEGIN, END = "<!-- commands:begin -->", "<!-- commands:end -->"


def new_list() -> str:
    """Return a section for each command, as Markdown."""
    programs = {
        "sandfleet": sandfleet.cli.commands.app,
        "sandfleet-worker": sandfleet_worker.cli.cli,
        "sandfleet-web": sandfleet_web.cli.app,
    }
    lines: list[str] = []
    for name, app in programs.items():
        command: Any = get_command(app)
        lines += [f"## {name}", "", *_write_help(command)]
        lines += [f"`{name} --version` prints the version.", ""] if _has_version(command) else []
        for path, found in find_commands(command, name):
            lines += [f"### {path}", "", *_write_command(path, found)]
    return "\n".join(lines).rstrip()


def find_commands(group: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield each command below `group` that people call, with the words that call it."""
    for name in group.list_commands(None):
        command = group.get_command(None, name)
        if command.hidden:
            continue
        if hasattr(command, "commands"):
            if command.invoke_without_command:
                yield f"{path} {name}", command
            yield from find_commands(command, f"{path} {name}")
        else:
            yield f"{path} {name}", command


def _has_version(command: Any) -> bool:
    return any("--version" in parameter.opts for parameter in command.params)


def _write_help(command: Any) -> list[str]:
    return [" ".join(str(command.help).split()), ""] if command.help else []


def _write_command(path: str, command: Any) -> list[str]:
    """Return the usage of a command, what it does, and a table of its arguments and options."""
    arguments = [parameter for parameter in command.params if not hasattr(parameter, "is_flag")]
    options = [parameter for parameter in command.params if hasattr(parameter, "is_flag")]
    words = [path, *(["[OPTIONS]"] if options else []), *map(_name_argument, arguments)]
    lines = ["```text", " ".join(words), "```", "", *_write_help(command)]
    rows = [_write_argument(parameter) for parameter in arguments if parameter.help]
    rows += [_write_option(parameter) for parameter in options]
    if rows:
        lines += ["| argument or option | default | what it is |", "|---|---|---|", *rows, ""]
    return lines


def _name_argument(parameter: Any) -> str:
    shown = str(parameter.metavar or parameter.name.upper())
    return shown if parameter.required or shown.startswith("[") else f"[{shown}]"


def _write_argument(parameter: Any) -> str:
    return f"| `{_name_argument(parameter)}` | {_show_default(parameter)} | {_escape(parameter.help)} |"


def _write_option(parameter: Any) -> str:
    names = [*parameter.opts, *parameter.secondary_opts]
    kind = "" if parameter.is_flag else f" {parameter.name.upper()}"
    shown = ", ".join(f"`{name}`" for name in names[:-1]) + (", " if len(names) > 1 else "") + f"`{names[-1]}{kind}`"
    return f"| {shown} | {_show_default(parameter)} | {_escape(parameter.help or '')} |"


def _show_default(parameter: Any) -> str:
    value = parameter.default
    if parameter.required:
        return "required"
    if parameter.secondary_opts:
        return f"`{(parameter.opts if value else parameter.secondary_opts)[0]}`"
    return "" if value is None or value is False or value == "" else f"`{value}`"


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def rewrite(text: str) -> str:
    """Return the page's text with the commands of today."""
    return replace_part(text, BEGIN, END, f"\n{new_list()}\n")


if __name__ == "__main__":
    print_or_write(PAGE, new_list, rewrite)
