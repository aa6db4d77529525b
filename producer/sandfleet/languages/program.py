"""`Program`: source code in a language. `Expansion`: the specs that compile and run it."""

from __future__ import annotations

import secrets
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from pydantic import ValidationError
from sandfleet_config.bounds import MAX_LABEL_VALUE_CHARS
from sandfleet_config.errors import SpecInvalid
from sandfleet_config.files import FileSpec, resolve_path
from sandfleet_config.spec import ResourceSpec
from sandfleet_config.wire import new_spec

from sandfleet.files.local import open_regular
from sandfleet.languages.language import fill

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from sandfleet_config.outcome import Outcome
    from sandfleet_config.spec import Payload, SandboxSpec

    from sandfleet.languages.table import LanguageTable

LANGUAGE_LABEL: Final = "language"
STEP_LABEL: Final = "step"
COMPILE_STEP: Final = "compile"
RUN_STEP: Final = "run"
_RUN_ONLY: Final = ("resources", "output", "artifacts", "timeout", "grace", "stdin", "retry_with", "env", "prepared")
"""Fields of a program's spec that say nothing about its compilation."""
_REFUSED: Final = {
    "idempotency_key": "a program is more than one job",
    "working_dir": "programs are compiled and run in /work",
}
_OURS: Final = ("image", "command", "files", "labels", "env")


@dataclass(frozen=True)
class Program:
    """A program in a language.

    `name` is the name of its source file; without one it has that of the language's row. `args` are
    the arguments of its run. `compile_timeout` is in seconds; 0 is the language's. `spec` has other
    fields of the job that runs it, such as ``{"timeout": 10, "resources": {"memory_bytes":
    "64MiB"}}``; those about host, queue and user hold for its compilation, too, and so do its
    ``files``, such as headers.
    """

    code: str | bytes = field(repr=False)
    language: str
    name: str = ""
    args: Sequence[str] = ()
    compile_timeout: float = 0.0
    spec: Mapping[str, Any] = field(default_factory=dict[str, Any], repr=False)

    def __post_init__(self) -> None:
        """Refuse one string as arguments."""
        if isinstance(self.args, str):
            raise TypeError("args must be a list of strings")

    @classmethod
    def read(cls, path: str | os.PathLike[str], language: str, **fields: Any) -> Program:
        """Return the program in a local file; it keeps the file's name.

        Raises:
            OSError: the file cannot be read.
            SpecInvalid: it is not a regular file.
        """
        with open_regular(Path(path)) as file:
            return cls(file.read(), language, name=Path(path).name, **fields)


