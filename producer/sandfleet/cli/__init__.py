"""The ``sandfleet`` command."""

from sandfleet.cli.main import app, main

__all__ = ["app", "main"]
