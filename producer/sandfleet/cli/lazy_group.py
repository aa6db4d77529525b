"""A group of commands that imports sub-groups and listed commands only when they are used."""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from typer.core import TyperCommand, TyperGroup
from typer.main import get_group

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    import typer

GROUPS: Final[Mapping[str, str]] = {
    "batch": "List batches; look at one, wait for it, hold it, retry, cancel or forget it.",
    "dead": "Look at dead letters, queue them again, drop them.",
    "hosts": "List the hosts with their workers, slots and marks; look at one, cordon or drain it.",
    "queues": "List the queues: what waits, for how long, who takes it; look at one, pause it, resume it.",
    "store": "See how full the store is, delete what no job refers to any more.",
}
"""The groups of `sandfleet`, each in the module of its name, with its help.

The list of commands imports none.
"""
LISTS: Final[Mapping[str, str]] = {
    "jobs": "List jobs that match: those that have not ended, then ended ones, the newest end first.",
    "batches": "List the batches, the last used first: their jobs, how many have ended, and how.",
    "failures": "Group the failures of the last 24 h, or of --since, the largest group first.",
    "usage": "Sum up jobs, CPU hours, GiB hours and failures by batch or by a label, the most CPU first.",
    "images": "List the images of all live hosts by name, and say where hosts have another digest of a name.",
    "audit": "List what operators did, newest first: cordons, drains, pauses, cancels and retries by filter.",
}
"""The commands that list something, with their help."""
SUBMIT: Final[Mapping[str, str]] = {"submit": "Queue a file of jobs, or a command for each script, row or index."}
"""The command with most options, with its help."""
_MODULES: Final[Mapping[str, str]] = {
    "jobs": "jobs_list",
    "batches": "lists",
    "failures": "past",
    "usage": "past",
    "submit": "submit_command",
}
"""Modules of commands that have another name than the command."""
_LAZY: Final[Mapping[str, str]] = {**SUBMIT, **LISTS, **GROUPS}


class LazyGroup(TyperGroup):
    """The commands of `sandfleet`: those of `GROUPS`, `LISTS` and `SUBMIT` are imported by name."""

    _is_listed = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands."""
        first, *others = (name for name in super().list_commands(ctx) if name not in _LAZY)
        return [first, *SUBMIT, *others, *LISTS, *GROUPS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; import it if it is one of the lazy ones, unless it is only listed."""
        if cmd_name in _LAZY and cmd_name not in self.commands:
            if self._is_listed:
                return TyperCommand(cmd_name, help=_LAZY[cmd_name])
            self.add_command(find_command(cmd_name), cmd_name)
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list of commands with their short help."""
        with self._listed():
            super().format_commands(ctx, formatter)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        """Return the commands and options that begin with `incomplete`."""
        with self._listed():
            return super().shell_complete(ctx, incomplete)

    @contextmanager
    def _listed(self) -> Generator[None]:
        self._is_listed = True
        try:
            yield
        finally:
            self._is_listed = False


def find_command(name: str) -> Any:
    """Import the module of a lazy command or group, and return it."""
    app: typer.Typer = import_module(f"sandfleet.cli.{_MODULES.get(name, name)}").app
    found: Any = get_group(app)
    if name == "jobs":
        from sandfleet.cli.job_actions import JobsGroup

        return JobsGroup(found.commands[name])
    return found if name in GROUPS else found.commands[name]
