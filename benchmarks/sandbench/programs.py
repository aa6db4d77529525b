"""The programs that are timed.

They do almost nothing, so that the time is that of the way there and back.
"""

from __future__ import annotations

from dataclasses import dataclass

from sandfleet import SandboxSpec


@dataclass(frozen=True)
class Program:
    """A command in an image; reports show `name`."""

    name: str
    image: str
    command: tuple[str, ...]
    prepared: str | None = None
    """The preparation that a job names; earlier releases know none."""

    @property
    def spec(self) -> SandboxSpec:
        """The program as a job."""
        named = {"prepared": self.prepared} if self.prepared else {}
        return SandboxSpec.model_validate({"image": self.image, "command": list(self.command), **named})


TRUE = Program("/bin/true", "busybox", ("/bin/true",))
BARE_PYTHON = Program("python3 -S -c pass", "python", ("python3", "-S", "-c", "pass"))
PYTHON = Program("python3 -c pass", "python", ("python3", "-c", "pass"))
PRINT = Program("python3 -c 'print(1)'", "python", ("python3", "-c", "print(1)"))
DATA_IMAGE = "python-data"
DATA = Program("import numpy, pandas", DATA_IMAGE, ("python3", "-c", "import numpy, pandas"))
IMAGES = ("busybox", "python")
PROGRAMS = {program.name: program for program in (TRUE, BARE_PYTHON, PYTHON)}
