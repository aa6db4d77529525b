"""Cases: an input and its answer. A folder has them as ``NAME.in`` and ``NAME.out``."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeAlias

from sandfleet_config.errors import SpecInvalid
from sandfleet_config.wire import MAX_REPORTED_FAULTS

from sandfleet.files.local import open_regular

INPUT_SUFFIX: Final = ".in"
ANSWER_SUFFIXES: Final = (".out", ".ans")
MAX_CASES: Final = 10_000
MAX_NAME_CHARS: Final = 200


@dataclass(frozen=True)
class Case:
    """One case: `stdin` for the program, and the `answer` that its stdout must be.

    Both are bytes, text, or the path of a local file, which is read when it is needed.
    """

    name: str
    stdin: bytes | str | Path = field(repr=False)
    answer: bytes | str | Path = field(repr=False)

    def read_stdin(self) -> bytes:
        """Return the input.

        Raises:
            OSError, SpecInvalid: its file cannot be read.
        """
        return _read(self.stdin)

    def read_answer(self) -> bytes:
        """Return the answer; raises as `read_stdin`."""
        return _read(self.answer)

    @property
    def answer_bytes(self) -> int:
        """The size of the answer."""
        return self.answer.stat().st_size if isinstance(self.answer, Path) else len(_read(self.answer))


Cases: TypeAlias = "str | os.PathLike[str] | Iterable[Case]"
"""A folder, or the cases themselves."""


def _read(source: bytes | str | Path) -> bytes:
    if isinstance(source, Path):
        with open_regular(source) as file:
            return file.read()
    return source.encode() if isinstance(source, str) else source


def read_cases(cases: Cases) -> Sequence[Case]:
    """Return `cases` as a list, checked; a folder's are sorted, 2 before 10.

    In a folder, and in those below it, ``a/1.in`` and ``a/1.out`` (or ``a/1.ans``) are the case
    ``a/1``; other files are left out.

    Raises:
        SpecInvalid: there are none, or more than `MAX_CASES`, or two have one name, or a file lacks
            its other half; tells all faults.
        OSError: the folder cannot be read.
    """
    if isinstance(cases, str | os.PathLike):
        return _read_folder(Path(cases))
    found = list(cases)
    _refuse(_check_names([case.name for case in found]), "cases")
    return found


def _read_folder(folder: Path) -> Sequence[Case]:
    names = {path.relative_to(folder).as_posix(): path for path in _walk(folder)}
    inputs = [name.removesuffix(INPUT_SUFFIX) for name in names if name.endswith(INPUT_SUFFIX)]
    inputs.sort(key=_sort_key)
    faults = _check_names(inputs)
    found: list[Case] = []
    used: set[str] = set()
    for name in inputs:
        answers = [f"{name}{suffix}" for suffix in ANSWER_SUFFIXES if f"{name}{suffix}" in names]
        used.update(answers)
        if len(answers) == 1:
            found.append(Case(name, names[f"{name}{INPUT_SUFFIX}"], names[answers[0]]))
        else:
            have = "both .out and .ans: keep one" if answers else "no .out and no .ans beside it"
            faults.append(f"{name}{INPUT_SUFFIX} has {have}")
    alone = [name for name in sorted(names) if name.endswith(ANSWER_SUFFIXES) and name not in used]
    faults += [f"{name} has no {INPUT_SUFFIX} beside it" for name in alone]
    _refuse(faults, str(folder))
    return found


def _walk(folder: Path) -> Iterable[Path]:
    def fail(error: OSError) -> None:
        raise error

    for parent, _, names in os.walk(folder, onerror=fail):
        yield from (Path(parent, name) for name in names)


def _sort_key(name: str) -> list[tuple[int, str]]:
    """Sort numbers in names by their value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _check_names(names: Sequence[str]) -> list[str]:
    if not names:
        return [f"has no cases: there is no file NAME{INPUT_SUFFIX}"]
    if len(names) > MAX_CASES:
        return [f"has {len(names)} cases, the limit is {MAX_CASES}"]
    faults = [
        f"{ascii(name[:MAX_NAME_CHARS])[1:-1]}: the name of a case is 1 to {MAX_NAME_CHARS} printable characters"
        for name in names
        if not name or not name.isprintable() or len(name) > MAX_NAME_CHARS
    ]
    if len(set(names)) < len(names):
        faults.append("two cases have one name")
    return faults


def _refuse(faults: Sequence[str], where: str) -> None:
    if not faults:
        return
    shown = faults[:MAX_REPORTED_FAULTS]
    more = f"; and {len(faults) - len(shown)} more" if len(faults) > len(shown) else ""
    errors = [{"field": "cases", "message": fault} for fault in shown]
    raise SpecInvalid.of(f"{where}: {'; '.join(shown)}{more}", errors=errors)
