"""Ended runs as a busy fleet has them, made from a seed, and stored without Redis."""

from __future__ import annotations

import random
import time
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from sandfleet_config.codes import ErrorCode
from sandfleet_config.ended_run import EndedRun, Try
from sandfleet_web.history.rows import NewRow
from sandfleet_web.history.schema import open_for_writing
from sandfleet_web.history.store import HistoryStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHUNK: Final = 5000
DAY_MS: Final = 86_400_000
CODES: Final = (
    *[(ErrorCode.OK, "", 0)] * 82,
    *[(ErrorCode.EXIT_NONZERO, "the program exited 2", 2)] * 8,
    *[(ErrorCode.EXIT_NONZERO, "the program exited 1", 1)] * 3,
    *[(ErrorCode.TIMEOUT, "the program ran longer than its timeout of 30 s", None)] * 3,
    *[(ErrorCode.OUT_OF_MEMORY, "the job needed more than its 536870912 bytes of memory", None)] * 2,
    (ErrorCode.WORKER_LOST, "worker host-07.{} died with the job, and no attempt is left (3 of 3)", None),
    (ErrorCode.IMAGE_NOT_FOUND, "there is no image x{} on any host", None),
)


def new_runs(count: int, seed: int = 1, *, last_ms: int | None = None, span_ms: int = 2 * DAY_MS) -> Iterator[NewRow]:
    """Yield so many ended runs, oldest first, the last of which ends at `last_ms` (now)."""
    chance = random.Random(seed)  # noqa: S311  no secret
    last = round(time.time() * 1000) if last_ms is None else last_ms
    for number in range(1, count + 1):
        code, message, exit_code = chance.choice(CODES)
        ended = last - span_ms + span_ms * number // count
        ran = chance.random() * 30
        host = f"host-{chance.randrange(40):02}"
        attempts = 1 if chance.random() < 0.98 else 2
        started = ended / 1000 - ran
        run = EndedRun(
            job_id=f"{chance.getrandbits(64):016x}-{number:012d}",
            run=1,
            code=code.value,
            category=code.category.value,
            batch=f"batch-{number * 200 // count:03}" if chance.random() < 0.9 else "",
            queue=chance.choice(("rl", "rl", "rl", "nightly", "sandfleet")),
            host=host,
            image=chance.choice(("python", "python", "busybox", "node", "judge:2026.1")),
            image_digest=f"sha256:{'8c' * 32}",
            spec_sha256=f"{chance.getrandbits(64):016x}",
            labels={"suite": f"s{chance.randrange(10)}", "case": f"c{number}"},
            line=f"python python3 /work/run.py --case {number} --seed {chance.randrange(10**6)}",
            message=message.format(number),
            exit_code=exit_code,
            start=chance.choice(("warm", "cold")),
            submitted=started - chance.random() * 60,
            started=started,
            steps={
                "queued": round(chance.random() * 60, 3),
                "image": 0.001,
                "create": 0.02,
                "run": round(ran, 3),
                "cleanup": 0.003,
            },
            cpu_seconds=round(ran * 0.9, 3),
            memory_peak_bytes=chance.randrange(1 << 29),
            memory_bytes=1 << 29,
            attempts=attempts,
            tries=tuple(Try(host, f"{host}.412", code.value, started, ended / 1000, slot=at) for at in range(attempts)),
        )
        yield NewRow(number, ended, run)


def store_runs(file: Path, runs: Iterator[NewRow]) -> None:
    """Store them in a file, as the writer would."""
    with closing(HistoryStore(open_for_writing(file))) as store:
        position = store.read_position()
        chunk: list[NewRow] = []
        for row in runs:
            chunk.append(row)
            if len(chunk) == CHUNK:
                position = store.add(replace(position, number=row.number), chunk)
                chunk = []
        if chunk:
            store.add(replace(position, number=chunk[-1].number), chunk)
