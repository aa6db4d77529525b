"""``--array 0-999``: the indexes of an array of jobs, in the notation of Slurm."""

from __future__ import annotations

import re
from functools import partial
from typing import Final

from sandfleet.cli.ways.entry import Fault, Faults, InputInvalid

MAX_JOBS: Final = 1_000_000
INDEX: Final = "SANDFLEET_ARRAY_INDEX"
COUNT: Final = "SANDFLEET_ARRAY_COUNT"
"""Environment variables of each job: its index, and how many jobs the array has."""
_RANGE: Final = re.compile(r"(\d+)(?:-(\d+)(?::(\d+))?)?", re.ASCII)
_DIGITS: Final = 18
OPTION: Final = "--array"


def parse_array(text: str) -> list[int]:
    """Return the indexes of ``0-9``, ``0-99:10`` (a step) or ``1,3,7``, in the order of the text.

    Raises:
        InputInvalid: the text says something else, an index comes twice, or there are too many;
            tells the faults of all its parts.
    """
    if "%" in text:
        text, _, most = text.partition("%")
        raise _refuse(f"has no %: for at most {most or 'N'} jobs at once say --array {text} --at-most {most or 'N'}")
    found: dict[int, None] = {}
    faults = Faults()
    for part in text.split(","):
        indexes = faults.collect(partial(_parse_part, part))
        if indexes is None:
            continue
        if len(indexes) + len(found) > MAX_JOBS:
            faults += _refuse(f"has more than {MAX_JOBS} indexes").faults
            break
        if found and (twice := next((index for index in indexes if index in found), None)) is not None:
            faults += _refuse(f"has the index {twice} twice").faults
        found |= dict.fromkeys(indexes)
    if faults:
        raise faults.new_error()
    return list(found)


def _parse_part(part: str) -> range:
    said = _RANGE.fullmatch(part.strip())
    if said is None or any(len(number) > _DIGITS for number in said.groups("")):
        raise _refuse(f"{part!a} is no index: write 0-999, 0-999:10 or 1,3,7")
    first = int(said[1])
    last, step = int(said[2] or first), int(said[3] or 1)
    if last < first:
        raise _refuse(f"{part}: ends before it begins: did you mean {last}-{first}?")
    if not step:
        raise _refuse(f"{part}: a step must be at least 1")
    return range(first, last + 1, step)


def _refuse(said: str) -> InputInvalid:
    return InputInvalid(Fault(OPTION, said))
