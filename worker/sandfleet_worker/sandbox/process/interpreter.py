"""The interpreter that a prepared spare starts before its job comes, as a part of its plan."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandfleet_worker.sandbox.prepared.preparation import Preparation
    from sandfleet_worker.sandbox.process.init_job import InitJob


@dataclass(frozen=True)
class Interpreter:
    """How a sandbox prepares: init's message, and the bounds of what runs ahead.

    `runsc` tells the binary from another one at the same path. The preparation may take `seconds`
    and `memory_bytes`. `job` is the interpreter as init is told to start it, and `name` is
    ``IMAGE:NAME`` for people.
    """

    preparation: Preparation
    message: bytes = field(repr=False)
    runsc: tuple[int, ...]
    seconds: float
    memory_bytes: int
    job: InitJob = field(repr=False, compare=False)
    name: str = field(compare=False)
