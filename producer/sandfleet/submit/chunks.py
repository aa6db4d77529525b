"""Split the specs of a submit into chunks, one call to Redis each."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from sandfleet_config.errors import RequestError, SecurityViolation, SpecInvalid, SpecTooLarge
from sandfleet_config.units import format_count
from sandfleet_config.wire import MAX_REPORTED_FAULTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence

    from sandfleet.submit.check import Spec
    from sandfleet.submit.encode import EncodedRequest

CHUNK_JOBS = 256
CHUNK_BYTES = 4 << 20
CHUNK_SECONDS = 0.25
"""A chunk is sent after so long, however few specs its source has given."""
CACHED_BYTES = 64 << 20
"""How much of a checked list stays encoded until it is queued; the rest is encoded twice."""
JOB_OVERHEAD_BYTES = 2048
"""Memory of an encoded request besides its text, about, its spec included."""
HANDED_OVER_JOBS = 4 * CHUNK_JOBS
"""Specs of an asynchronous source that go to another thread at once: enough to overlap chunks."""

_Item = TypeVar("_Item")


class _Faults:
    """The faults of a submit: the first of each kind, and the number of faulty specs."""

    def __init__(self) -> None:
        self.specs = 0
        self._total = 0
        self._kinds: set[type[RequestError]] = set()
        self._violations: list[dict[str, str]] = []
        self._others: list[dict[str, str]] = []

    def add(self, index: int, error: RequestError) -> None:
        faults = error.errors or [{"field": "spec", "message": error.message}]
        self.specs += 1
        self._total += len(faults)
        self._kinds.add(type(error))
        reported = self._violations if isinstance(error, SecurityViolation) else self._others
        for fault in faults[: MAX_REPORTED_FAULTS - len(reported)]:
            field = "" if fault["field"] == "spec" else f".{fault['field']}"
            reported.append({"field": f"specs[{index}]{field}", "message": fault["message"]})

    def new_error(self, summary: str) -> RequestError:
        """Return one error for all faults: a violation outranks the others and comes first."""
        shown = [*self._violations, *self._others][:MAX_REPORTED_FAULTS]
        text = "; ".join(f"{fault['field']}: {fault['message']}" for fault in shown)
        more = f"; and {self._total - len(shown)} more" if self._total > len(shown) else ""
        kind: type[RequestError] = SpecTooLarge if self._kinds == {SpecTooLarge} else SpecInvalid
        if self._violations:
            kind = SecurityViolation
        return kind.of(f"{summary}: {text}{more}", errors=shown)


def encode_all(encode: Callable[[Spec, int], EncodedRequest], specs: Sequence[Spec]) -> list[EncodedRequest]:
    """Check and encode every spec; return the first ones encoded, up to `CACHED_BYTES`.

    Raises:
        SandboxError: `SecurityViolation` if any spec is one, else `SpecInvalid` or `SpecTooLarge`;
            ``errors`` has the faults.
    """
    faults = _Faults()
    cached: list[EncodedRequest] = []
    free_bytes = CACHED_BYTES
    for index, spec in enumerate(specs):
        try:
            request = encode(spec, index)
        except RequestError as error:
            faults.add(index, error)
            free_bytes = 0
            continue
        free_bytes -= len(request.text) + JOB_OVERHEAD_BYTES
        if free_bytes > 0:
            cached.append(request)
    if faults.specs:
        raise faults.new_error(
            f"nothing was queued, {faults.specs} of {format_count(len(specs), 'spec is', 'specs are')} faulty"
        )
    return cached


def split_specs(
    encode: Callable[[_Item, int], EncodedRequest],
    specs: Iterable[_Item],
    first: int = 0,
    cached: Sequence[EncodedRequest] = (),
) -> Iterator[list[EncodedRequest]]:
    """Check and encode specs as they come; yield chunks bounded in number, bytes and time.

    `first` is the index of the first spec; `cached` are the first requests, if they are encoded
    already.

    Raises:
        SandboxError: as `encode_all`, for the first faulty spec, after all before it were yielded.
    """
    chunk: list[EncodedRequest] = []
    size, started = 0, time.monotonic()
    for index, spec in enumerate(specs, first):
        try:
            request = cached[index - first] if index - first < len(cached) else encode(spec, index)
        except RequestError as error:
            if chunk:
                yield chunk
            faults = _Faults()
            faults.add(index, error)
            queued = format_count(index, "spec before it was", "specs before it were")
            raise faults.new_error(f"stopped, the {queued} queued") from None
        chunk.append(request)
        size += len(request.text)
        if len(chunk) >= CHUNK_JOBS or size >= CHUNK_BYTES or time.monotonic() - started >= CHUNK_SECONDS:
            yield chunk
            chunk, size, started = [], 0, time.monotonic()
    if chunk:
        yield chunk


async def gather_specs(specs: AsyncIterable[Spec]) -> AsyncIterator[list[Spec]]:
    """Read an asynchronous source; yield lists bounded in number and time."""
    some: list[Spec] = []
    started = time.monotonic()
    async for spec in specs:
        some.append(spec)
        if len(some) >= HANDED_OVER_JOBS or time.monotonic() - started >= CHUNK_SECONDS:
            yield some
            some, started = [], time.monotonic()
    if some:
        yield some
