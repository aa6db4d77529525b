"""Log set-up: one line a transition, for people or for programs (`sandfleet_config.logs`).

Called by ``main`` only.
"""

from __future__ import annotations

import logging
import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING

import celery.apps.worker
import celery.platforms
from celery import signals
from sandfleet_config.logs import say_at_once, set_up_handler

if TYPE_CHECKING:
    from sandfleet_config.settings import WorkerSettings

QUIET = {
    # Celery's own lines about tasks carry results, arguments and tracebacks: the worker logs
    # transitions itself.
    "celery.app.trace": logging.ERROR,
    "celery": logging.WARNING,
    "kombu": logging.WARNING,
    "amqp": logging.WARNING,
}


def set_up_logs(settings: WorkerSettings) -> None:
    """Send everything to stderr and keep Celery from setting up logging of its own."""
    name = "sandfleet-worker"
    set_up_handler(settings.log_format, settings.log_level, name, version(name), settings.host_name)
    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)
    if settings.log_format == "json":
        # Celery tells of a shutdown by a plain line, from its signal handler.
        celery.apps.worker.safe_say = _say  # type: ignore[attr-defined]
    # It announces, at every lost connection, a default of Celery 6.
    warnings.filterwarnings("ignore", category=PendingDeprecationWarning, module="celery")
    # Sandboxes are built by root; what runs in them is not.
    warnings.filterwarnings("ignore", category=celery.platforms.SecurityWarning)  # type: ignore[attr-defined]
    logging.captureWarnings(True)
    signals.setup_logging.connect(_leave_logging_alone, weak=False)


def _say(text: object, *_: object) -> None:
    say_at_once(str(text))


def _leave_logging_alone(**_: object) -> None:
    """Tell Celery by being connected that logging is set up."""
