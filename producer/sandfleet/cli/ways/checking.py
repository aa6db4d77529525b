"""Check all jobs of a submit before the first one is queued."""

from __future__ import annotations

import gc
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import SandboxError
from sandfleet_config.wire import new_spec

from sandfleet.cli.ways.entry import Entry, Fault
from sandfleet.cli.ways.sources import CHAR_BYTES, Found
from sandfleet.submit.check import CheckedJob
from sandfleet.submit.encode import JobEncoder
from sandfleet.submit.encoders import ReadJobs

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

    from sandfleet_config.spec import SandboxSpec

    from sandfleet.cli.files import LineFiles
    from sandfleet.submit.encoders import Reader

REPORT_JOBS: Final = 1000
"""Progress is told after so many jobs."""


@contextmanager
def paused_collector() -> Generator[None]:
    """Pause the garbage collector: it would walk all specs again and again, and none is garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def check_entries(
    entries: Iterable[Entry | Fault],
    max_spec_bytes: int,
    files: LineFiles,
    on_progress: Callable[[int], object] = lambda _: None,
) -> tuple[list[SandboxSpec], list[Fault]]:
    """Return the specs of all entries, and every fault; `files` reads the local files they name.

    `on_progress` is called with the number of entries that were checked.
    """
    specs: list[SandboxSpec] = []
    faults: list[Fault] = []
    encoder = JobEncoder(None, max_spec_bytes)
    for number, entry in enumerate(entries, 1):
        if isinstance(entry, Fault):
            faults.append(entry)
        else:
            spec, said = _check(entry, files, encoder)
            if spec is None:
                faults += [Fault(entry.place, text) for text in said]
            else:
                specs.append(spec)
        if number % REPORT_JOBS == 0:
            on_progress(number)
    return specs, faults


def new_reader(found: Found, max_spec_bytes: int, files: LineFiles) -> Reader:
    """Return what reads and checks a part of the entries in any process; None if that names local files."""

    def read(start: int, stop: int) -> ReadJobs | None:
        entries = list(found.read(start, stop))
        sizes: list[int] = []
        for entry in entries:
            if isinstance(entry, Entry):
                if files.may_name_any(entry.fields):
                    return None
                sizes.append(entry.most_bytes)
        specs, faults = check_entries(entries, max_spec_bytes, files)
        told = [(fault.place, fault.text) for fault in faults]
        return ReadJobs(specs, told, max(sizes, default=0), sum(sizes) // CHAR_BYTES)

    return read


def _check(entry: Entry, files: LineFiles, encoder: JobEncoder) -> tuple[SandboxSpec | None, list[str]]:
    """Return the spec, or its faults."""
    found: list[str] = []
    try:
        resolved, local = files.resolve(entry.fields)
        found = [f"{ErrorCode.SPEC_INVALID.value}: {fault['field']}: {fault['message']}" for fault in local]
        spec = new_spec(resolved)
        if spec.files or entry.most_bytes > encoder.max_spec_bytes:  # else it cannot be too large
            encoder.encode(CheckedJob(spec, ""))
    except SandboxError as error:
        texts = [f"{fault['field']}: {fault['message']}" for fault in error.errors] or [error.message]
        return None, [*found, *(f"{error.code.value}: {text}" for text in texts)]
    return (None if found else spec), found
