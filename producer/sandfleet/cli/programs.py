"""``sandfleet run --lang``: compile and run a program, or judge it by cases."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import typer
from sandfleet_config.codes import Category, ErrorCode
from sandfleet_config.errors import RequestError
from sandfleet_config.units import format_bytes

from sandfleet.cli.artifacts import SaveOptions, Saver
from sandfleet.cli.exits import COMPILE_ERROR, INTERRUPTED, OUR_FAILURE, SOME_NOT_OK, TERMINATED, exit_code
from sandfleet.cli.hints import describe_refusal
from sandfleet.cli.progress import Progress
from sandfleet.cli.rows import Columns, Form, format_duration, print_rows
from sandfleet.cli.run import (
    RunFiles,
    Terminated,
    finish_artifacts,
    note_wait,
    print_outcome,
    read_files,
    sigterm_raises,
)
from sandfleet.cli.show import explain, note
from sandfleet.languages.cases import read_cases
from sandfleet.languages.program import Program

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sandfleet_config.outcome import Outcome

    from sandfleet.cli.run_options import RunOptions
    from sandfleet.fleet import Fleet
    from sandfleet.languages.result import CaseResult, Judgement, ProgramResult

NOT_FOR_PROGRAMS: Final = "is not for --lang: a program is more than one job"
NOT_FOR_CASES: Final = "is not for --cases: each case has its own input and output"


@dataclass(frozen=True)
class ProgramLine:
    """The command line of ``sandfleet run --lang``, checked."""

    program: Program
    local: RunFiles
    queue: str | None = None
    cases: str | None = None
    is_exact: bool = False
    form: Form = Form.TABLE
    is_json: bool = False
    image: str = ""


def read_line(line: RunOptions, local: RunFiles, queue: str | None) -> ProgramLine:
    """Return the command line.

    Raises:
        typer.BadParameter: options exclude each other, or no source file is named.
        OSError, SpecInvalid: the source file cannot be read, or an option is faulty.
    """
    source, *args = line.command or [""]
    if not source:
        raise typer.BadParameter("needs a source file: sandfleet run --lang cpp prog.cpp", param_hint="--lang")
    _refuse(NOT_FOR_PROGRAMS, {"--idempotency-key": line.key})
    _refuse("is not for --lang: the output is printed at the end", {"--live": line.live})
    if line.cases is None:
        _refuse("is for --cases only", {"--exact": line.exact, "--output": line.form != Form.TABLE.value})
    else:
        inputs = {
            "--stdin": line.stdin,
            "--stdin-file": line.stdin_file,
            "--save": line.save,
            "--artifact": line.artifact,
        }
        _refuse(NOT_FOR_CASES, inputs)
    try:
        form = Form(line.form)
    except ValueError:
        raise typer.BadParameter(f"must be one of {', '.join(Form)}", param_hint="--output") from None
    fields = {"image": line.image or "", **line.read_fields()}
    program = Program.read(source, line.lang, args=args, compile_timeout=line.compile_timeout, spec=fields)
    return ProgramLine(
        program, local, queue, line.cases, is_exact=line.exact, form=form, is_json=line.is_json, image=line.image or ""
    )


def _refuse(why: str, options: Mapping[str, object]) -> None:
    for name, value in options.items():
        if value:
            raise typer.BadParameter(why, param_hint=name)


def run_program(fleet: Fleet, line: ProgramLine) -> int:
    """Do what the command line says; return the exit code. Ctrl-C and SIGTERM cancel the jobs."""
    try:
        program = _add_files(fleet, line)
        with sigterm_raises(), note_wait(fleet):
            if line.cases is not None:
                return _judge(fleet, program, line)
            result = fleet.run_program(program, queue=line.queue)
    except RequestError as error:
        note(describe_refusal(error))
        return OUR_FAILURE
    except KeyboardInterrupt:
        note("CANCELLED: the jobs of this program are cancelled")
        return INTERRUPTED
    except Terminated:
        note("CANCELLED: the jobs of this program are cancelled")
        return TERMINATED
    return _finish(fleet, result, line)


def _add_files(fleet: Fleet, line: ProgramLine) -> Program:
    spec = {**line.program.spec, **read_files(fleet, line.local)}
    old = line.program
    return Program(old.code, old.language, old.name, old.args, old.compile_timeout, spec)


def _finish(fleet: Fleet, result: ProgramResult, line: ProgramLine) -> int:
    """Print a result of one run; return the exit code."""
    if line.is_json:
        print(json.dumps(result.to_json(), indent=2))
    if result.run is None:
        assert result.compile is not None
        return tell_compile(result.compile, is_json=line.is_json)
    _tell_compiler(result.compile, result.shared)
    if not line.is_json:
        print_outcome(fleet, result.run, line.image or fleet.languages.find(line.program.language)[1].image)
    saver = None if line.local.save is None else Saver(fleet, SaveOptions(line.local.save))
    is_complete = finish_artifacts(fleet.artifacts_of(result.run), saver)
    return exit_code(result.run) or (0 if is_complete else OUR_FAILURE)


def tell_compile(outcome: Outcome, *, is_json: bool = False) -> int:
    """Print the compiler's output, then that the program did not compile; return the exit code."""
    if not is_json:
        _print_compiler(outcome)
    if outcome.code.category in {Category.PROGRAM, Category.LIMIT}:
        is_exit = outcome.code is ErrorCode.EXIT_NONZERO
        note(f"did not compile: {f'the compiler exited {outcome.exit_code}' if is_exit else explain(outcome)}")
        return COMPILE_ERROR
    note(f"the compile job could not run: {explain(outcome)}")
    return INTERRUPTED if outcome.code.category is Category.CONTROL else OUR_FAILURE


