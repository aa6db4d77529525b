"""A plan of prepared spares, for tests without a host."""

from __future__ import annotations

from pathlib import Path

from sandfleet_worker.sandbox.prepared.preparation import Preparation
from sandfleet_worker.sandbox.process.init_job import InitJob
from sandfleet_worker.sandbox.process.interpreter import Interpreter
from sandfleet_worker.sandbox.process.plan import Plan
from sandfleet_worker.sandbox.process.runsc import RunscBinary

JOB = InitJob(candidates=["python3"], argv=["python3"], envp=[], uid=1, gid=1)
INTERPRETER = Interpreter(Preparation("sci", ("numpy",)), b"message", (1,), 30.0, 1 << 28, JOB, "python:sci")
PLAN = Plan(RunscBinary("/runsc", "1"), "systrap", Path("/image.erofs"), (1, 2, 3, 4, 5), (), INTERPRETER)
