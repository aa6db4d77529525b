"""How workers, `sandfleet-web` and Flower write their logs: a line for people, or JSON for programs.

The JSON form has the names of the Elastic Common Schema, and an allow-list of fields: what is not
on it is left out. Neither form shows env, stdin, output or a spec.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Literal

from sandfleet_config.failure_kind import fingerprint_failure
from sandfleet_config.outcome import Outcome
from sandfleet_config.redaction import hide_in_text
from sandfleet_config.terminal import safe_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import TracebackType

LogFormat = Literal["line", "json"]
ECS_VERSION: Final = "8.11.0"
MAX_MESSAGE_CHARS: Final = 4000
MAX_TEXT_CHARS: Final = 512
MAX_LABELS_CHARS: Final = 1024
"""Labels of a job in one line, all together."""
MAX_TRACE_CHARS: Final = 16_000
FIELDS: Final = {
    "action": "event.action",
    "user": "user.name",
    **{
        name: f"sandfleet.{name}"
        for name in (
            *("job_id", "batch", "queue", "attempt", "claim", "slot", "image", "owner", "reason"),
            *("webhook_id", "endpoint", "target", "count", "result"),
        )
    },
}
"""The attributes of a record (`extra`) that are written, and their names in JSON.

``outcome``, an `Outcome`, is written as `describe_outcome` says.
"""


class LineFormatter(logging.Formatter):
    """``time level sentence action=... job_id=...``."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s")
        self._mark = ""
        self._second: tuple[int | None, str] = (None, "")

    def name_process(self, number: int) -> None:
        """Put the number of one of several processes before each sentence."""
        self._mark = f"[{number}] "

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
        if self._mark:
            start = f"{record.asctime} {record.levelname} "
            line = f"{start}{self._mark}{line[len(start) :]}"
        keys = [f"{key}={facts[key]}" for key in ("action", "job_id") if key in facts]
        head, newline, rest = line.partition("\n")
        return safe_text(f"{' '.join([head, *keys])}{newline}{rest}")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  logging's
        """Return time, level and sentence; the sentence has at most `MAX_MESSAGE_CHARS`."""
        record.message = record.message[:MAX_MESSAGE_CHARS]
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802  logging's
        """Return the trace of an error, with what looks secret as ``***``."""
        return hide_in_text(super().formatException(ei))


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII; texts have no control characters, also when decoded."""

    def __init__(self, service: str, version: str, host: str = "") -> None:
        super().__init__()
        self._fixed: dict[str, object] = {
            "ecs.version": ECS_VERSION,
            "service.name": service,
            "service.version": version,
            "host.name": host or socket.gethostname(),
            "process.pid": os.getpid(),
        }
        self._second: tuple[int | None, str] = (None, "")
        self._encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

    def name_process(self, number: int) -> None:
        """Say in each object which of several processes this is."""
        self._fixed["sandfleet.process"] = number

    def format(self, record: logging.LogRecord) -> str:
        """Return the object of `record`."""
        facts = record.__dict__
        fields: dict[str, object] = {
            "@timestamp": self._format_time(record),
            "log.level": record.levelname.lower(),
            "message": safe_text(record.getMessage()[:MAX_MESSAGE_CHARS]),
            **self._fixed,
            "log.logger": record.name,
        }
        outcome = facts.get("outcome")
        if isinstance(outcome, Outcome):
            fields |= describe_outcome(outcome)
        for name, key in FIELDS.items():
            if (value := facts.get(name)) is not None:
                fields[key] = _clean(value)
        if record.exc_info:
            fields |= self._describe_error(record)
        return self._encode(fields)

    def _format_time(self, record: logging.LogRecord) -> str:
        """Return the time in UTC with milliseconds; it is formatted once a second."""
        second, text = self._second
        if second != int(record.created):
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            self._second = int(record.created), text
        return f"{text}.{int(record.msecs):03d}Z"

    def _describe_error(self, record: logging.LogRecord) -> Iterator[tuple[str, str]]:
        assert record.exc_info is not None
        kind, error, _ = record.exc_info
        if kind is not None:
            yield "error.type", kind.__name__
            yield "error.message", safe_text(hide_in_text(str(error)[:MAX_TEXT_CHARS]))
        trace = hide_in_text(self.formatException(record.exc_info))[-MAX_TRACE_CHARS:]
        yield "error.stack_trace", safe_text(trace)


STEPS: Final = tuple(
    (step, f"sandfleet.{step}_seconds") for step in ("queued", "image", "create", "run", "collect", "cleanup")
)


def describe_outcome(outcome: Outcome) -> dict[str, object]:
    """Return the facts of an end that are logged: code, exit, fingerprint, times; no output."""
    code, timing = outcome.code, outcome.timing
    found: dict[str, object] = {"sandfleet.code": code.value, "sandfleet.category": code.category.value}
    for key, value in (
        ("sandfleet.exit_code", outcome.exit_code),
        ("sandfleet.signal", outcome.signal),
        ("sandfleet.fingerprint", fingerprint_failure(code.value, outcome.message) or None),
        ("sandfleet.batch", outcome.batch),
        ("sandfleet.labels", describe_labels(outcome.labels)),
        ("sandfleet.run", outcome.run),
        ("sandfleet.attempts", len(outcome.attempts)),
        ("sandfleet.image_digest", outcome.image_digest),
        ("sandfleet.warm", None if outcome.duration is None else outcome.runtime.warm),
        ("sandfleet.start", outcome.start),
        ("sandfleet.cpu_seconds", outcome.usage.cpu_seconds),
        ("sandfleet.memory_peak_bytes", outcome.usage.memory_peak_bytes),
    ):
        if value is not None:
            found[key] = _clean(value)
    for step, key in STEPS:
        if (seconds := getattr(timing, step)) is not None:
            found[key] = _clean(seconds)
    return found


def describe_labels(labels: Mapping[str, str]) -> str | None:
    """Return labels as one text, ``suite=s7 seed=1``; None of none. Those beyond 1 KB are left out."""
    if not labels:
        return None
    text = " ".join(f"{key}={value}" for key, value in labels.items())
    return text if len(text) <= MAX_LABELS_CHARS else f"{text[:MAX_LABELS_CHARS]}..."


def _clean(value: Any) -> object:
    """Return a number as it is, anything else as a short text that is safe to print."""
    if isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return round(value, 6) if abs(value) < 1e15 else str(value)  # noqa: PLR2004  JSON has no NaN and no infinity
    return safe_text(str(value)[:MAX_LABELS_CHARS])


def new_formatter(form: LogFormat, service: str, version: str, host: str = "") -> logging.Formatter:
    """Return the formatter of ``SANDFLEET_LOG_FORMAT``."""
    return LineFormatter() if form == "line" else JsonFormatter(service, version, host)


def set_up_handler(form: LogFormat, level: str, service: str, version: str, host: str = "") -> None:
    """Send all logs to stderr in the form `form`. Called by ``main`` only."""
    # No line shows these, and they are a fifth of its cost (Logging HOWTO, "Optimization").
    logging._srcfile = None  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    handler = logging.StreamHandler()
    handler.setFormatter(new_formatter(form, service, version, host))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    if form == "json":
        sys.excepthook = _log_uncaught
        threading.excepthook = _log_uncaught_of_thread


def name_process(number: int) -> None:
    """Say in each line of this process which of several it is."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler.formatter, LineFormatter | JsonFormatter):
            handler.formatter.name_process(number)


def is_json() -> bool:
    """Whether this process writes its logs as JSON, so that nothing else may go to stderr."""
    return any(isinstance(handler.formatter, JsonFormatter) for handler in logging.getLogger().handlers)


def say_at_once(text: str) -> None:
    """Write a JSON line from a signal handler, past the buffers of `logging`, which may be in use."""
    record = logging.LogRecord("sandfleet", logging.INFO, "", 0, "%s", (text.strip(),), None)
    for handler in logging.getLogger().handlers:
        os.write(2, f"{handler.format(record)}\n".encode())


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    extra = {"action": "crashed"}
    logging.getLogger("sandfleet").critical("an error that nobody handled", exc_info=(kind, error, trace), extra=extra)


def _log_uncaught_of_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
