"""How a program of a language did: its compilation, its run, and the verdict of each case."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sandfleet_config.terminal import safe_text

if TYPE_CHECKING:
    from sandfleet_config.outcome import Outcome

ACCEPTED: Final = "ACCEPTED"
WRONG_ANSWER: Final = "WRONG_ANSWER"
COMPILE_ERROR: Final = "COMPILE_ERROR"
NOT_JUDGED: Final = "NOT_JUDGED"
"""The output is not known: it was cut, and the store does not have it."""


def describe_end(outcome: Outcome) -> str:
    """Return how a job ended, in one line: code with message, or exit."""
    return f"{outcome.code.value}: {outcome.message}" if outcome.message else outcome.to_summary().rstrip(": ")


@dataclass(frozen=True)
class ProgramResult:
    """A program that was compiled, if its language is, and run.

    `compile` is the outcome of the compile job, None if the language is not compiled. `run` is that
    of the program, None if it did not compile. `shared` says why both used one sandbox, if they
    did.
    """

    language: str
    compile: Outcome | None
    run: Outcome | None
    shared: str = ""

    @property
    def did_compile(self) -> bool:
        """Whether there is something to run."""
        return self.run is not None

    @property
    def is_ok(self) -> bool:
        """Whether it compiled, and exited 0 within its limits."""
        return self.run is not None and self.run.is_ok

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        return {
            "language": self.language,
            "did_compile": self.did_compile,
            "compile": self.compile.to_json() if self.compile else None,
            "run": self.run.to_json() if self.run else None,
            "shared": self.shared,
        }

    def __str__(self) -> str:
        """Say whether it compiled, then how the job ended that tells more, with its output."""
        if self.run is not None:
            return f"{self.language}: ran\n{self.run}"
        return f"{self.language}: did not compile\n{self.compile}"


@dataclass(frozen=True)
class CaseResult:
    """The verdict of one case.

    `verdict` is ``ACCEPTED``, ``WRONG_ANSWER``, ``COMPILE_ERROR``, ``NOT_JUDGED``, or the error code
    of the job, such as ``TIMEOUT``. `detail` says more, in one line.
    """

    name: str
    verdict: str
    detail: str
    outcome: Outcome

    @property
    def is_accepted(self) -> bool:
        """Whether the program gave the answer within its limits."""
        return self.verdict == ACCEPTED

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        return {
            "case": self.name,
            "verdict": self.verdict,
            "detail": self.detail,
            "outcome": self.outcome.to_json(),
        }


@dataclass(frozen=True)
class Judgement:
    """A program and its verdicts, in the order of the cases; none if it did not compile.

    `batch` is the name of the batch of its runs.
    """

    language: str
    compile: Outcome | None
    cases: tuple[CaseResult, ...]
    batch: str
    did_compile: bool = True
    shared: str = ""

    @property
    def is_accepted(self) -> bool:
        """Whether it compiled, and every case is accepted."""
        return self.did_compile and all(case.is_accepted for case in self.cases)

    @property
    def verdicts(self) -> dict[str, int]:
        """The number of cases with each verdict, the most frequent first."""
        return dict(Counter(case.verdict for case in self.cases).most_common())

    def to_json(self) -> dict[str, Any]:
        """Return the plain JSON form."""
        return {
            "language": self.language,
            "did_compile": self.did_compile,
            "is_accepted": self.is_accepted,
            "verdicts": self.verdicts,
            "compile": self.compile.to_json() if self.compile else None,
            "shared": self.shared,
            "batch": self.batch,
            "cases": [case.to_json() for case in self.cases],
        }

    def __str__(self) -> str:
        """Return one line a case, after a line with the sum."""
        if not self.did_compile:
            return f"{self.language}: did not compile\n{self.compile}"
        lines = [f"{case.name}: {case.verdict}{f' ({case.detail})' if case.detail else ''}" for case in self.cases]
        return "\n".join([safe_text(line) for line in (self.describe(), *lines)])

    def describe(self) -> str:
        """Return how many cases are accepted, and the verdicts of the others, in one line."""
        if not self.did_compile:
            return "did not compile"
        others = [f"{count} {verdict}" for verdict, count in self.verdicts.items() if verdict != ACCEPTED]
        accepted = self.verdicts.get(ACCEPTED, 0)
        return f"{accepted} of {len(self.cases)} cases accepted{': ' if others else ''}{', '.join(others)}"
