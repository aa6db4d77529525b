"""``--each 'scripts/*.py'``: one job for each local file, which becomes a file of its job."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandfleet_config.files import WORK_FOLDER

from sandfleet.cli.ways.entry import Fault, InputInvalid

if TYPE_CHECKING:
    from collections.abc import Sequence

OPTION: Final = "--each"
NAMES: Final = ("path", "name", "stem", "index")
"""Placeholders: path in the sandbox (also ``{}``), name, name without its suffix, 0, 1, ..."""
_NUMBER: Final = re.compile(r"(\d+)", re.ASCII)


def find_scripts(patterns: Sequence[str]) -> list[Path]:
    """Return the files that match, each once, sorted by name with numbers in their order.

    Of a folder, return its files.

    Raises:
        InputInvalid: a pattern matches no file.
    """
    found: dict[Path, None] = {}
    faults: list[Fault] = []
    for pattern in patterns:
        is_folder = os.path.isdir(pattern)  # noqa: PTH112  a pattern is no path
        names = glob.glob(os.path.join(glob.escape(pattern), "*") if is_folder else pattern, recursive=True)  # noqa: PTH118, PTH207
        files = sorted((Path(name) for name in names if not os.path.isdir(name)), key=_sort_key)  # noqa: PTH112
        if not files:
            what = "the folder has no files" if is_folder else "no file matches"
            faults.append(Fault(OPTION, f"{pattern}: {what} (in {Path.cwd()})"))
        found |= dict.fromkeys(files)
    if faults:
        raise InputInvalid(*faults)
    return list(found)


def name_script(source: Path, index: int) -> dict[str, str]:
    """Return the values of the placeholders."""
    return {"path": f"{WORK_FOLDER}/{source.name}", "name": source.name, "stem": source.stem, "index": str(index)}


def _sort_key(source: Path) -> list[tuple[int, str]]:
    """Sort ``case2`` before ``case10``."""
    parts = _NUMBER.split(str(source))
    return [(int(part), "") if at % 2 else (-1, part) for at, part in enumerate(parts)]
