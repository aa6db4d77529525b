"""Log set-up: one line a transition, a sentence for people with keys for machines.

Called by ``main`` only.
"""

from __future__ import annotations

import logging
import time
import warnings
from typing import TYPE_CHECKING

import celery.platforms
from celery import signals

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


class LineFormatter(logging.Formatter):
    """``time level sentence action=... job_id=...``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self._second: tuple[int | None, str] = (None, "")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802  logging's
        """Return the local time as logging does by default; it is formatted once a second."""
        second, text = self._second
        if second != int(record.created):
            text = time.strftime(datefmt or self.default_time_format, time.localtime(record.created))
            self._second = int(record.created), text
        return f"{text},{int(record.msecs):03d}"

    def format(self, record: logging.LogRecord) -> str:
        """Append the keys that the record has."""
        line, facts = super().format(record), record.__dict__
        keys = [f"{key}={facts[key]}" for key in ("action", "job_id") if key in facts]
        head, newline, rest = line.partition("\n")
        return f"{' '.join([head, *keys])}{newline}{rest}"


def set_up_logs(settings: WorkerSettings) -> None:
    """Send everything to stderr and keep Celery from setting up logging of its own."""
    # No line shows these, and they are a fifth of its cost (Logging HOWTO, "Optimization").
    logging._srcfile = None  # noqa: SLF001
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    for name, level in QUIET.items():
        logging.getLogger(name).setLevel(level)
    # It announces, at every lost connection, a default of Celery 6.
    warnings.filterwarnings("ignore", category=PendingDeprecationWarning, module="celery")
    # Sandboxes are built by root; what runs in them is not.
    warnings.filterwarnings("ignore", category=celery.platforms.SecurityWarning)  # type: ignore[attr-defined]
    logging.captureWarnings(True)
    signals.setup_logging.connect(_leave_logging_alone, weak=False)


def _leave_logging_alone(**_: object) -> None:
    """Tell Celery by being connected that logging is set up."""
