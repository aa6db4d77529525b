"""How long a job takes from a cold, a warm and a prepared sandbox, by `RunscRunner` alone.

python benchmarks/prepared.py [--image python] [--modules numpy,pandas] [--quick]

Each way has a runner of its own, one after the other. A spare is waited for before each job, so the
figures are those of an idle host. Needs root, runsc and the image.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from sandfleet_config.prepared_settings import PreparedSettings, PreparedStart
from sandfleet_config.settings import HostSettings, ImagesSettings, RunscSettings, WarmSettings
from sandfleet_config.spec import SandboxSpec
from sandfleet_worker.sandbox.policy import admit
from sandfleet_worker.sandbox.runner import RunscRunner

if TYPE_CHECKING:
    from collections.abc import Iterator

WAYS = ("cold", "warm", "prepared")
SPARE_SECONDS = 60.0
ROUNDS, QUICK_ROUNDS = 30, 3


def open_settings(way: str, image: str, modules: str, images: Path, state: str) -> HostSettings:
    """Return the settings of a host that starts jobs in `way`."""
    imports = (f"{image}:bench={modules.replace(',', '+')}",) if way == "prepared" else ()
    start: PreparedStart = "named" if way == "prepared" else "off"
    return HostSettings(
        warm=WarmSettings(size=0 if way == "cold" else 2, images=() if way == "cold" else (image,)),
        runsc=RunscSettings(root_dir=Path(state)),
        images=ImagesSettings(root=images),
        prepared=PreparedSettings(start=start, imports=imports),
    )


def measure(way: str, settings: HostSettings, spec: SandboxSpec, rounds: int) -> Iterator[tuple[float, float]]:
    """Yield the milliseconds and the CPU seconds of each job."""
    with RunscRunner(settings) as runner:
        limits = admit(spec, settings)
        runner.warm_up()
        deadline = time.monotonic() + SPARE_SECONDS * rounds
        done = 0
        while done < rounds:
            if time.monotonic() > deadline:
                raise TimeoutError(f"no {way} start in time: {runner.read_prepared()}")
            begun = time.perf_counter()
            ending = runner.execute(limits)
            took = time.perf_counter() - begun
            if ending.verdict.exit_code != 0:
                raise RuntimeError(ending.verdict.message + ending.stderr.text)
            if ending.start == way:
                done += 1
                yield took * 1000, ending.usage.cpu_seconds or 0.0
            time.sleep(0.0 if way == "cold" else 0.5)  # the next spare boots meanwhile


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="python")
    parser.add_argument("--modules", default="", help="imported ahead, and by the job")
    parser.add_argument("--quick", action="store_true", help="three jobs each: whether it works, not how fast")
    options = parser.parse_args()
    images = HostSettings().images.root
    code = f"import {options.modules}; print(1)" if options.modules else "print(1)"
    print(f"{options.image}: python3 -c '{code}'")
    for way in WAYS:
        spec = SandboxSpec(
            image=options.image,
            command=["python3", "-c", code],
            prepared="bench" if way == "prepared" else None,
        )
        with tempfile.TemporaryDirectory() as state:
            Path(state).chmod(0o711)
            settings = open_settings(way, options.image, options.modules, images, state)
            figures = [*measure(way, settings, spec, QUICK_ROUNDS if options.quick else ROUNDS)]
        times, cpu = zip(*figures, strict=True)
        print(f"  {way:9} {statistics.median(times):7.1f} ms  {statistics.median(cpu) * 1000:6.0f} ms CPU")


if __name__ == "__main__":
    main()