class Expansion:
    """A program as plain specs: one that compiles it, and one for each run.

    Raises:
        SpecInvalid: there is no such language.
    """

    def __init__(self, program: Program, table: LanguageTable) -> None:
        self.name, self.language = table.find(program.language)
        self._program = program
        self._source = self.language.name_source(program.name)
        self._mark = f"sandfleet: did not compile again in the sandbox of its run ({secrets.token_hex(16)})\n"

    def check(self) -> None:
        """Return if the specs can be submitted: a faulty run is told before anything is compiled.

        Raises:
            SpecInvalid, SecurityViolation: `Program.spec`, or the program, is faulty.
        """
        faults = [
            {"field": name, "message": f"must be empty: {why}"}
            for name, why in _REFUSED.items()
            if self._program.spec.get(name)
        ]
        if faults:
            told = "; ".join(f"{fault['field']}: {fault['message']}" for fault in faults)
            raise SpecInvalid.of(told, errors=faults)
        if self.is_compiled:
            new_spec(self.compile_spec())
        new_spec(self.run_spec(None))

    @property
    def is_compiled(self) -> bool:
        """Whether programs of this language are compiled."""
        return bool(self.language.compile)

    @property
    def output(self) -> Mapping[str, Any]:
        """The field `output` of the program's spec."""
        return self._program.spec.get("output") or {}

    def compile_spec(self) -> dict[str, Any]:
        """Return the spec that compiles the program; its artifacts are what runs need."""
        language = self.language
        shared = {name: value for name, value in self._program.spec.items() if name not in _RUN_ONLY}
        return {
            **shared,
            **self._base(COMPILE_STEP),
            "command": self._fill_compiler(),
            "files": [self._source_file(), *self._other_files()],
            "artifacts": [{"glob": glob, "when": "ok"} for glob in fill(language.artifacts, self._source, 0)],
            "resources": {"memory_bytes": language.compile_memory, "disk_bytes": language.compile_disk},
            "timeout": self._compile_timeout,
        }

    def run_spec(self, compiled: Outcome | None, stdin: bytes | Payload = b"", case: str = "") -> dict[str, Any]:
        """Return the spec of a run: with the artifacts of `compiled`, or with the source itself."""
        files: list[object]
        if compiled is None:
            files = [self._source_file(), *self._other_files()]
        else:
            files = [
                {"path": made.path, "sha256": made.sha256, "size": made.size, "mode": made.mode}
                for made in compiled.artifacts
            ]
            # A file that was sent with the source may match the patterns, and comes back.
            known = {resolve_path(made.path) for made in compiled.artifacts}
            files += [file for file in self._other_files() if resolve_path(_read_path(file)) not in known]
        return self._new_run(self._run_command(), files, stdin, case)

    def shared_spec(self, stdin: bytes | Payload = b"", case: str = "") -> SandboxSpec:
        """Return the spec of a run that compiles the program in its own sandbox before.

        Both have one limit of time, which is the sum of the two, and the higher one of the others.
        """
        compiler = shlex.join(self._fill_compiler())
        # The program replaces the shell, so it can neither read the mark nor end as if it had not
        # been compiled.
        script = (
            f"{compiler} </dev/null >/dev/null 2>&1 || {{ printf %s {shlex.quote(self._mark)} >&2; exit 1; }}\n"
            f"exec {shlex.join(self._run_command())}"
        )
        files = [self._source_file(), *self._other_files()]
        spec = new_spec(self._new_run(["sh", "-c", script], files, stdin, case))
        limits = spec.resources
        resources = limits.model_copy(
            update={
                "memory_bytes": _find_higher(limits.memory_bytes, self.language.compile_memory),
                "disk_bytes": _find_higher(limits.disk_bytes, self.language.compile_disk),
            }
        )
        timeout = spec.timeout_seconds + self._compile_timeout
        return spec.model_copy(update={"resources": resources, "timeout": timeout})

    def failed_in_shared(self, outcome: Outcome) -> bool:
        """Whether a job of `shared_spec` ended before its run: it was not compiled."""
        return outcome.exit_code == 1 and outcome.stderr.bytes == self._mark.encode()

    @property
    def _compile_timeout(self) -> float:
        return self._program.compile_timeout or self.language.compile_timeout

    def _run_command(self) -> list[str]:
        memory = _read_memory(self._program.spec.get("resources") or {})
        return [*fill(self.language.run, self._source, memory), *self._program.args]

    def _fill_compiler(self) -> list[str]:
        return fill(self.language.compile, self._source, self.language.compile_memory)

    def _new_run(
        self, command: Sequence[str], files: Sequence[object], stdin: bytes | Payload, case: str
    ) -> dict[str, Any]:
        given = {name: value for name, value in self._program.spec.items() if name not in _OURS}
        spec: dict[str, Any] = {**given, **self._base(RUN_STEP), "command": list(command), "files": list(files)}
        if stdin or case:
            spec["stdin"] = stdin
        if case:
            spec["labels"] = {"name": case[:MAX_LABEL_VALUE_CHARS], **spec["labels"]}
        return spec

    def _base(self, step: str) -> dict[str, Any]:
        given = self._program.spec
        own_labels: Mapping[str, str] = given.get("labels") or {}
        labels = {LANGUAGE_LABEL: self.name, STEP_LABEL: step, **own_labels}
        env = [f"{name}={value}" for name, value in self.language.env.items()]
        if step == RUN_STEP:
            env += _list_env(given.get("env") or ())
        return {"image": given.get("image") or self.language.image, "labels": labels, "env": env}

    def _source_file(self) -> dict[str, Any]:
        return {"path": self._source, "content": self._program.code}

    def _other_files(self) -> list[object]:
        return list(self._program.spec.get("files") or ())


def _read_memory(resources: object) -> int:
    """Return the limit of memory in bytes; 0 if it is faulty, which the check of the spec tells."""
    try:
        return ResourceSpec.model_validate(resources).memory_bytes
    except ValidationError:
        return 0


def _list_env(env: object) -> list[str]:
    """Return the environment of a spec, as strings or as a mapping, as ``KEY=VALUE`` strings."""
    if isinstance(env, dict):
        return [f"{name}={value}" for name, value in cast("Mapping[str, object]", env).items()]
    return list(cast("Sequence[str]", env))


def _read_path(file: object) -> str:
    return file.path if isinstance(file, FileSpec) else cast("Mapping[str, str]", file)["path"]


def _find_higher(asked: int, least: int) -> int:
    """Return the higher of two limits; 0 is the host's ceiling."""
    return max(asked, least) if asked and least else 0
