"""The ``sandfleet`` command."""

from sandfleet.cli.commands import app, main

__all__ = ["app", "main"]
