"""What sandboxes are built from, and whether that is still there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

    from sandfleet_worker.sandbox.process.runsc import RunscBinary


@dataclass(frozen=True)
class Plan:
    """What a sandbox is built from: everything that cannot change once it is up, and nothing of any job.

    `identity` tells the image's file from another one at the same path.
    """

    binary: RunscBinary
    platform: str
    erofs: Path
    identity: tuple[int, ...]

    @classmethod
    def of(cls, binary: RunscBinary, platform: str, erofs: Path) -> Self:
        """Return the plan for the image file that is there now.

        Raises:
            FileNotFoundError: there is none.
        """
        facts = erofs.stat()
        # The change time too: whoever overwrites a file in place can set its other times back, not that one (inode(7)).
        identity = (facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
        return cls(binary, platform, erofs, identity)

    @property
    def is_stale(self) -> bool:
        """Whether the image's file has gone or been replaced since."""
        try:
            return self.of(self.binary, self.platform, self.erofs) != self
        except OSError:
            return True

    @property
    def is_overwritten(self) -> bool:
        """Whether somebody has written to the very file since: what runs from it has lost its ground.

        A file that was replaced or removed lives on for those that have it open.
        """
        try:
            facts = self.erofs.stat()
        except OSError:
            return False
        device, inode, size, modified, _ = self.identity
        is_same_file = (facts.st_dev, facts.st_ino) == (device, inode)
        return is_same_file and (facts.st_size, facts.st_mtime_ns) != (size, modified)
