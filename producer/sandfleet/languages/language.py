"""`Language`: one row of the table, and the placeholders in its commands."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError
from sandfleet_config.bounds import MAX_NAME_CHARS, MIN_TIMEOUT_SECONDS
from sandfleet_config.fields import Bytes, check_image
from sandfleet_config.settings import PolicySettings
from sandfleet_config.spec import ResourceSpec

if TYPE_CHECKING:
    from collections.abc import Sequence

LANGUAGE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.+#-]{0,63}")
SOURCE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
"""Names of source files that no compiler takes for an option, and no shell for something else."""
DEFAULT_COMPILE_SECONDS: Final = 60.0
MAX_COMPILE_SECONDS: Final = 3600.0
DEFAULT_CEILING_BYTES: Final = PolicySettings().memory_bytes
_PLACEHOLDER: Final = re.compile(r"\{\{|\}\}|\{([^{}]*)\}")
_KNOWN: Final = ("source", "stem", "memory_mib")


def _check_words(words: Sequence[str]) -> Sequence[str]:
    for word in words:
        for match in _PLACEHOLDER.finditer(word):
            if match[1] is not None and match[1] not in _KNOWN:
                msg = "has the placeholder {found}, there are {source}, {stem} and {memory_mib}; write {{ for a brace"
                raise PydanticCustomError("placeholder", msg, {"found": match[0]})
    return words


def _check_source(name: str) -> str:
    if not SOURCE_NAME.fullmatch(name):
        msg = "must be the name of a file, such as main.cpp: letters, digits, dots, hyphens, underscores"
        raise PydanticCustomError("source", msg)
    return name


def _check_alias(names: Sequence[str]) -> Sequence[str]:
    if any(not LANGUAGE_NAME.fullmatch(name) for name in names):
        msg = "must be names of languages: lower-case letters, digits and any of _ . + # -"
        raise PydanticCustomError("alias", msg)
    return names


Words = Annotated[tuple[str, ...], AfterValidator(_check_words)]


class Language(BaseModel):
    """How programs of a language are compiled and run.

    Without `compile` the source itself is run. Commands start in ``/work``, where the source is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    image: Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS), AfterValidator(check_image)]
    source: Annotated[str, AfterValidator(_check_source)]
    """The name of a source file that has no name of its own; its suffix is that of the language."""
    run: Annotated[Words, Field(min_length=1)]
    compile: Words = ()
    artifacts: Words = ()
    """Patterns of the files that `compile` leaves and `run` needs, relative to ``/work``."""
    env: dict[str, str] = Field(default_factory=dict)
    """Of both commands."""
    aliases: Annotated[tuple[str, ...], AfterValidator(_check_alias)] = ()
    compile_timeout: float = Field(default=DEFAULT_COMPILE_SECONDS, ge=MIN_TIMEOUT_SECONDS, le=MAX_COMPILE_SECONDS)
    """Seconds."""
    compile_memory: Bytes = 0
    compile_disk: Bytes = 0
    """Bytes; 0 is the host's ceiling."""

    @model_validator(mode="after")
    def _check_compile(self) -> Self:
        if bool(self.compile) != bool(self.artifacts):
            msg = "compile and artifacts belong together: the command, and the files that it leaves for run"
            raise PydanticCustomError("compile", msg)
        ResourceSpec(memory_bytes=self.compile_memory, disk_bytes=self.compile_disk)
        return self

    def name_source(self, name: str) -> str:
        """Return the name that a source file called `name` gets in the sandbox.

        It keeps its own, which the compiler's messages then have, if that is safe for a command and
        has a suffix.
        """
        is_kept = SOURCE_NAME.fullmatch(name) and PurePosixPath(name).suffix
        return name if is_kept else self.source


def fill(words: Sequence[str], source: str, memory_bytes: int) -> list[str]:
    """Return `words` with the placeholders replaced.

    `source` is the name of the source file. `memory_bytes` is the limit of the job; if that is 0, a
    host's own, the default of that is taken.
    """
    memory = (memory_bytes or DEFAULT_CEILING_BYTES) >> 20
    values = {"source": source, "stem": PurePosixPath(source).stem, "memory_mib": str(memory)}
    return [
        _PLACEHOLDER.sub(lambda match: match[0][0] if match[1] is None else values[match[1]], word) for word in words
    ]
