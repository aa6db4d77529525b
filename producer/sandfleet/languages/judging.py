"""`Judging`: one program against its cases, without waiting for anything; and single verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from sandfleet.languages.comparison import find_difference
from sandfleet.languages.result import (
    ACCEPTED,
    COMPILE_ERROR,
    NOT_JUDGED,
    WRONG_ANSWER,
    CaseResult,
    Judgement,
    ProgramResult,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from sandfleet_config.outcome import Outcome, StoredObject
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.languages.cases import Case
    from sandfleet.languages.program import Expansion

    Read = Callable[[StoredObject], bytes]

SLACK_BYTES: Final = 64 * 1024
"""So many bytes more than the answer has are kept of an output. What is longer is no answer."""
MAX_INLINE_BYTES: Final = 512 * 1024
"""Of a longer answer, the output goes through the store."""


def find_shared_reason(compiled: Outcome | None) -> str:
    """Return why runs cannot use what the compile job left; empty if they can."""
    return (compiled.artifacts_lost or "") if compiled is not None and compiled.is_ok else ""


def new_run(expansion: Expansion, compiled: Outcome | None, stdin: bytes) -> dict[str, Any] | SandboxSpec:
    """Return the spec of one run after the compile job, if there was one, has ended ``OK``."""
    if find_shared_reason(compiled):
        return expansion.shared_spec(stdin)
    return expansion.run_spec(compiled, stdin)


def new_result(expansion: Expansion, compiled: Outcome | None, run: Outcome | None) -> ProgramResult:
    """Return the result of a program; `run` is None if it did not compile."""
    shared = find_shared_reason(compiled)
    if shared and run is not None and expansion.failed_in_shared(run):
        return ProgramResult(expansion.name, run, None, shared)
    return ProgramResult(expansion.name, compiled, run, shared)


class Judging:
    """One program against its cases: their specs, then the verdicts of their outcomes."""

    def __init__(
        self, expansion: Expansion, compiled: Outcome | None, cases: Sequence[Case], batch: str, *, is_exact: bool
    ) -> None:
        self.batch = batch
        self.job_ids: list[str] = []
        """The jobs that are queued, in the order of the cases."""
        self._expansion, self._compiled, self._cases, self._is_exact = expansion, compiled, cases, is_exact
        self._shared = find_shared_reason(compiled)
        self._case_of: dict[str, Case] = {}
        self._results: dict[str, CaseResult] = {}

    def new_specs(self) -> Iterator[SandboxSpec | dict[str, Any]]:
        """Yield the spec of each case.

        Raises:
            OSError, SpecInvalid: its input cannot be read, or the spec is faulty.
        """
        return map(self._new_spec, self._cases)

    def _new_spec(self, case: Case) -> dict[str, Any]:
        stdin = case.read_stdin()
        if self._shared:
            spec = dict(self._expansion.shared_spec(stdin, case.name))
        else:
            spec = self._expansion.run_spec(self._compiled, stdin, case.name)
        kept = (case.answer_bytes // SLACK_BYTES + 2) * SLACK_BYTES
        needed = {"store": True} if kept > MAX_INLINE_BYTES else {"max_bytes": kept}
        own = {name: value for name, value in self._expansion.output.items() if name != "keep"}
        return {**spec, "output": {**needed, **own}}

    def note_queued(self, job_ids: Iterable[str]) -> None:
        """Note the jobs of the next cases."""
        for job_id in job_ids:
            self._case_of[job_id] = self._cases[len(self.job_ids)]
            self.job_ids.append(job_id)

    def add(self, outcome: Outcome, read: Read) -> CaseResult:
        """Return the verdict of a case; `read` gets the bytes of an output in the store.

        Raises:
            OSError: the answer cannot be read.
            FileMissing, FleetUnavailable: as `Fleet.download`.
        """
        case = self._case_of[outcome.job_id]
        verdict, detail = self._decide(case, outcome, read)
        self._results[case.name] = result = CaseResult(case.name, verdict, detail, outcome)
        return result

    def _decide(self, case: Case, outcome: Outcome, read: Read) -> tuple[str, str]:
        if self._shared and self._expansion.failed_in_shared(outcome):
            return COMPILE_ERROR, "did not compile again in the sandbox of this case"
        if not outcome.is_ok:
            return outcome.code.value, outcome.message or outcome.to_summary().rstrip(": ")
        stream, answer = outcome.stdout, case.read_answer()
        if stream.truncated and stream.stored is None:
            if stream.total_bytes > len(answer) + SLACK_BYTES:
                return WRONG_ANSWER, f"{len(answer)} bytes are expected, got {stream.total_bytes}"
            return NOT_JUDGED, f"its output is not known: {outcome.message or 'it was cut'}"
        output = stream.bytes if stream.stored is None else read(stream.stored)
        difference = find_difference(output, answer, is_exact=self._is_exact)
        return (WRONG_ANSWER, difference) if difference else (ACCEPTED, "")

    def finish(self) -> Judgement:
        """Return the judgement, with the results in the order of the cases."""
        found = tuple(self._results[case.name] for case in self._cases)
        return Judgement(self._expansion.name, self._compiled, found, self.batch, shared=self._shared)


def new_failed_judgement(expansion: Expansion, compiled: Outcome, batch: str) -> Judgement:
    """Return the judgement of a program that did not compile."""
    return Judgement(expansion.name, compiled, (), batch, did_compile=False)
