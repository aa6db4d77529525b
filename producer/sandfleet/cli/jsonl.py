"""Read files of specs, one JSON object a line; write outcomes in the same form."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import IO, Any, cast

import msgspec
import typer
from sandfleet_config.errors import SpecInvalid

STDIN = "-"
BYTE_ORDER_MARK = "\ufeff"
_decode = msgspec.json.Decoder(dict[str, Any]).decode


def read_text(name: str) -> str:
    """Read the text of the file `name`, or of stdin for ``-``, without a byte order mark.

    Raises:
        OSError: the file cannot be read.
        typer.BadParameter: it is not UTF-8.
    """
    raw = sys.stdin.buffer.read() if name == STDIN else Path(name).read_bytes()
    try:
        return raw.decode().removeprefix(BYTE_ORDER_MARK)
    except UnicodeDecodeError as error:
        shown = "stdin" if name == STDIN else name
        raise typer.BadParameter(f"{shown} is not text in UTF-8 (byte {error.start + 1})") from None


def read_lines(name: str) -> list[str]:
    """Read the lines of the file `name`, or of stdin for ``-``; raises as `read_text`."""
    return read_text(name).split("\n")


def parse_object(line: str) -> dict[str, Any]:
    """Parse one line, a JSON object.

    Raises:
        SpecInvalid: it is none.
    """
    try:
        # Four times as fast as json. What it refuses, json reads or words the error of.
        return _decode(line)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        pass
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
