"""The progress of a submit on stderr: jobs checked, bytes uploaded, jobs queued, and how fast."""

from __future__ import annotations

import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from sandfleet_config.units import format_bytes

from sandfleet.cli.show import note, stderr_console

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

PLAIN_SECONDS: Final = 2.0
"""Where stderr is no terminal, a submit that took longer gets one line at its end."""
REFRESH_SECONDS: Final = 0.1


class Report(Protocol):
    """Takes how much of a stage is done."""

    def __call__(self, done: int, /) -> None:
        """Show it."""


class Stages:
    """Shows the stages of one submit; `is_quiet` shows nothing."""

    def __init__(self, *, is_quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._is_quiet = is_quiet
        self._clock = clock
        self._began = clock()
        self._ended: list[str] = []

    @contextmanager
    def stage(self, verb: str, done: str, total: int, unit: str = "jobs") -> Generator[Report]:
        """Yield the counter of a stage: ``checking``, ``checked`` of `total` jobs or bytes."""
        began, counted = self._clock(), 0
        draw = self._new_drawing(verb, total, unit)

        def report(count: int) -> None:
            nonlocal counted
            counted = count
            draw(count, self._clock() - began)

        try:
            yield report
        finally:
            draw(-1, 0.0)
            self._ended.append(f"{done} {_describe(counted, self._clock() - began, unit)}")

    def sum_up(self) -> None:
        """Print one line with all stages, where there is no terminal and it took a while."""
        if not self._is_quiet and not sys.stderr.isatty() and self._clock() - self._began >= PLAIN_SECONDS:
            note(", ".join(self._ended))

    def _new_drawing(self, verb: str, total: int, unit: str) -> Callable[[int, float], None]:
        """Return what draws one line again and again; -1 wipes it away."""
        if self._is_quiet or not sys.stderr.isatty():
            return lambda _done, _seconds: None
        console, drawn = stderr_console(), -REFRESH_SECONDS

        def draw(done: int, seconds: float) -> None:
            nonlocal drawn
            if done < 0:
                text = ""
            elif seconds - drawn < REFRESH_SECONDS and done < total:
                return
            else:
                drawn = seconds
                share = f" of {_count(total, unit)}" if total else ""
                text = f"{verb} {_count(done, unit)}{share}{_rate(done, seconds, unit)}"[: console.width - 1]
            sys.stderr.write(f"\r\x1b[2K{text}")
            sys.stderr.flush()

        return draw


def _describe(done: int, seconds: float, unit: str) -> str:
    return f"{_count(done, unit)} in {seconds:.1f} s{_rate(done, seconds, unit)}"


def _count(number: int, unit: str) -> str:
    return format_bytes(number) if unit == "bytes" else f"{number:,} {unit}"


def _rate(done: int, seconds: float, unit: str) -> str:
    if seconds <= 0 or not done:
        return ""
    a_second = int(done / seconds)
    return f" ({format_bytes(a_second) if unit == 'bytes' else f'{a_second:,}'} a second)"
