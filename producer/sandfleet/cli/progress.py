"""The progress of a wait, on stderr: a terminal's view is redrawn, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Final, Self

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from sandfleet_config.codes import Category
from sandfleet_config.units import format_count

from sandfleet.cli.rows import format_duration
from sandfleet.cli.show import note, safe_line, stderr_console

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType
    from sandfleet_config.codes import ErrorCode
    from sandfleet_config.outcome import Outcome

PLAIN_SECONDS: Final = 5.0
"""Least time between lines if stderr is no terminal."""
RATE_SECONDS: Final = 30.0
SAMPLE_SECONDS: Final = 1.0
SHOWN_FAILURES: Final = 4
REFRESHES_A_SECOND: Final = 4
SHORT_ID: Final = 8
SHOWN_NAME: Final = 24


class Rate:
    """Jobs per second over the last `RATE_SECONDS`; `clock` counts seconds.

    Those of the first second do not count: they may have ended before, and come all at once.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._samples: deque[tuple[float, int]] = deque()

    def count(self, done: int) -> None:
        """Note that so many jobs have ended by now."""
        now = self._clock()
        if now - (self._samples[-1][0] if self._samples else self._began) >= SAMPLE_SECONDS:
            self._samples.append((now, done))
            while len(self._samples) > 2 and now - self._samples[1][0] >= RATE_SECONDS:  # noqa: PLR2004  two give a rate
                self._samples.popleft()

    def measure(self, done: int) -> float:
        """Return the rate by now; 0.0 if it is not known yet."""
        if not self._samples:
            return 0.0
        began, before = self._samples[0]
        seconds = self._clock() - began
        return (done - before) / seconds if seconds >= SAMPLE_SECONDS else 0.0


class Progress:
    """Counts outcomes and shows them: by code, the rate, the time left, the last failures.

    `is_quiet` shows nothing.
    """

    def __init__(self, total: int, name: str = "jobs", *, is_quiet: bool = False) -> None:
        self.done = 0
        self._total = total
        self._name = name
        self._codes: Counter[ErrorCode] = Counter()
        self._failures: deque[str] = deque(maxlen=SHOWN_FAILURES)
        self._rate = Rate()
        self._printed_at = time.monotonic()
        self._is_quiet = is_quiet
        console = stderr_console()
        self._live: Live | None = None
        if console.is_terminal and not is_quiet:
            self._live = Live(
                console=console,
                get_renderable=self.render,
                refresh_per_second=REFRESHES_A_SECOND,
                redirect_stderr=False,
                redirect_stdout=False,
            )

    def __enter__(self) -> Self:
        """Begin to draw."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Draw for the last time."""
        if self._live is not None:
            self._live.stop()

    def count(self, outcome: Outcome) -> None:
        """Count one outcome."""
        self.done += 1
        self._codes[outcome.code] += 1
        if not outcome.is_ok:
            name = outcome.labels.get("name") or outcome.job_id[:SHORT_ID]
            self._failures.appendleft(f"{safe_line(name)} {outcome.code.value}")
        self._rate.count(self.done)
        if self._live is None and not self._is_quiet:
            is_last = self.done == self._total
            if is_last or time.monotonic() - self._printed_at >= PLAIN_SECONDS:
                self._printed_at = time.monotonic()
                note(self.describe() if is_last else f"{self.describe()}{self._describe_more()}")

    def print_line(self, line: str) -> None:
        """Print a line on stdout; above what is drawn, if both are the same terminal."""
        if self._live is not None and sys.stdout.isatty():
            self._live.console.print(Text(line), soft_wrap=True)
        else:
            print(line, flush=True)

    @property
    def left(self) -> int:
        """How many of the jobs have not ended."""
        return max(0, self._total - self.done)

    @property
    def not_ok(self) -> int:
        """How many of them are not OK."""
        return sum(count for code, count in self._codes.items() if code.category is not Category.OK)

    def describe(self) -> str:
        """Return how many jobs have ended, and how many not OK."""
        return f"{self.done} of {format_count(self._total, 'job')} ended, {self.not_ok} not OK"

    def _describe_more(self) -> str:
        failed = [f"{count} {code.value}" for code, count in self._sort_codes() if code.category is not Category.OK]
        told = f" ({', '.join(failed)})" if failed else ""
        return f"{told}{self._describe_rate(', ')}"

    def _sort_codes(self) -> list[tuple[ErrorCode, int]]:
        return sorted(self._codes.items(), key=lambda item: (item[0].category is not Category.OK, -item[1]))

    def _describe_rate(self, sign: str) -> str:
        rate, left = self._rate.measure(self.done), self.left
        if not rate:
            return ""
        rest = f"{sign}about {format_duration(left / rate)} left" if left else ""
        return f"{sign}{rate:.1f} a second{rest}"

    def render(self) -> RenderableType:
        """Return what is drawn now: four lines at most, cut at the terminal's width."""
        share = 100 * self.done // self._total if self._total else 100
        name = safe_line(self._name)
        head = Table.grid(padding=(0, 2), expand=False)
        head.add_row(
            Text(name if len(name) <= SHOWN_NAME else f"{name[: SHOWN_NAME - 3]}...", no_wrap=True),
            ProgressBar(total=max(1, self._total), completed=self.done, width=24),
            Text(f"{self.done:,} of {self._total:,}  {share}%", no_wrap=True),
        )
        lines: list[RenderableType] = [head]
        if rate := self._describe_rate("  "):
            lines.append(Text(rate.strip(), no_wrap=True, overflow="ellipsis"))
        if self._codes:
            counts = "   ".join(f"{code.value} {count:,}" for code, count in self._sort_codes())
            lines.append(Text(counts, no_wrap=True, overflow="ellipsis"))
        if self._failures:
            failed = "   ".join(self._failures)
            lines.append(Text(f"failed last: {failed}", no_wrap=True, overflow="ellipsis"))
        return Group(*lines)
