"""Failures of commands that people can mend: each is one sentence and exit code 1."""

from __future__ import annotations


class PreflightFailed(Exception):
    """The worker must not take jobs; the message says why and what to do."""


class LocalFailed(Exception):
    """The stack cannot run; the message says why and what to do."""
