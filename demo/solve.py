"""The program of the night's batch. It runs in a sandbox, and each kind of case ends in its own way."""

from __future__ import annotations

import sys
import time
from pathlib import Path

LARGE_BYTES = 120 << 20
SLOW_STEPS = 3
STEP_SECONDS = 1


def find_answer(case: int, words: list[str]) -> str:
    """Return the longest of the words at which a walk with the step `case` comes by."""
    walk = words[case % len(words) :: case % 7 + 1]
    return max(walk, key=lambda word: (len(word), word))


def describe_step(step: int) -> str:
    """Return what a slow case prints on its way."""
    return f"step {step} of {SLOW_STEPS}"


def main(case: int, kind: str) -> None:
    """Solve one case; `kind` says how it goes wrong."""
    words = Path("words.txt").read_text().split()  # the file that came with the job
    if kind == "buggy":
        words = []  # a walk over no words: it divides by zero
    elif kind == "large":
        bytearray(LARGE_BYTES)  # more memory than the job may use at first
    elif kind == "stuck":
        while True:
            pass
    elif kind == "slow":
        for step in range(1, SLOW_STEPS + 1):
            print(describe_step(step), flush=True)  # --live shows it while the job runs
            time.sleep(STEP_SECONDS)
    print(find_answer(case, words))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
