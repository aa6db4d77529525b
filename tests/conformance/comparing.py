"""Runs a case cold and prepared in the same empty folder, and tells in what the two runs differ.

As in a sandbox, the job's files come when the interpreter is prepared.
"""

import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from plain_runs import Run
from programs import Case

ENVIRONMENT: Mapping[str, str] = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/root", "LANG": "C.UTF-8"}

# What differs from one run of `python3` to the next by itself.
ACCIDENTS = {
    "address": re.compile(rb"0x[0-9a-f]{4,}"),
    "seconds": re.compile(rb"\bin \d+\.\d+s"),
}


# The known differences, by the name that docs/explanation/prepared.md gives each. A case names those that it shows.
KNOWN = {
    "command-line": re.compile(rb"^proc: .*$", re.MULTILINE),
    "start": re.compile(rb"^(?:age:|RLIMIT_CPU) .*$", re.MULTILINE),
    "mounts": re.compile(rb"^mount: .*\n", re.MULTILINE),
    "modules": re.compile(rb"^modules: .*$", re.MULTILINE),
    "imports": re.compile(rb"^(?:an import says|read at import): .*\n", re.MULTILINE),
    "collector": re.compile(rb"(?<=^del )\w+$|^gc: .*$", re.MULTILINE),
    "frame-of-m": re.compile(rb"""  File "<string>", line \d+ in job\n|'job', 'show', """),
    "syntax-warning": re.compile(rb"^  \S.*\n", re.MULTILINE),
    "exec-interrupt": None,  # the exit code
}


@dataclass(frozen=True, slots=True)
class Ending:
    """All that a program leaves behind."""

    run: Run
    files: Mapping[str, bytes]


Begin = Callable[[Case, Path], Callable[[], Run]]
"""Does what comes before the job, and returns what runs the job."""


def end(case: Case, folder: Path, python: Path, begin: Begin) -> Ending:
    """Run the case in `folder`, which is made anew; `begin` finds there only modules to import ahead."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    of_image = {f"{module}.py" for module in case.modules}
    _write(folder, {name: text for name, text in case.files.items() if name in of_image})
    run = begin(case, folder)
    _write(folder, {name: text for name, text in case.files.items() if name not in of_image})
    if case.setup:
        subprocess.run([python, "-c", case.setup], cwd=folder, check=True, timeout=60)
    ended = run()
    return Ending(ended, {name: data for name, data in _read(folder).items() if "__pycache__" not in name})


def _write(folder: Path, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def _read(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in sorted(folder.rglob("*")):
        kind = b"link" if path.is_symlink() else b"dir" if path.is_dir() else b"file"
        content = path.read_bytes() if kind == b"file" and path.is_file() else b""
        found[str(path.relative_to(folder))] = kind + b"\0" + content
    return found


def differences(case: Case, cold: Ending, prepared: Ending) -> list[str]:
    """Return one line for each part that is not the same; none if the two runs ended alike."""
    found = []
    for part in ("code", "stdout", "stderr"):
        first, second = getattr(cold.run, part), getattr(prepared.run, part)
        if isinstance(first, bytes):
            first, second = (_masked(text, case.masks) for text in (first, second))
        if first != second and not (part == "code" and "exec-interrupt" in case.masks):
            found.append(f"{case.name}: {part}\n  cold:     {first!r}\n  prepared: {second!r}")
    if cold.files != prepared.files:
        changed = {name for name in {*cold.files, *prepared.files} if cold.files.get(name) != prepared.files.get(name)}
        found.append(f"{case.name}: files {sorted(changed)}")
    return found


def _masked(text: bytes, masks: Iterable[str]) -> bytes:
    for pattern in ACCIDENTS.values():
        text = pattern.sub(b"...", text)
    for pattern in filter(None, map(KNOWN.__getitem__, masks)):
        text = pattern.sub(b"", text)
    return text
