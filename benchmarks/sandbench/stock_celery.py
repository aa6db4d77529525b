"""Stock Celery prefork whose task calls `runsc run` by `subprocess`, as Celery's manual suggests.

This module is both the producer's side and, as `celery -A sandbench.stock_celery`, the worker's.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.result import ResultSet
from sandfleet_config.celery import celery_url

from sandbench.bare_runsc import BareRunsc
from sandbench.meter import Meter
from sandbench.processes import PYTHON, Process, find_children, read_cpu_seconds, running
from sandbench.programs import PROGRAMS
from sandbench.queue_way import PACKAGE_FOLDER
from sandbench.ways import STOCK, Cpu, Run

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandbench.programs import Program
    from sandbench.testbed import Server, Testbed

URL, FOLDER, ROOTFS = "SANDBENCH_URL", "SANDBENCH_FOLDER", "SANDBENCH_ROOTFS"
TASK = "sandbench.run"
READY = " ready."
WAIT_SECONDS = 300.0


def new_app(url: str) -> Celery:
    """Build the app.

    Late acks and a prefetch of one are what long jobs need; all else is Celery's default.
    """
    made = Celery("stock", broker=url, backend=url, set_as_current=False)
    made.conf.update(task_acks_late=True, worker_prefetch_multiplier=1, task_ignore_result=False)
    made.task(name=TASK)(run)
    return made


def run(name: str) -> None:
    """Run the program of that name."""
    _bare().run(PROGRAMS[name])


@cache
def _bare() -> BareRunsc:
    rootfs = {image: Path(folder) for image, folder in json.loads(os.environ[ROOTFS]).items()}
    return BareRunsc(Path(os.environ[FOLDER]), rootfs)


if URL in os.environ:  # this is the worker
    app = new_app(os.environ[URL])


@dataclass
class StockWay:
    """Run jobs through stock Celery."""

    app: Celery
    server: Server
    meter: Meter
    process: Process
    name: str = STOCK

    def run(self, program: Program) -> None:
        """Send, and wait for the result."""
        self._send(program).get(timeout=WAIT_SECONDS)

    def run_many(self, program: Program, jobs: int, at_once: int) -> Run:  # noqa: ARG002  the worker's own
        """Send one by one, and take the results as they come."""
        before = self._read_cpu()
        began = time.perf_counter()
        ends = []
        results = ResultSet([self._send(program) for _ in range(jobs)], app=self.app)
        for _, record in results.iter_native(timeout=WAIT_SECONDS):
            if record["status"] != "SUCCESS":
                raise RuntimeError(f"a stock job did not end well: {record['result']}")
            ends.append(time.perf_counter() - began)
        after = self._read_cpu()
        inside, worker, redis, producer = (end - start for start, end in zip(before, after, strict=True))
        return Run(ends, Cpu(inside - worker, worker, redis, producer, total=inside + redis + producer))

    def _send(self, program: Program) -> Any:
        return self.app.tasks[TASK].delay(program.name)

    def _read_cpu(self) -> tuple[float, float, float, float]:
        """Return the CPU of: the worker with its sandboxes, Celery, Redis, this process."""
        own = sum(map(read_cpu_seconds, (self.process.pid, *find_children(self.process.pid))))
        return self.meter.read_cpu_seconds(), own, self.server.read_cpu_seconds(), time.process_time()


@contextlib.contextmanager
def stock_way(testbed: Testbed, rootfs: dict[str, Path], concurrency: int) -> Iterator[StockWay]:
    """Run a Redis and one prefork worker."""
    with contextlib.ExitStack() as stack:
        name = testbed.new_name("stock")
        server = stack.enter_context(testbed.serve_redis(f"{name}-redis"))
        meter = stack.enter_context(Meter(testbed.cgroup_parent, name))
        url = celery_url(server.url)
        environment = {
            **os.environ,
            "PYTHONPATH": str(PACKAGE_FOLDER),
            URL: url,
            FOLDER: str(testbed.new_folder("bundles")),
            ROOTFS: json.dumps({image: str(folder) for image, folder in rootfs.items()}),
        }
        command = [PYTHON, "-m", "celery", "-A", "sandbench.stock_celery", "worker", "--pool=prefork"]
        command += [f"--concurrency={concurrency}", "--without-mingle", "--without-gossip", "--loglevel=INFO"]
        log_path = testbed.disk / f"{name}.log"
        process = stack.enter_context(running(meter.wrap(command), log_path, environment))
        process.wait_for_line(READY)
        made = stack.enter_context(contextlib.closing(new_app(url)))
        yield StockWay(made, server, meter, process)
