"""Logging where nobody may read it any more: a worker must be able to end all the same."""

from __future__ import annotations

import logging
import threading

LOG_SECONDS = 2.0


def log_in_time(
    log: logging.Logger, level: int, text: str, *args: object, action: str, error: BaseException | None = None
) -> None:
    """Log a line, but wait at most `LOG_SECONDS` for it; `action` is its ``event.action``.

    Where nobody reads stderr any more, its pipe is full: the write blocks, and with it each thread
    that logs. The line is lost then, and the caller goes on.
    """

    def write() -> None:
        log.log(level, text, *args, extra={"action": action}, exc_info=error)

    writer = threading.Thread(target=write, name="log", daemon=True)
    try:
        writer.start()
    except RuntimeError:  # no thread is left
        write()
    else:
        writer.join(LOG_SECONDS)


def is_log_blocked(timeout_seconds: float) -> bool:
    """Whether a write to the log holds the lock of its handler for longer than `timeout_seconds`."""
    for handler in logging.getLogger().handlers:
        if handler.lock is None:
            continue
        if not handler.lock.acquire(timeout=timeout_seconds):
            return True
        handler.lock.release()
    return False
