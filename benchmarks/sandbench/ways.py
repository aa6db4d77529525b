"""The interfaces of a way to run a program; each way has a module of its own."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandbench.programs import Program

PREPARED = "whole queue, prepared"
BARE, STOCK, RUNNER, COLD, WARM = "bare runsc", "stock Celery", "runner alone", "whole queue, cold", "whole queue, warm"
TEMENOS, TEMENOS_EXEC, TAKO = "temenos, a box a job", "temenos, exec in one box", "Tako VM"


@dataclass(frozen=True)
class Cpu:
    """CPU seconds of some jobs together; None if it is not measured separately."""

    sandboxes: float | None = None
    worker: float | None = None
    redis: float | None = None
    producer: float | None = None
    total: float = 0.0


@dataclass(frozen=True)
class Run:
    """When each job ended, in seconds from the first request, in order; and what they used."""

    ends: list[float]
    cpu: Cpu | None = None
    memory_peaks_mib: tuple[float, ...] = ()

    @property
    def per_second(self) -> float:
        """Jobs a second, from the first request to the last end."""
        return len(self.ends) / self.ends[-1]


class SingleWay(Protocol):
    """Run programs one by one, each in a sandbox of its own. A program that fails raises."""

    name: str

    def run(self, program: Program) -> None:
        """Run one program and return when it has ended."""
        ...


class Way(SingleWay, Protocol):
    """Run many programs at a time, too."""

    def run_many(self, program: Program, jobs: int, at_once: int) -> Run:
        """Request `jobs` at once, of which `at_once` run at a time, and wait for all of them."""
        ...


def run_in_threads(run: Callable[[], object], jobs: int, at_once: int) -> Run:
    """Call `run` so many times, `at_once` at the same time."""
    began = time.perf_counter()

    def call(_: int) -> float:
        run()
        return time.perf_counter() - began

    with ThreadPoolExecutor(at_once) as threads:
        return Run(sorted(threads.map(call, range(jobs))))
