"""`Programs`: what `Fleet` does with programs of a language."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet_config.errors import RequestError

from sandfleet import languages as parts
from sandfleet.collect.polling import split
from sandfleet.collect.stream import OutcomeStream
from sandfleet.errors import FleetError
from sandfleet.files.artifacts import open_object
from sandfleet.submit.running import Running

if TYPE_CHECKING:
    from collections.abc import Callable

    from sandfleet_config.outcome import Outcome, StoredObject

    from sandfleet.languages.cases import Cases
    from sandfleet.languages.judging import Judging
    from sandfleet.languages.program import Expansion, Program
    from sandfleet.languages.result import CaseResult, Judgement, ProgramResult
    from sandfleet.languages.table import LanguageTable


class Deadline:
    """The time at which a call that waits more than once gives up; None is never."""

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else time.monotonic() + timeout

    @property
    def left(self) -> float | None:
        """The seconds that are left."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())


class Programs(Running):
    """Part of `Fleet`: it compiles, runs and judges programs."""

    @cached_property
    def languages(self) -> LanguageTable:
        """The languages that programs may have: the built-in ones, and those of the settings.

        Raises:
            SettingsInvalid: the settings' file is faulty.
        """
        path = self.settings.languages
        return parts.read_table(Path(path) if path else None)

    def run_program(
        self,
        program: Program,
        stdin: bytes = b"",
        *,
        timeout: float | None = None,
        batch: str | None = None,
        queue: str | None = None,
    ) -> ProgramResult:
        """Compile a program, if its language is compiled, run it, and return both outcomes.

        A job that is under way is cancelled if this call ends early, as by `run`.

        Raises:
            ResultTimeout: it has not ended after `timeout` seconds, all waits included.
            SpecInvalid: there is no such language, or the program's spec is faulty.
            SecurityViolation, SpecTooLarge, QueueFull, FleetUnavailable: as `submit`.
        """
        expansion, deadline = self._expand(program), Deadline(timeout)
        compiled = self._compile(expansion, deadline, batch, queue)
        if compiled is not None and not compiled.is_ok:
            return parts.new_result(expansion, compiled, None)
        run = self.run(parts.new_run(expansion, compiled, stdin), timeout=deadline.left, batch=batch, queue=queue)
        return parts.new_result(expansion, compiled, run)

    async def run_program_async(
        self,
        program: Program,
        stdin: bytes = b"",
        *,
        timeout: float | None = None,  # noqa: ASYNC109  as `run_program`
        batch: str | None = None,
        queue: str | None = None,
    ) -> ProgramResult:
        """Do what `run_program` does and leave the event loop free."""
        expansion, deadline = await asyncio.to_thread(self._expand, program), Deadline(timeout)
        compiled = await self._compile_async(expansion, deadline, batch, queue)
        if compiled is not None and not compiled.is_ok:
            return parts.new_result(expansion, compiled, None)
        spec = parts.new_run(expansion, compiled, stdin)
        run = await self.run_async(spec, timeout=deadline.left, batch=batch, queue=queue)
        return parts.new_result(expansion, compiled, run)

    def judge(
        self,
        program: Program,
        cases: Cases,
        *,
        is_exact: bool = False,
        timeout: float | None = None,
        batch: str | None = None,
        queue: str | None = None,
        on_case: Callable[[CaseResult], object] = lambda _: None,
    ) -> Judgement:
        """Compile a program once, run it with the input of each case, and compare its outputs.

        `cases` is a folder with ``NAME.in`` and ``NAME.out``, or the cases themselves. The runs are
        a batch; without `batch` it gets a new name. White space at the end of a line or of the
        output does not count, unless `is_exact`. `on_case` is called as each case ends. Jobs that
        are under way are cancelled if this call ends early.

        Raises:
            SpecInvalid: there is no such language, or a case or the spec is faulty.
            OSError: a case cannot be read.
            ResultTimeout: it has not ended after `timeout` seconds, all waits included.
            FileMissing: an output has expired in the store.
            SecurityViolation, SpecTooLarge, QueueFull, FleetUnavailable: as `submit_many`.
        """
        expansion, deadline = self._expand(program), Deadline(timeout)
        order, name = parts.read_cases(cases), batch or new_batch_name()
        compiled = self._compile(expansion, deadline, None, queue)
        if compiled is not None and not compiled.is_ok:
            return parts.new_failed_judgement(expansion, compiled, name)
        judging = parts.Judging(expansion, compiled, order, name, is_exact=is_exact)
        try:
            self._submit_cases(judging, queue)
            for outcome in self._new_stream(judging, deadline):
                on_case(judging.add(outcome, self._read_stored))
        except BaseException as error:
            self._cancel_cases(judging, error, is_alone=batch is None)
            raise
        return judging.finish()

    async def judge_async(
        self,
        program: Program,
        cases: Cases,
        *,
        is_exact: bool = False,
        timeout: float | None = None,  # noqa: ASYNC109  as `judge`
        batch: str | None = None,
        queue: str | None = None,
        on_case: Callable[[CaseResult], object] = lambda _: None,
    ) -> Judgement:
        """Do what `judge` does and leave the event loop free; `on_case` runs in the event loop."""
        expansion, deadline = await asyncio.to_thread(self._expand, program), Deadline(timeout)
        order, name = await asyncio.to_thread(parts.read_cases, cases), batch or new_batch_name()
        compiled = await self._compile_async(expansion, deadline, None, queue)
        if compiled is not None and not compiled.is_ok:
            return parts.new_failed_judgement(expansion, compiled, name)
        judging = parts.Judging(expansion, compiled, order, name, is_exact=is_exact)
        try:
            await asyncio.to_thread(self._submit_cases, judging, queue)
            async for outcome in self._new_stream(judging, deadline):
                on_case(await asyncio.to_thread(judging.add, outcome, self._read_stored))
        except BaseException as error:
            await asyncio.shield(asyncio.to_thread(self._cancel_cases, judging, error, is_alone=batch is None))
            raise
        return judging.finish()

    def _expand(self, program: Program) -> Expansion:
        expansion = parts.Expansion(program, self.languages)
        expansion.check()
        return expansion

    def _compile(
        self, expansion: Expansion, deadline: Deadline, batch: str | None, queue: str | None
    ) -> Outcome | None:
        """Return the outcome of the compile job, None if the language is not compiled."""
        if not expansion.is_compiled:
            return None
        return self.run(expansion.compile_spec(), timeout=deadline.left, batch=batch, queue=queue)

    async def _compile_async(
        self, expansion: Expansion, deadline: Deadline, batch: str | None, queue: str | None
    ) -> Outcome | None:
        if not expansion.is_compiled:
            return None
        return await self.run_async(expansion.compile_spec(), timeout=deadline.left, batch=batch, queue=queue)

    def _submit_cases(self, judging: Judging, queue: str | None) -> None:
        for jobs in self.submit_chunks(judging.new_specs(), batch=judging.batch, queue=queue):
            judging.note_queued(job.id for job in jobs)

    def _new_stream(self, judging: Judging, deadline: Deadline) -> OutcomeStream:
        return OutcomeStream(self._channel, judging.job_ids, deadline.left, batch=judging.batch)

    def _read_stored(self, stored: StoredObject) -> bytes:
        with open_object(self._channel.objects, stored.sha256, stored.size) as file:
            return file.read()

    def _cancel_cases(self, judging: Judging, error: BaseException, *, is_alone: bool) -> None:
        """Cancel the jobs of the cases; `is_alone`: no other jobs are in their batch."""
        known = list(judging.job_ids)
        if isinstance(error, FleetError | RequestError):
            known += error.job_ids
        with suppress(FleetError):
            if is_alone:  # a submit that was interrupted may have queued more
                known += self._channel.batch_ids(judging.batch)
            for chunk in split(list(dict.fromkeys(known))):
                self._channel.cancel(chunk)


def new_batch_name() -> str:
    """Return a name for the runs of one program."""
    return f"judge-{uuid.uuid4().hex[:12]}"
