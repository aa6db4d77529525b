"""Bare `runsc run`: an unpacked root filesystem, a config.json, one attached process."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sandbench.meter import Meter
from sandbench.ways import Run, run_in_threads

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from sandbench.programs import Program

FLAGS = ("--network=none", "--ignore-cgroups", "--platform=systrap")
NOBODY = 65534
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass
class BareRunsc:
    """Runs programs by bare `runsc run`.

    `rootfs` maps an image to its unpacked folder, `folder` gets bundles and runsc's state. All
    runs share the state, as with runsc's default folder: since 2026-08 runsc leaves a mount there,
    `null-netns`, and makes it once. The testbed unmounts it.
    """

    folder: Path
    rootfs: Mapping[str, Path]
    name: str = "bare runsc"
    binary: str = "runsc"
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def run(self, program: Program) -> None:
        """Run the program in a new sandbox."""
        self._run(program, None)

    def run_many(self, program: Program, jobs: int, at_once: int) -> Run:
        """Run `jobs` in `at_once` threads."""
        return run_in_threads(lambda: self.run(program), jobs, at_once)

    def measure(self, program: Program, jobs: int, at_once: int, parent: str) -> list[tuple[float, float]]:
        """Return CPU (seconds) and peak memory (MiB) of each of `jobs`.

        Each job has its own cgroup below `parent`.
        """

        def measure(_: int) -> tuple[float, float]:
            with Meter(parent, f"bare{next(self.numbers)}") as meter:
                self._run(program, meter)
                return meter.read_cpu_seconds(), meter.read_peak_mib()

        with ThreadPoolExecutor(at_once) as threads:
            return list(threads.map(measure, range(jobs)))

    def _run(self, program: Program, meter: Meter | None) -> None:
        name = f"bare{os.getpid()}-{next(self.numbers)}"
        bundle = self.folder / name
        bundle.mkdir()
        root = {"path": str(self.rootfs[program.image]), "readonly": True}
        user = {"uid": NOBODY, "gid": NOBODY}
        process = {"args": list(program.command), "cwd": "/", "user": user, "env": [PATH]}
        config = {"ociVersion": "1.0.2", "process": process, "root": root}
        (bundle / "config.json").write_text(json.dumps(config))
        command: Sequence[str] = [self.binary, f"--root={self.folder}/state", *FLAGS, "run", f"--bundle={bundle}", name]
        command = meter.wrap(command) if meter else command
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        shutil.rmtree(bundle)
