"""The plan of a sandbox: everything that cannot change once it is up."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

    from sandfleet_worker.sandbox.process.runsc import RunscBinary


@dataclass(frozen=True)
class Plan:
    """The runsc, the platform and the image's file of a sandbox, and nothing of any job.

    `identity` tells the image's file from another one at the same path.
    """

    binary: RunscBinary
    platform: str
    erofs: Path
    identity: tuple[int, ...]

    def __hash__(self) -> int:
        """Hash only `identity`: each job uses its plan as a key several times."""
        return hash(self.identity)

    @classmethod
    def of(cls, binary: RunscBinary, platform: str, erofs: Path) -> Self:
        """Return the plan for the image file that is there now.

        Raises:
            FileNotFoundError: there is none.
        """
        facts = os.stat(erofs)  # noqa: PTH116  as in runsc.py
        # The change time, too: a writer can set back the other times of a file, but not that one
        # (inode(7)).
        identity = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        return cls(binary, platform, erofs, identity)

    @property
    def is_stale(self) -> bool:
        """Whether the image's file has been removed or replaced since."""
        try:
            return self.of(self.binary, self.platform, self.erofs) != self
        except OSError:
            return True

    @property
    def is_overwritten(self) -> bool:
        """Whether the same file has been written to since: programs that run from it fail.

        A sandbox keeps a file that was replaced or removed, because it has it open.
        """
        try:
            facts = self.erofs.stat()
        except OSError:
            return False
        device, inode, size, modified, _ = self.identity
        is_same_file = (facts.st_dev, facts.st_ino) == (device, inode)
        return is_same_file and (facts.st_size, facts.st_mtime_ns) != (size, modified)
