"""A job's files from its spec and the store, ready to enter its sandbox."""

from __future__ import annotations

import io
import time
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, BinaryIO, Final

from sandfleet_config.errors import SpecInvalid, StoreUnavailable
from sandfleet_config.store.protocol import ObjectDamaged, ObjectMissing, StoreError

from sandfleet_worker.files.kept import list_objects
from sandfleet_worker.sandbox.process.inputs import InputFile

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandfleet_config.files import FileSpec
    from sandfleet_config.spec import SandboxSpec

    from sandfleet_worker.files.cache import ObjectCache
    from sandfleet_worker.files.kept import KeptInputs
    from sandfleet_worker.sandbox.process.cancellation import Cancellation
    from sandfleet_worker.sandbox.start_hooks import StartHooks

FIRST_PAUSE_SECONDS: Final = 0.5
MAX_PAUSE_SECONDS: Final = 10.0
LONGEST_SECONDS: Final = 3000.0
"""The longest time for the objects of a job; a job that waits for an hour counts as hung."""
LONGEST_AGAIN_SECONDS: Final = 60.0
"""The same for an object fetched again: its sandbox is up, and unsupervised meanwhile."""


@dataclass(frozen=True)
class JobInputs:
    """The files of one job, and its stdin if that is an object of the store."""

    files: Sequence[InputFile] = ()
    stdin: InputFile | None = None


NO_INPUTS: Final = JobInputs()


class InputFetcher:
    """Makes `JobInputs` of objects from `cache`.

    The store keeps the objects (`kept`) for later runs of the job. Waits up to `deadline_seconds`
    for a store that is down.
    """

    def __init__(self, cache: ObjectCache, kept: KeptInputs, deadline_seconds: float) -> None:
        self._cache, self._kept, self._deadline_seconds = cache, kept, deadline_seconds

    def prepare(self, spec: SandboxSpec, cancel: Cancellation, hooks: StartHooks) -> JobInputs:
        """Have all objects of `spec` on this host; the job waits meanwhile.

        Raises:
            StoreUnavailable: the store was down all the time or is too slow, or an object is
            missing or
                damaged.
            HostResources: the objects do not fit on this host.
            SandboxError: the job was cancelled meanwhile.
        """
        wanted = list_objects(spec)
        if not spec.files and not wanted:
            return NO_INPUTS
        sizes = {sha256: size for sha256 in wanted if (size := self._cache.find(sha256)) is not None}
        missing = [sha256 for sha256 in wanted if sha256 not in sizes]
        with hooks.waiting("its files", is_remote=True) if missing else nullcontext():
            deadline = time.monotonic() + self._deadline_seconds
            pause = partial(_pause, cancel, time.monotonic(), LONGEST_SECONDS)
            # First, as each upload does: see `sandfleet_config.store.references`.
            self._kept.keep(spec, pause)
            sizes |= {sha256: self._fetch(sha256, pause, deadline) for sha256 in missing}
        _check_sizes(spec, sizes)
        open_object = partial(self._open, cancel)
        return JobInputs(
            files=[_new_input(file, sizes, open_object) for file in spec.files],
            stdin=_new_stdin(spec.stdin.sha256, sizes, open_object),
        )

    def _open(self, cancel: Cancellation, sha256: str) -> BinaryIO:
        """Open an object that `prepare` has fetched; fetch it again if it was evicted since."""
        try:
            return self._cache.open(sha256, partial(_pause, cancel, time.monotonic(), LONGEST_AGAIN_SECONDS))
        except StoreError as error:
            raise StoreUnavailable.of(error.message) from error

    def _fetch(self, sha256: str, pause: Callable[[float], None], deadline: float) -> int:
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            try:
                return self._cache.fetch(sha256, pause)
            except (ObjectMissing, ObjectDamaged) as error:
                raise StoreUnavailable.of(f"{error.message} (the job needs it)") from error
            except StoreError as error:
                if time.monotonic() + pause_seconds > deadline:
                    text = f"a file of the job could not be fetched for {self._deadline_seconds:g} s: {error.message}"
                    raise StoreUnavailable.of(text) from error
            pause(pause_seconds)
            pause_seconds = min(MAX_PAUSE_SECONDS, pause_seconds * 2)


def _pause(cancel: Cancellation, began: float, longest_seconds: float, seconds: float) -> None:
    """Wait for so many seconds, in a wait that `began` some time ago.

    Raises:
        SandboxError: the job was cancelled, or the whole wait takes longer than `longest_seconds`.
    """
    if seconds:
        cancel.wait(seconds)
    cancel.raise_if_set()
    if time.monotonic() - began > longest_seconds:
        text = f"the job's files did not come from the store within {longest_seconds:g} s: its network is too slow for them"
        raise StoreUnavailable.of(text)


def _check_sizes(spec: SandboxSpec, sizes: dict[str, int]) -> None:
    """Refuse a spec that gives another size than the object has.

    Raises:
        SpecInvalid: names each file.
    """
    told = [(file.path, file.sha256, file.size) for file in spec.files] + [
        ("stdin", spec.stdin.sha256, spec.stdin.size)
    ]
    faults = [
        {
            "field": "stdin" if path == "stdin" else "files",
            "message": f"{path}: the size is {sizes[sha256]} bytes, not {size}",
        }
        for path, sha256, size in told
        if sha256 and size is not None and size != sizes[sha256]
    ]
    if faults:
        raise SpecInvalid.of("; ".join(f"{fault['field']}: {fault['message']}" for fault in faults), errors=faults)


def _new_stdin(sha256: str | None, sizes: dict[str, int], open_object: Callable[[str], BinaryIO]) -> InputFile | None:
    return InputFile("stdin", sizes[sha256], partial(open_object, sha256)) if sha256 else None


def _new_input(file: FileSpec, sizes: dict[str, int], open_object: Callable[[str], BinaryIO]) -> InputFile:
    mode = int(file.mode, 8)
    if file.sha256 is not None:
        return InputFile(file.path, sizes[file.sha256], partial(open_object, file.sha256), mode)
    data = file.content.to_bytes() if file.content else b""
    return InputFile(file.path, len(data), partial(io.BytesIO, data), mode)
