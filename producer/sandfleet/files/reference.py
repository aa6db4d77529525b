"""`FileRef`: bytes in the fleet's store, for any number of specs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandfleet_config.files import DEFAULT_MODE, FileSpec
from sandfleet_config.spec import Payload

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_config.spec import SandboxSpec


@dataclass(frozen=True, slots=True)
class FileRef:
    """An object of the store: the SHA-256 of its bytes in hex, and its size in bytes.

    ::

        table = fleet.upload("table.csv")
        SandboxSpec(image="python-data", files=[table.at("in/table.csv")], stdin=table.as_stdin())
    """

    sha256: str
    size: int

    def at(self, path: str, mode: str | int = DEFAULT_MODE) -> FileSpec:
        """Return a spec's file: these bytes at `path`, with `mode` (``"0755"`` or ``0o755``).

        A relative path begins in ``/work``.

        Raises:
            pydantic.ValidationError: no file of a spec may have that path or mode.
        """
        return FileSpec.model_validate({"path": path, "sha256": self.sha256, "size": self.size, "mode": mode})

    def as_stdin(self) -> Payload:
        """Return the `stdin` of a spec: the program reads these bytes."""
        return Payload(sha256=self.sha256, size=self.size)


def list_objects(spec: SandboxSpec) -> Iterator[tuple[str, int | None, str, str]]:
    """Yield sha256 and size of each object that `spec` needs, and the field and file of it."""
    for index, file in enumerate(spec.files):
        if file.sha256 is not None:
            yield file.sha256, file.size, f"files.{index}", file.path
    if spec.stdin.sha256 is not None:
        yield spec.stdin.sha256, spec.stdin.size, "stdin", "stdin"
