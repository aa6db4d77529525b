"""Processes that check and encode the jobs of one large submit, each of them its chunks.

The parent reads their work in the order of the jobs, and does by itself what a dead one owes. So
the result is that of one process, whatever happens to the others. With one core there are none.
"""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple, Self, TypeAlias

import msgspec
from sandfleet_config.bounds import MAX_NAME_CHARS
from sandfleet_config.errors import RequestError
from sandfleet_config.spec import MAX_KEY_CHARS

from sandfleet.channel.job_arguments import PackedJobs
from sandfleet.submit.child import Child
from sandfleet.submit.chunks import CACHED_BYTES, CHUNK_JOBS, JOB_OVERHEAD_BYTES, split_specs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from sandfleet_config.spec import SandboxSpec

    from sandfleet.submit.check import CheckedJob, JobChecker
    from sandfleet.submit.child import Outlet
    from sandfleet.submit.encode import EncodedRequest, JobEncoder

LEAST_JOBS: Final = 8 * CHUNK_JOBS
"""Jobs for which encoders pay; below, processes cost more than they do."""
MOST_PROCESSES: Final = 4
"""At so many, Redis and the parent are what limits."""

ENVELOPE_BYTES: Final = 6 * (MAX_KEY_CHARS + MAX_NAME_CHARS) + 256
"""A request has at most so many bytes besides its spec: batch and key, escaped, and their names."""

Faults: TypeAlias = list[tuple[str, str]]
"""Place and text of each fault."""


class ReadJobs(NamedTuple):
    """Checked specs of some jobs, or their faults.

    `most_bytes` is an upper bound of the largest encoded spec, `chars` what all were read from.
    """

    specs: list[SandboxSpec]
    faults: Faults
    most_bytes: int
    chars: int


Reader: TypeAlias = "Callable[[int, int], ReadJobs | None]"
"""Reads and checks the jobs from one index to another; None if only the parent can."""