def _tell_compiler(outcome: Outcome | None, shared: str) -> None:
    """Print the warnings of a compiler, and that the program is compiled again before each run."""
    if outcome is not None:
        _print_compiler(outcome)
    if shared:
        note(f"compiled again in the sandbox of each run, since the store does not have the program: {shared}")


def _print_compiler(outcome: Outcome) -> None:
    """Write the compiler's output on stderr: stdout is the program's."""
    sys.stderr.flush()
    for stream in (outcome.stdout, outcome.stderr):
        sys.stderr.buffer.write(stream.bytes)
        if stream.truncated:
            sys.stderr.buffer.write(b"\n")
            sys.stderr.buffer.flush()
            note(
                f"the compiler's output was cut: {format_bytes(len(stream.bytes))} of {format_bytes(stream.total_bytes)}"
            )
    sys.stderr.buffer.flush()


def _judge(fleet: Fleet, program: Program, line: ProgramLine) -> int:
    """Judge a program by the cases of a folder, print the verdicts; return the exit code."""
    cases = read_cases(line.cases or "")
    with Progress(len(cases), "cases", is_quiet=not sys.stderr.isatty()) as progress:
        judgement = fleet.judge(
            program,
            cases,
            is_exact=line.is_exact,
            queue=line.queue,
            on_case=lambda result: progress.count(result.outcome),
        )
    if line.is_json:
        print(json.dumps(judgement.to_json(), indent=2))
    if not judgement.did_compile:
        assert judgement.compile is not None
        return tell_compile(judgement.compile, is_json=line.is_json)
    _tell_compiler(judgement.compile, judgement.shared)
    if not line.is_json:
        print_rows(judgement.cases, _CASES, line.form)
        sys.stdout.flush()  # the sum comes last, also where both streams are one pipe
    _tell_sum(judgement)
    return 0 if judgement.is_accepted else SOME_NOT_OK


def _tell_sum(judgement: Judgement) -> None:
    batch = "" if judgement.is_accepted else f"; the runs are batch {judgement.batch}"
    note(f"{judgement.describe()}{batch}")


def _case_fields(case: CaseResult) -> dict[str, Any]:
    outcome = case.outcome
    return {
        "case": case.name,
        "verdict": case.verdict,
        "detail": case.detail,
        "job_id": outcome.job_id,
        "code": outcome.code.value,
        "exit_code": outcome.exit_code,
        "signal": outcome.signal,
        "seconds": outcome.duration,
        "memory_peak_bytes": outcome.usage.memory_peak_bytes,
    }


def _case_cells(case: CaseResult) -> dict[str, str]:
    return {
        "CASE": case.name,
        "VERDICT": case.verdict,
        "TIME": format_duration(case.outcome.duration),
        "DETAIL": case.detail or "-",
    }


def _case_wide(case: CaseResult) -> dict[str, str]:
    peak = case.outcome.usage.memory_peak_bytes
    return {"MEMORY": "-" if peak is None else format_bytes(peak), "JOB": case.outcome.job_id}


_CASES: Final = Columns["CaseResult"](_case_fields, _case_cells, _case_wide, lambda case: case.outcome.job_id)
