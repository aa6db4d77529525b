"""The specs of a submit, all checked first or read as they come, in portions for one round trip each."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from sandfleet_config.errors import RequestError, SecurityViolation, SpecInvalid, SpecTooLarge
from sandfleet_config.wire import MAX_REPORTED_FAULTS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from sandfleet.submit.encode import Desk, Draft, Spec

PORTION_JOBS = 256
PORTION_BYTES = 4 << 20
KEPT_BYTES = 64 << 20
"""So much of a list that was checked stays encoded until it is queued; what is beyond is encoded again."""
DRAFT_BYTES = 2048
"""About what a draft takes beside its text, the spec of a dict included."""
PORTION_SECONDS = 0.25
"""A source of specs that takes its time does not hold back those it gave before."""


class _Faults:
    """What is wrong with which specs of a submit: the first faults of each kind, and how many specs in all."""

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
        kept = self._violations if isinstance(error, SecurityViolation) else self._others
        for fault in faults[: MAX_REPORTED_FAULTS - len(kept)]:
            field = "" if fault["field"] == "spec" else f".{fault['field']}"
            kept.append({"field": f"specs[{index}]{field}", "message": fault["message"]})

    def new_error(self, summary: str) -> RequestError:
        """Return the error of all of them: a violation outranks the others, and is told first."""
        shown = [*self._violations, *self._others][:MAX_REPORTED_FAULTS]
        text = "; ".join(f"{fault['field']}: {fault['message']}" for fault in shown)
        more = f"; and {self._total - len(shown)} more" if self._total > len(shown) else ""
        kind: type[RequestError] = SpecTooLarge if self._kinds == {SpecTooLarge} else SpecInvalid
        if self._violations:
            kind = SecurityViolation
        return kind.of(f"{summary}: {text}{more}", errors=shown)


def check_all(desk: Desk, specs: Sequence[Spec]) -> list[Draft]:
    """Return the drafts of the first specs, up to `KEPT_BYTES`, if every spec may be queued: all may be more than memory.

    Raises:
        SandboxError: `SecurityViolation` where any spec is one, else `SpecInvalid` or `SpecTooLarge`; ``errors`` has the faults.
    """
    faults = _Faults()
    kept: list[Draft] = []
    room = KEPT_BYTES
    for index, spec in enumerate(specs):
        try:
            draft = desk.new_draft(spec, index)
        except RequestError as error:
            faults.add(index, error)
            room = 0
            continue
        room -= len(draft.text) + DRAFT_BYTES
        if room > 0:
            kept.append(draft)
    if faults.specs:
        raise faults.new_error(f"nothing was queued, {faults.specs} of {len(specs)} specs are faulty")
    return kept


def split_specs(desk: Desk, specs: Iterable[Spec], first: int = 0, kept: Sequence[Draft] = ()) -> Iterator[list[Draft]]:
    """Yield portions bounded in number, in bytes and in the time it took to get them.

    `first` is the first spec's index; `kept` are the drafts of the first specs, where they are known already.

    Raises:
        SandboxError: as `check_all`, for the first faulty spec, after all before it were yielded.
    """
    portion: list[Draft] = []
    size, started = 0, time.monotonic()
    for index, spec in enumerate(specs, first):
        try:
            draft = kept[index - first] if index - first < len(kept) else desk.new_draft(spec, index)
        except RequestError as error:
            if portion:
                yield portion
            faults = _Faults()
            faults.add(index, error)
            raise faults.new_error(f"stopped, the {index} specs before it were queued") from None
        portion.append(draft)
        size += len(draft.text)
        if len(portion) >= PORTION_JOBS or size >= PORTION_BYTES or time.monotonic() - started >= PORTION_SECONDS:
            yield portion
            portion, size, started = [], 0, time.monotonic()
    if portion:
        yield portion
