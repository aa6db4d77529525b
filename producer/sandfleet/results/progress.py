"""The progress of an interrupted table: a file beside the temporary one, a line a checkpoint."""

from __future__ import annotations

import fcntl
import json
import os
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from sandfleet.errors import ResultsNotWritten
from sandfleet.results.rows import START, Cursor

if TYPE_CHECKING:
    from pathlib import Path

VERSION: Final = 1


@dataclass
class Progress:
    """The written part of a table: its place in the batch, its rows, the writer's mark after it.

    `states` counts the jobs by state, `not_saved` outputs and artifacts that could not be saved.
    `relisted` are written jobs that may come again.
    """

    cursor: Cursor = START
    mark: int = 0
    rows: int = 0
    not_saved: int = 0
    states: Counter[str] = field(default_factory=Counter[str])
    relisted: dict[str, None] = field(default_factory=dict[str, None])


class ProgressFile:
    """The progress of one table.

    One process at a time has it open; a line that is not complete does not count.
    """

    def __init__(self, path: Path, request: dict[str, Any]) -> None:
        """Open and lock it; `request` is what the table is of, as plain JSON.

        Raises:
            ResultsNotWritten: another process writes the same table.
            OSError: it cannot be written.
        """
        self.path = path
        self._noted = 0
        self._request = {"version": VERSION, **request}
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._descriptor)
            raise ResultsNotWritten(
                "another process is writing this table: wait for it, or choose another name"
            ) from None

    def read(self) -> Progress | None:
        """Return the progress of an earlier process; None if there is none.

        Raises:
            ResultsNotWritten: that was another table: other columns, another batch, or another
            folder.
        """
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            lines = file.read().split(b"\n")[:-1]
        parsed: list[dict[str, Any]] = []
        with suppress(ValueError):
            parsed.extend(json.loads(line) for line in lines)
        if len(parsed) <= 1:
            return None
        self._check(parsed[0])
        last = parsed[-1]
        relisted = dict.fromkeys(job_id for line in parsed[1:] for job_id in line.get("relisted", ()))
        counts = last["mark"], last["rows"], last["not_saved"]
        return Progress(Cursor(*last["cursor"]), *counts, Counter(last["states"]), relisted)

    def _check(self, request: dict[str, Any]) -> None:
        names = [name for name in self._request if request.get(name) != self._request[name]]
        if names:
            said = "; ".join(f"{name} was {request.get(name)}, now {self._request[name]}" for name in names)
            raise ResultsNotWritten(
                f"the interrupted table is another one ({said}): repeat its options, or do not resume"
            )

    def start(self, progress: Progress) -> None:
        """Write the file anew, with this progress."""
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._noted = 0
        self._write(self._request)
        self.add(progress)

    def add(self, progress: Progress) -> None:
        """Add a checkpoint, with the relisted jobs since the last one."""
        self._write(vars(progress) | {"relisted": list(islice(progress.relisted, self._noted, None))})
        self._noted = len(progress.relisted)

    def _write(self, value: dict[str, Any]) -> None:
        os.write(self._descriptor, json.dumps(value).encode() + b"\n")

    def remove(self) -> None:
        """Delete the file: the table is complete."""
        self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close it and let others have it."""
        os.close(self._descriptor)
