"""The specs of a request: one, or one that compiles and one that runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sandfleet_config.bounds import MAX_ITEM_BYTES
from sandfleet_config.wire import new_spec

from sandfleet.execute.interfaces import RunResult
from sandfleet.execute.result import read_outcome
from sandfleet.languages.judging import find_shared_reason
from sandfleet.languages.program import Expansion, Program

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandfleet_config.execute import ExecuteRequest
    from sandfleet_config.outcome import SandboxResult
    from sandfleet_config.spec import SandboxSpec

    from sandfleet.languages.table import LanguageTable

INTERPRETERS: Final[Mapping[str, tuple[str, str, str]]] = {
    # language: program, the flag before code, the argument that reads code from stdin
    "python": ("python3", "-c", "-"),
    "shell": ("sh", "-c", "-s"),
    "sh": ("sh", "-c", "-s"),
    "bash": ("bash", "-c", "-s"),
}
"""Languages whose code is an argument: their jobs need no files, and run in the backend's image."""


def is_interpreted(language: str, table: LanguageTable) -> bool:
    """Whether code of the language is an argument: the operator's own row of the table outranks."""
    return language in INTERPRETERS and language not in table.changed


def new_command(language: str, code: str) -> tuple[list[str], str]:
    """Return the command for `code`, and its stdin: the code if it is too long for an argument."""
    program, flag, from_stdin = INTERPRETERS[language]
    if len(code.encode(errors="replace")) > MAX_ITEM_BYTES:
        return [program, from_stdin], code
    return [program, flag, code], ""


class Steps:
    """The jobs of one request, in order: `compile`, if there is one, then `new_run`."""

    def __init__(self, request: ExecuteRequest, image: str, fields: Mapping[str, object], table: LanguageTable) -> None:
        """`fields` are those of the run's spec, without image, command and input.

        Raises:
            SpecInvalid, SecurityViolation: the specs are faulty, or there is no such language.
        """
        self.compile: SandboxSpec | None = None
        self._expansion: Expansion | None = None
        if is_interpreted(request.language, table):
            command, stdin = new_command(request.language, request.code)
            self._run = new_spec({**fields, "image": image, "command": command, "stdin": stdin})
            return
        program = Program(request.code, request.language, spec={**fields, "image": image})
        self._expansion = expansion = Expansion(program, table)
        expansion.check()
        self._run = new_spec(expansion.run_spec(None))
        if expansion.is_compiled:
            self.compile = new_spec(expansion.compile_spec())

    @property
    def first(self) -> SandboxSpec:
        """The spec of the first job."""
        return self.compile or self._run

    def new_run(self, compiled: SandboxResult | None) -> SandboxSpec:
        """Return the spec of the run, after the compile job has exited 0.

        A runner that returns no outcome does not say what that job left: then the run's own sandbox
        compiles again. So does one whose files the store could not take.
        """
        expansion = self._expansion
        if compiled is None or expansion is None:
            return self._run
        outcome = read_outcome(compiled)
        if not isinstance(compiled, RunResult) or find_shared_reason(outcome):
            return expansion.shared_spec()
        return new_spec(expansion.run_spec(outcome))

    def failed_in_shared(self, result: SandboxResult) -> bool:
        """Whether a run that had to compile again in its own sandbox did not get to its program."""
        return self._expansion is not None and self._expansion.failed_in_shared(read_outcome(result))
