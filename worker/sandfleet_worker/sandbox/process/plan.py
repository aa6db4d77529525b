"""The plan of a sandbox: everything that cannot change once it is up."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from pathlib import Path

    from sandfleet_worker.sandbox.image.datasets import DatasetMount
    from sandfleet_worker.sandbox.process.interpreter import Interpreter
    from sandfleet_worker.sandbox.process.runsc import RunscBinary

IDENTITY_NUMBERS: Final = 5


@dataclass(frozen=True)
class Plan:
    """The runsc, the platform, and the files of the image and the datasets of a sandbox.

    Nothing else of any job. `identity` tells these files from others at the same paths: five
    numbers a file, the image first.
    """

    binary: RunscBinary
    platform: str
    erofs: Path
    identity: tuple[int, ...]
    datasets: tuple[DatasetMount, ...] = ()
    interpreter: Interpreter | None = None
    """The interpreter that starts ahead of the job, in a prepared spare."""

    def __hash__(self) -> int:
        """Hash only `identity`: each job uses its plan as a key several times."""
        return hash(self.identity)

    @classmethod
    def of(cls, binary: RunscBinary, platform: str, erofs: Path, datasets: tuple[DatasetMount, ...] = ()) -> Self:
        """Return the plan for the files that are there now.

        Raises:
            FileNotFoundError: one is missing.
        """
        identity = identify(erofs)
        for dataset in datasets:
            identity += identify(dataset.erofs)
        return cls(binary, platform, erofs, identity, datasets)

    @property
    def digest(self) -> str:
        """The digest of the image, by which its folder in the store is named."""
        return self.erofs.parent.name.replace("-", ":", 1)

    def prepared(self, interpreter: Interpreter) -> Self:
        """Return the plan of sandboxes that start `interpreter` ahead."""
        return replace(self, interpreter=interpreter)

    @property
    def is_stale(self) -> bool:
        """Whether a file of the image or of a dataset has been removed or replaced since.

        Of a plan with an interpreter, also whether runsc has.
        """
        try:
            found = self.of(self.binary, self.platform, self.erofs, self.datasets)
            is_same_runsc = self.interpreter is None or self.interpreter.runsc == identify(self.binary.path)
        except OSError:
            return True
        return found.identity != self.identity or not is_same_runsc

    def find_overwritten(self) -> str:
        """Name a file that has been written to since: programs that run from it fail.

        Empty if none was. A sandbox keeps a file that was replaced or removed: it has it open.
        """
        names = ("the image's file", *(f"the file of the dataset at {dataset.path}" for dataset in self.datasets))
        files = (self.erofs, *(dataset.erofs for dataset in self.datasets))
        found = (
            name
            for name, file, start in zip(names, files, range(0, len(self.identity), IDENTITY_NUMBERS), strict=True)
            if _is_overwritten(file, self.identity[start : start + IDENTITY_NUMBERS])
        )
        return next(found, "")


def identify(file: Path | str) -> tuple[int, ...]:
    """Return what tells a file from another one at the same path."""
    facts = os.stat(file)  # noqa: PTH116  as in runsc.py
    # The change time, too: a writer can set back the other times of a file, but not that one
    # (inode(7)).
    return (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)


def _is_overwritten(erofs: Path, identity: tuple[int, ...]) -> bool:
    try:
        facts = erofs.stat()
    except OSError:
        return False
    device, inode, size, modified, _ = identity
    is_same_file = (facts.st_dev, facts.st_ino) == (device, inode)
    return is_same_file and (facts.st_size, facts.st_mtime_ns) != (size, modified)
