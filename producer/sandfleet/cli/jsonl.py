"""Read files of specs, one JSON object a line; write outcomes in the same form."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import typer
from sandfleet_config.codes import ErrorCode
from sandfleet_config.errors import SandboxError, SpecInvalid
from sandfleet_config.wire import new_spec

from sandfleet.cli.files import LineFiles
from sandfleet.submit.check import CheckedJob
from sandfleet.submit.encode import JobEncoder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from sandfleet_config.spec import SandboxSpec

STDIN = "-"


@dataclass(frozen=True)
class LineFault:
    """A fault of one line; lines count from 1."""

    number: int
    text: str


def read_lines(name: str) -> list[str]:
    """Read the text lines of the file `name`, or of stdin for ``-``.

    Raises:
        OSError: the file cannot be read.
        typer.BadParameter: it is not UTF-8.
    """
    raw = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
    try:
        return raw.decode().split("\n")
    except UnicodeDecodeError as error:
        shown = "stdin" if name == STDIN else name
        raise typer.BadParameter(f"{shown} is not text in UTF-8 (byte {error.start + 1})") from None


def parse_specs(
    lines: Iterable[str],
    max_spec_bytes: int,
    defaults: Mapping[str, Any] | None = None,
    files: LineFiles | None = None,
) -> tuple[list[SandboxSpec], list[LineFault]]:
    """Return all specs and all faults.

    Skip empty lines. `defaults` are for fields that a line lacks. `files` reads the local files that
    lines name.
    """
    specs: list[SandboxSpec] = []
    faults: list[LineFault] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        spec, found = _parse_spec(line, max_spec_bytes, defaults or {}, files or LineFiles())
        faults.extend(LineFault(number, fault) for fault in found)
        if spec is not None:
            specs.append(spec)
    return specs, faults


def _parse_spec(
    line: str, max_spec_bytes: int, defaults: Mapping[str, Any], files: LineFiles
) -> tuple[SandboxSpec | None, list[str]]:
    """Return the spec of a line, or its faults."""
    found: list[str] = []
    try:
        fields, local = files.resolve({**defaults, **_parse_object(line)})
        found = [f"{ErrorCode.SPEC_INVALID.value}: {fault['field']}: {fault['message']}" for fault in local]
        spec = new_spec(fields)
        JobEncoder(None, max_spec_bytes).encode(CheckedJob(spec, ""))
    except SandboxError as error:
        texts = [f"{fault['field']}: {fault['message']}" for fault in error.errors] or [error.message]
        return None, [*found, *(f"{error.code.value}: {text}" for text in texts)]
    return (None if found else spec), found


def _parse_object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise SpecInvalid.of(f"is not JSON ({error.msg} at column {error.colno})") from None
    except RecursionError:
        raise SpecInvalid.of("is nested too deeply") from None
    if not isinstance(value, dict):
        raise SpecInvalid.of("must be a JSON object, a spec")
    return cast("dict[str, Any]", value)


def read_ids(name: str) -> list[str]:
    """Read job ids, one a line, as ``sandfleet submit`` prints them; empty lines are skipped.

    Raises:
        OSError: the file cannot be read.
        typer.BadParameter: it is not UTF-8.
    """
    return [line.strip() for line in read_lines(name) if line.strip()]


def write_outcome(file: IO[str], outcome: dict[str, Any]) -> None:
    """Append one outcome as a line and flush it: an interrupted wait loses none."""
    file.write(json.dumps(outcome, separators=(",", ":")) + "\n")
    file.flush()
