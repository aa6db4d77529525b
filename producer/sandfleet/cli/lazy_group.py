"""A group of commands whose sub-groups are imported when they are used."""

from __future__ import annotations

from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

    import typer

GROUPS: Final[Mapping[str, str]] = {
    "batch": "Look at a batch, wait for it, cancel it, forget it.",
    "dead": "Look at dead letters, queue them again, drop them.",
    "store": "See how full the store is, delete what no job refers to any more.",
}
"""The groups of `sandfleet`, each in the module of its name, with its help: the list of commands imports none."""


class LazyGroup(TyperGroup):
    """The commands of `sandfleet`: those of `GROUPS` are imported by name."""

    _is_listed = False

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all commands."""
        return [*(name for name in super().list_commands(ctx) if name not in GROUPS), *GROUPS]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a command; import a group, unless it is only listed."""
        if cmd_name in GROUPS and cmd_name not in self.commands:
            if self._is_listed:
                return TyperCommand(cmd_name, help=GROUPS[cmd_name])
            app: typer.Typer = import_module(f"sandfleet.cli.{cmd_name}").app
            self.add_command(get_command(app), cmd_name)
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
