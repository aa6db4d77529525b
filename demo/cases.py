"""The cases of the night's batch: their table, and how each must end."""

from __future__ import annotations

import csv
import random
from typing import TYPE_CHECKING, NamedTuple

from solve import SLOW_STEPS, describe_step, find_answer

if TYPE_CHECKING:
    from pathlib import Path

CODES = {"plain": "OK", "slow": "OK", "large": "OUT_OF_MEMORY", "buggy": "EXIT_NONZERO", "stuck": "TIMEOUT"}
"""The kinds of cases, and the code of each at first."""
SHARES = {"slow": 0.02, "large": 0.03, "buggy": 0.03, "stuck": 0.006}
"""Share of each kind in the batch; all other cases are plain."""
LEAST = {"slow": 6}
"""Least number of cases of a kind: the demo kills a worker while one of them runs."""
WORDS = 2500


class Case(NamedTuple):
    """One row of the table."""

    case: int
    kind: str


def new_cases(count: int) -> list[Case]:
    """Return the cases, mixed; the same ones each time."""
    kinds = [kind for kind, share in SHARES.items() for _ in range(max(LEAST.get(kind, 1), round(share * count)))]
    kinds += ["plain"] * (count - len(kinds))
    chance = random.Random(7)  # noqa: S311  no secret
    chance.shuffle(kinds)
    return [Case(number, kind) for number, kind in enumerate(kinds, 1)]


def write_files(folder: Path, cases: list[Case]) -> list[str]:
    """Write the table and the words; return the words."""
    chance = random.Random(1)  # noqa: S311
    words = ["".join(chance.choices("abcdefghijklmnop", k=chance.randrange(3, 18))) for _ in range(WORDS)]
    (folder / "words.txt").write_text("\n".join(words) + "\n")
    with (folder / "cases.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerows([Case._fields, *cases])
    return words


def count_kinds(cases: list[Case]) -> dict[str, int]:
    """Return how many cases there are of each kind."""
    return {kind: sum(case.kind == kind for case in cases) for kind in CODES}


def expect_output(case: Case, words: list[str]) -> str:
    """Return what a case prints if it ends well."""
    steps = range(1, SLOW_STEPS + 1) if case.kind == "slow" else ()
    return "".join(f"{line}\n" for line in (*map(describe_step, steps), find_answer(case.case, words)))
