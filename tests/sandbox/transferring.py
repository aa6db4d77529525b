"""Run jobs with files in and artifacts out; conftest.py offers the fixture."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.process.artifacts import ArtifactPattern, ArtifactRequest, Collection, CollectLimits
from sandfleet_worker.sandbox.process.cancellation import Cancellation
from sandfleet_worker.sandbox.process.inputs import InputFile
from sandfleet_worker.sandbox.process.packed_job import Transfer
from sandfleet_worker.sandbox.runner import RunscRunner
from sandfleet_worker.sandbox.start_hooks import NoHooks
from waiting import JOB_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from sandfleet_config.outcome import Outcome
    from sandfleet_config.settings import HostSettings


BOUNDS = CollectLimits()


class Sink:
    """Keeps what is collected; `on_write` is called before each part is kept."""

    def __init__(self, on_write: Callable[[], None] = lambda: None) -> None:
        self.files: dict[str, bytes] = {}
        self.modes: dict[str, int] = {}
        self._path, self._data, self._size, self._on_write = "", bytearray(), 0, on_write

    def begin(self, path: str, size: int, mode: int) -> None:
        self._path, self._data, self._size = path, bytearray(), size
        self.modes[path] = mode

    def write(self, chunk: bytes) -> None:
        self._on_write()
        self._data += chunk
        assert len(self._data) <= self._size

    def end(self) -> None:
        assert len(self._data) == self._size
        self.files[self._path] = bytes(self._data)

    def drop(self) -> None:
        del self.modes[self._path]


@dataclass
class Carried:
    """How a job ended, and what came of its artifacts."""

    outcome: Outcome
    collection: Collection | None
    files: dict[str, bytes]
    modes: dict[str, int]

    @property
    def lost(self) -> str:
        assert self.collection is not None
        assert [file.path for file in self.collection.files] == list(self.files)
        return self.collection.lost


class Carry(Protocol):
    """Run a command with `files` in and `artifacts` out, in image `busybox` or `image=`."""

    def __call__(
        self,
        *command: str,
        files: Sequence[InputFile] = (),
        artifacts: Sequence[str | ArtifactPattern] | None = None,
        limits: CollectLimits = BOUNDS,
        sink: Sink | None = None,
        stdin: InputFile | None = None,
        cancel: Cancellation | None = None,
        hooks: NoHooks | None = None,
        **fields: Any,
    ) -> Carried: ...


def new_file(path: str, data: bytes = b"", mode: int = 0o644) -> InputFile:
    return InputFile(path, len(data), lambda: io.BytesIO(data), mode)


def new_carry(runner: RunscRunner) -> Carry:
    from conftest import wait_spare  # it imports this module

    def carry(
        *command: str,
        files: Sequence[InputFile] = (),
        artifacts: Sequence[str | ArtifactPattern] | None = None,
        limits: CollectLimits = BOUNDS,
        sink: Sink | None = None,
        stdin: InputFile | None = None,
        cancel: Cancellation | None = None,
        hooks: NoHooks | None = None,
        **fields: Any,
    ) -> Carried:
        spec = SandboxSpec.model_validate({"image": "busybox", "command": command, "timeout": JOB_SECONDS, **fields})
        admitted, sink = admit(spec, runner.config), sink or Sink()
        patterns = [one if isinstance(one, ArtifactPattern) else ArtifactPattern(one) for one in artifacts or ()]
        request = None if artifacts is None else ArtifactRequest(patterns, sink, limits)
        start = wait_spare(runner, admitted)
        ending = runner.execute(
            admitted, cancel=cancel, hooks=hooks or NoHooks(), transfer=Transfer(files, request, stdin)
        )
        assert ending.start == start
        assert ending.runtime.warm == (start != "cold")
        return Carried(ending.to_outcome(job_id="test"), ending.collection, sink.files, sink.modes)

    return carry


@pytest.fixture
def carry(runner: RunscRunner) -> Carry:
    return new_carry(runner)


@pytest.fixture
def carry_as_root(host: HostSettings) -> Iterator[Carry]:
    """Return `carry` on a host whose policy allows jobs of uid 0."""
    allowed = host.model_copy(update={"policy": host.policy.model_copy(update={"allow_root": True})})
    with RunscRunner(allowed) as runner:
        yield new_carry(runner)
