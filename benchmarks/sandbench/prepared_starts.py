"""Measure jobs whose interpreter is up ahead of them, on each release of runsc that the set-up gives.

Beside them, in turn: the same jobs in warm sandboxes, and by bare runsc.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet import Fleet, Settings

from sandbench.bare_runsc import BareRunsc
from sandbench.figures import PreparedStarts
from sandbench.processes import PYTHON as INTERPRETER
from sandbench.programs import DATA, DATA_IMAGE, PRINT, PYTHON, TRUE
from sandbench.queue_way import WAIT_SECONDS, Kind, QueueWay, check_ended, worker
from sandbench.ways import PREPARED, WARM

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sandbench.counts import Counts
    from sandbench.programs import Program
    from sandbench.testbed import Testbed
    from sandbench.ways import Run, Way

GVISOR = Path("/usr/local/lib/sandfleet/gvisor")
BINARIES = (GVISOR / "debian" / "runsc", GVISOR / "bin" / "runsc")
"""The releases of the set-up: Debian's, and the one it builds."""
AT_ONCE = 4
RATE_ROUNDS = 2
MS = 1000
NAME = "sci"
FIRST_SECONDS = 10.0
"""Pause after the first job of a program: the pool learns what is wanted, and boots it."""
SETTLE_SECONDS = {TRUE: 0.3, PRINT: 0.8, PYTHON: 0.8, DATA: 3.0}
"""Pause between two single jobs: the next spare boots, at no cost to the next way's time."""
WARM_KIND = {"SANDFLEET_PREPARED__START": "off"}
PREPARED_KIND = {
    "SANDFLEET_PREPARED__START": "python",
    "SANDFLEET_PREPARED__IMPORTS": f"{DATA_IMAGE}:{NAME}=numpy+pandas",
    "SANDFLEET_PREPARED__BUDGET_BYTES": "2GiB",
}


@dataclass
class _CountingWay(QueueWay):
    """Runs jobs through a fleet, and remembers how each single one started."""

    starts: list[str | None] = field(default_factory=list)

    def run(self, program: Program) -> None:
        job = self.fleet.submit(self._name(program).spec)
        self.starts.append(check_ended(job.outcome(timeout=WAIT_SECONDS)).start)

    def run_many(self, program: Program, jobs: int, at_once: int) -> Run:
        return super().run_many(self._name(program), jobs, at_once)

    def _name(self, program: Program) -> Program:
        is_named = self.name == PREPARED and program is DATA
        return dataclasses.replace(program, prepared=NAME) if is_named else program


def measure_prepared(testbed: Testbed, counts: Counts, absent: dict[str, str]) -> list[PreparedStarts]:
    """Measure each release of runsc; `absent` gets what could not be measured, and why."""
    programs = [TRUE, PRINT, PYTHON]
    if problem := _build_data_image(testbed):
        absent[DATA.name] = problem
    else:
        programs.append(DATA)
    rootfs = {program.image: testbed.unpack(program.image) for program in programs}
    found: list[PreparedStarts] = []
    for binary in BINARIES:
        if not binary.exists():
            absent[f"prepared starts on {binary}"] = "the set-up has not put it there (make setup)"
            continue
        with _ways(testbed, rootfs, binary) as ways:
            found += [_measure(program, _read_release(binary), ways, counts) for program in programs]
    return found


def _build_data_image(testbed: Testbed) -> str:
    """Build the image with numpy and pandas if it is not there; return why it cannot be, or ""."""
    command = [INTERPRETER, "-m", "sandfleet_worker.cli", "images"]
    environment = os.environ | {"SANDFLEET_IMAGES__ROOT": str(testbed.images)}
    if subprocess.run([*command, "inspect", DATA_IMAGE], env=environment, capture_output=True, check=False).returncode:
        built = subprocess.run(
            [*command, "build", DATA_IMAGE], env=environment, capture_output=True, text=True, check=False
        )
        if built.returncode:
            told = built.stderr.strip().splitlines() or [f"exit code {built.returncode}"]
            return f"the image {DATA_IMAGE} cannot be built here: {told[-1]}"
    return ""


def _read_release(binary: Path) -> str:
    told = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    return told.split()[2]


@contextlib.contextmanager
def _ways(testbed: Testbed, rootfs: dict[str, Path], binary: Path) -> Iterator[list[Way]]:
    with contextlib.ExitStack() as stack:
        ways: list[Way] = [BareRunsc(testbed.new_folder("bare"), rootfs, binary=str(binary))]
        for name, settings in ((WARM, WARM_KIND), (PREPARED, PREPARED_KIND)):
            server = stack.enter_context(testbed.serve_redis(testbed.new_name("redis")))
            kind = Kind(settings={"SANDFLEET_RUNSC__PATH": str(binary), **settings})
            process = stack.enter_context(worker(testbed, server, testbed.new_name(name[-4:]), AT_ONCE, kind))
            fleet = stack.enter_context(Fleet(Settings.model_validate({"redis_url": server.url})))
            ways.append(_CountingWay(name, fleet, server, [process]))
        yield ways


def _measure(program: Program, release: str, every: Sequence[Way], counts: Counts) -> PreparedStarts:
    """Run each way in turn, so that disturbances of the machine hit all of them."""
    is_data, is_python = program is DATA, program is not TRUE
    ways = [way for way in every if is_python or way.name != PREPARED]
    for way in ways:
        way.run(program)
    time.sleep(FIRST_SECONDS)
    counting = [way for way in ways if isinstance(way, _CountingWay) and way.name == PREPARED]
    for way in counting:
        way.starts.clear()
    found: dict[str, list[float]] = {way.name: [] for way in ways}
    for _ in range(counts.data_rounds if is_data else counts.prepared_rounds):
        for way in ways:
            began = time.perf_counter()
            way.run(program)
            found[way.name].append((time.perf_counter() - began) * MS)
            time.sleep(SETTLE_SECONDS[program])
    starts = [start for way in counting for start in way.starts]
    runs = _run_batches(program, ways, counts.data_jobs if is_data else counts.prepared_jobs)
    return PreparedStarts(
        release=release,
        program=program.name,
        ms=found,
        at_once=AT_ONCE,
        per_second={name: [run.per_second for run in every_round] for name, every_round in runs.items()},
        prepared_share=starts.count("prepared") / len(starts) if starts else None,
        outside_ms=_find_outside_ms(runs[WARM]),
    )


def _run_batches(program: Program, ways: Sequence[Way], jobs: int) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {way.name: [] for way in ways}
    for _ in range(RATE_ROUNDS):
        for way in ways:
            runs[way.name].append(way.run_many(program, jobs, AT_ONCE))
            time.sleep(SETTLE_SECONDS[program])
    return runs


def _find_outside_ms(runs: Sequence[Run]) -> float | None:
    """Return the CPU of worker, Redis and producer for one job of all `runs`."""
    parts = [(run.cpu.worker, run.cpu.redis, run.cpu.producer) for run in runs if run.cpu is not None]
    seconds = sum(part or 0.0 for of_run in parts for part in of_run)
    return seconds / sum(len(run.ends) for run in runs) * MS if parts else None
