"""The programs of the suite, read from `cases/*.toml`, and the command lines that run each."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

CASES = Path(__file__).parent / "cases"


@dataclass(frozen=True)
class Case:
    """One program in one form of command line.

    `files` are in the job's folder before it starts; the program `setup` has run there. `modules` are
    imported ahead. It runs on the Pythons from `since` on and below `before`. `masks` are the known
    differences that it shows; `refused` is the reason if no interpreter is prepared for it.
    """

    name: str
    argv: tuple[str, ...]
    files: dict[str, str]
    env: dict[str, str]
    stdin: bytes
    modules: tuple[str, ...]
    since: tuple[int, int]
    before: tuple[int, int]
    masks: tuple[str, ...]
    setup: str
    refused: str


@dataclass(frozen=True)
class _Row:
    program: str = ""
    forms: list[str] = field(default_factory=lambda: ["file"])
    argv: list[str] = field(default_factory=list)
    args: list[str] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    stdin: str = ""
    modules: list[str] = field(default_factory=list)
    since: str = "3.9"
    before: str = "3.99"
    masks: list[str] = field(default_factory=list)
    setup: str = ""
    refused: str = ""

    def cases(self, name: str) -> Iterator[Case]:
        for form in ["argv"] if self.argv else self.forms:
            words, files, stdin = self._command(form)
            yield Case(
                name=f"{name}[{form}]",
                argv=("python3", *words, *self.args),
                files={**self.files, **files},
                env=self.env,
                stdin=stdin.encode("utf-8", "surrogateescape"),
                modules=tuple(self.modules),
                since=_version(self.since),
                before=_version(self.before),
                masks=tuple(self.masks),
                setup=self.setup,
                refused=self.refused,
            )

    def _command(self, form: str) -> tuple[list[str], dict[str, str], str]:
        """Return the words after `python3`, the file with the program, and stdin."""
        match form:
            case "argv":
                return self.argv, {"job.py": self.program}, self.stdin
            case "c":
                return ["-c", self.program], {}, self.stdin
            case "m":
                return ["-m", "job"], {"job.py": self.program}, self.stdin
            case "file":
                return ["job.py"], {"job.py": self.program}, self.stdin
            case "folder":
                return ["folder"], {"folder/__main__.py": self.program}, self.stdin
            case "none":
                return [], {}, self.program
            case "stdin":
                return ["-"], {}, self.program
        raise ValueError(f"no form of command line is called {form!r}")


def read_cases() -> list[Case]:
    """Return every program in every form that its row names."""
    return [
        case
        for path in sorted(CASES.glob("*.toml"))
        for name, row in tomllib.loads(path.read_text(encoding="utf-8")).items()
        for case in _Row(**row).cases(f"{path.stem}.{name}")
    ]


def _version(text: str) -> tuple[int, int]:
    major, minor = text.split(".")
    return int(major), int(minor)
