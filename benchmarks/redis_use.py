"""Compare the script calls and bytes of a job in Redis between an earlier commit and this one.

Both use the same runsc, and the counters are Redis's own. Run it by
``python benchmarks/redis_use.py`` (--commit abc1234). The exit code is 1 if a job makes more than
1.1 times the calls, or moves more than 1.1 times the bytes in one direction.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table
from sandbench.figures import RedisUse
from sandbench.programs import IMAGES
from sandfleet_worker.sandbox.image.store import ImageStore

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))
from old_release import old_release
from releases import GVISOR

COMMIT = "e5bcdee"
MAX_RATIO = 1.1
FIELDS = ("script_calls", "input_bytes", "output_bytes", "seconds")
"""The last is of all jobs: a slower run has more beats and looks in vain in its other figures."""
LIMITED = FIELDS[:3]
console = Console(highlight=False)


def measure(python: str, images: Path, jobs: int) -> RedisUse:
    """Measure the release that is installed for `python`."""
    # Both find the same runsc first on PATH: a benchmark does not pass settings on.
    more = {"PATH": f"{GVISOR / 'debian'}:{os.environ['PATH']}", "PYTHONPATH": str(Path(__file__).parent)}
    command = [python, "-m", "sandbench.redis_use", str(images), str(jobs)]
    done = subprocess.run(command, env=os.environ | more, stdout=subprocess.PIPE, check=True)
    return RedisUse.model_validate_json(done.stdout)


def main() -> int:
    """Measure both in turn; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--commit", default=COMMIT, help="the earlier release")
    parser.add_argument("--jobs", type=int, default=300, help="so many on each")
    parser.add_argument("--images", type=Path, help="an image store that has busybox and python; made anew by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sfb-") as name:
        folder = Path(name)
        images = options.images or folder / "images"
        for image in IMAGES:
            ImageStore(images).add(image)
        with old_release(options.commit, folder) as python:
            found = {options.commit: measure(str(python), images, options.jobs)}
        found["now"] = measure(sys.executable, images, options.jobs)
    table = Table(title=f"{options.jobs} jobs of /bin/true: each, and seconds of all")
    for column in ("", *found, "ratio"):
        table.add_column(column, justify="right")
    rows = {field: [getattr(use, field) for use in found.values()] for field in FIELDS}
    for field, (old, new) in rows.items():
        table.add_row(field.replace("_", " "), f"{old:,.2f}", f"{new:,.2f}", f"{new / old:.3f}")
    console.print(table)
    over = [field for field in LIMITED if rows[field][1] > MAX_RATIO * rows[field][0]]
    if over:
        console.print(f"more than {MAX_RATIO:g} times as many: {', '.join(over).replace('_', ' ')}")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