def count_processes() -> int:
    """Return how many other processes are to encode jobs; 0 if this one is.

    A fork copies one thread only: with others here, locks that they hold would stay locked. The
    kernel lists threads of libraries, too. Without /proc there is no telling.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if cores < 2 or signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:  # noqa: PLR2004
        return 0
    try:
        threads = len(list(Path("/proc/self/task").iterdir()))
    except OSError:
        return 0
    return min(cores, MOST_PROCESSES) if threads == 1 else 0


class Checked(NamedTuple):
    """The result of the check of a chunk: its faults, or the needs of its jobs.

    `memory_bytes` is the most that one asks for. `is_parents` says that the parent has to check and
    queue all jobs by itself: they need the store, or other jobs, or are refused in the parent's words.
    """

    faults: Faults
    memory_bytes: int = 0
    is_parents: bool = False


class ChunkEncoder:
    """Checks and encodes chunks of jobs, in whatever process."""

    def __init__(self, read: Reader, total: int, checker: JobChecker, encoder: JobEncoder, queue: str) -> None:
        self.total = total
        self._read = read
        self._checker = checker
        self._encoder = encoder
        self._queue = queue
        self._sender = os.getpid()
        self._kept: dict[int, list[CheckedJob]] = {}
        self._free_bytes = CACHED_BYTES

    @property
    def chunks(self) -> range:
        """The numbers of all chunks."""
        return range(-(-self.total // CHUNK_JOBS))

    def check(self, chunk: int) -> Checked:
        """Check a chunk; keep its specs while there is room."""
        found = self._read(*self._find_range(chunk))
        if found is None:
            return Checked([], is_parents=True)
        if found.faults:
            return Checked(found.faults)
        try:
            jobs = self._check_jobs(found.specs, chunk)
            if found.most_bytes + ENVELOPE_BYTES > self._encoder.max_spec_bytes:
                for job in jobs:
                    self._encoder.encode(job)
        except RequestError:
            return Checked([], is_parents=True)
        self._free_bytes -= found.chars + JOB_OVERHEAD_BYTES * len(jobs)
        if self._free_bytes > 0:
            self._kept[chunk] = jobs
        asked = max(max(spec.resources.memory_bytes, spec.retry_with.memory_bytes) for spec in found.specs)
        return Checked([], asked, any(map(_needs_parent, found.specs)))

    def encode(self, chunk: int, done: int = 0) -> Iterator[PackedJobs]:
        """Yield the jobs of a checked chunk, without the first ones that are `done`."""
        jobs = self._kept.pop(chunk, None)
        if jobs is None:
            found = self._read(*self._find_range(chunk))
            jobs = self._check_jobs(found.specs if found else [], chunk)
        for requests in split_specs(self._encode, jobs[done:], chunk * CHUNK_JOBS + done):
            yield PackedJobs.of(self._encoder.name(requests), self._queue, self._sender)

    def _find_range(self, chunk: int) -> tuple[int, int]:
        return chunk * CHUNK_JOBS, min((chunk + 1) * CHUNK_JOBS, self.total)

    def _check_jobs(self, specs: Sequence[SandboxSpec], chunk: int) -> list[CheckedJob]:
        return [self._checker.check(spec, index) for index, spec in enumerate(specs, chunk * CHUNK_JOBS)]

    def _encode(self, job: CheckedJob, index: int) -> EncodedRequest:
        del index
        return self._encoder.encode(job)


class Encoders:
    """The processes of one submit, for ``with``: first `check`, then `encode`."""

    def __init__(self, work: ChunkEncoder, count: int, find_largest_budget: Callable[[], int | None]) -> None:
        self._work = work
        self._count = count
        self._find_largest_budget = find_largest_budget
        self._children: list[Child] = []
        self._dead: set[int] = set()

    def __len__(self) -> int:
        """Return the number of jobs."""
        return self._work.total

    def __enter__(self) -> Self:
        """Start the processes; those that cannot be started count as dead."""
        try:
            self._start()
        except BaseException:  # Ctrl-C: nobody else would collect them
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the processes."""
        self._close()

    def _start(self) -> None:
        """Start the processes. Ctrl-C waits meanwhile: it would lose one that nobody knows yet."""
        if not self._count:  # as on a system that cannot fork, which has no such masks either
            return
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for number in range(self._count):
                self._children.append(Child(partial(self._serve, number), self._children))
        except OSError:
            self._dead |= set(range(len(self._children), self._count))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _close(self) -> None:
        for child in self._children:
            child.close()

    def _serve(self, number: int, outlet: Outlet) -> None:
        """Do what process `number` does."""
        own = self._work.chunks[number :: self._count]
        for chunk in own:
            outlet.send(_encode(self._work.check(chunk)))
        if outlet.wait():
            for chunk in own:
                for jobs in self._work.encode(chunk):
                    outlet.send(_encode(jobs))

    def check(self, on_progress: Callable[[int], object] = lambda _: None) -> Faults | None:
        """Check all jobs; return every fault in their order, or None if `encode` cannot be used.

        Then the caller has to check and queue them in its own process.
        """
        faults: Faults = []
        asked = 0
        for chunk in self._work.chunks:
            frame = self._read(chunk)
            found = self._work.check(chunk) if frame is None else _decode_check(frame)
            if found.is_parents:
                return None
            faults += found.faults
            asked = max(asked, found.memory_bytes)
            on_progress(min((chunk + 1) * CHUNK_JOBS, len(self)))
        if asked and not faults and (budget := self._find_largest_budget()) is not None and asked > budget:
            return None  # with the fault of each job
        return faults

    def encode(self) -> Iterator[PackedJobs]:
        """Yield all jobs in their order, some hundred at once."""
        for child in self._children:
            child.go_on()
        for chunk in self._work.chunks:
            done, jobs = 0, min(CHUNK_JOBS, len(self) - chunk * CHUNK_JOBS)
            while done < jobs and (frame := self._read(chunk)) is not None:
                some = _decode(frame)
                done += len(some.ids)
                yield some
            if done < jobs:
                yield from self._work.encode(chunk, done)

    def _read(self, chunk: int) -> bytes | None:
        """Return the next frame of the process that has the chunk, None if there is none, or it is dead."""
        if not self._count:
            return None
        number = chunk % self._count
        frame = None if number in self._dead else self._children[number].read()
        if frame is None:
            self._dead.add(number)
        return frame


def _needs_parent(spec: SandboxSpec) -> bool:
    """Whether a job needs what only the parent has: the store, or what Redis says of other jobs."""
    return bool(spec.files or spec.stdin.sha256 or spec.after)


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(PackedJobs).decode
_decode_check: Final = msgspec.msgpack.Decoder(Checked).decode
