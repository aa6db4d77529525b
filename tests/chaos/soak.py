"""Run thousands of short jobs on four workers while harms hit the fleet at random.

Run it by `make soak`. The harms: SIGKILL of workers, sandboxes, connections and Redis; SIGTERM and
SIGQUIT of workers, which drain; no descriptors, no disk, no memory for all sandboxes together;
steps of a wall clock. Workers run different releases of runsc. Dead letters are run again, some by
two producers at the same moment. With `--earlier e5bcdee` every third worker is of that commit.

The exit code is 0 only if every run of every accepted job has exactly one outcome; a retry started
one run; the `attempts` of a run tell each of its starts; a job that may start once started once a
run; each attempt that failed by the host was hit by a harm; neither Redis nor the host keeps
anything; and nothing grew. A seed repeats the choices, not the moments: which jobs they hit depends
on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
from pathlib import Path

from pydantic import SecretStr
from rich.table import Table
from sandfleet import Fleet, Settings
from sandfleet_config.queues import KEY_PREFIX
from sandfleet_worker.sandbox.image.store import ImageStore

sys.path.append(str(Path(__file__).parents[1] / "support"))
from audit import SHOWN, Audit, Finding, count_by
from growth import Growth
from old_release import old_release
from soak_harms import Soak, console
from soak_producer import MAX_ATTEMPTS


def report(soak: Soak, findings: list[Finding], audit: Audit) -> bool:
    """Print what was done and what holds; return whether all of it does."""
    table = Table("must hold", "of", "holds")
    for claim, count, faults in findings:
        table.add_row(claim, str(count or ""), "yes" if not faults else f"NO: {len(faults)}")
    console.print("\ndone to them:", count_by(soak.harms, lambda harm: harm.what))
    console.print(f"workers: {len(soak.stage.workers)}, their exit codes (times): {dict(soak.exits)}")
    if soak.earlier:
        console.print(f"workers of the earlier release: {len(soak.earlier)}")
    console.print(
        f"submits tried again: {soak.producer.retries}; runs that did not count: {soak.redis.xlen(KEY_PREFIX + 'duplicates')}"
    )
    retries = soak.retrier.retries
    console.print(
        f"retries that two producers started at once: {retries.twice}, letters clicked again later: {retries.late},"
        f" retries without an answer: {retries.failed}"
    )
    outcomes = audit.outcomes.values()
    console.print("outcomes of runs:", count_by(outcomes, lambda outcome: outcome.code.value))
    console.print("runs of a job:", count_by(audit.runs.values(), lambda count: f"with {count}"))
    console.print("starts of a run:", count_by(outcomes, lambda outcome: f"with {len(outcome.attempts)}"))
    console.print(table)
    console.print(grown_table(soak.growth))
    for claim, _, faults in findings:
        for fault in faults[:SHOWN]:
            console.print(f"not so: {claim}: {fault}", markup=False)
    return not any(finding.faults for finding in findings)


def grown_table(growth: Growth) -> Table:
    """Show the medians of the first and of the last third of the run."""
    table = Table("what may not grow", "samples", "first third", "last third", "grew")
    for measure, first, last, has_grown in growth.compare():
        shown = (f"{value / measure.scale:.1f}".removesuffix(".0") for value in (first, last))
        table.add_row(measure.name, str(len(growth.samples[measure])), *shown, "YES" if has_grown else "no")
    return table


def find_growth(soak: Soak) -> list[str]:
    """Say what grew, and whether the worker that was spared lives no more."""
    grown = [
        f"{measure.name}: {first / measure.scale:.1f}, then {last / measure.scale:.1f}"
        for measure, first, last, has_grown in soak.growth.compare()
        if has_grown
    ]
    if soak.spared_end is not None:
        grown.append(f"the worker that was spared ended by itself with {soak.spared_end}: {soak.spared.log[-1000:]}")
    return grown


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="how long harms are done")
    parser.add_argument("--jobs", type=int, default=1_000_000, help="the largest number of jobs")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 16), help="of the random choices")  # noqa: S311
    parser.add_argument("--earlier", metavar="COMMIT", help="run every third worker of this commit, such as e5bcdee")
    parser.add_argument("--images", type=Path, help="an image store that has busybox; without it, one is made")
    parser.add_argument("--keep", type=Path, help="an empty folder that keeps the logs")
    return parser.parse_args()


def new_audit(soak: Soak, fleet: Fleet) -> Audit:
    """Return the audit of a soak whose fleet is at rest."""
    producer = soak.producer
    return Audit(
        soak.redis,
        fleet,
        soak.stage,
        producer.batches,
        producer.expected,
        soak.retrier.retries,
        max_attempts=MAX_ATTEMPTS,
        once=producer.once,
        harms=soak.harms,
        clockless=soak.clockless,
        earlier=soak.earlier,
    )


def main() -> int:
    """Run the soak and its audit; return the exit code."""
    args = parse_args()
    console.print(f"soak: {args.minutes:g} minutes, seed {args.seed}")
    with tempfile.TemporaryDirectory(prefix="sfs-") as folder, contextlib.ExitStack() as stack:
        root = args.keep or Path(folder)
        images = args.images or root / "images"
        ImageStore(images).add("busybox")
        earlier = stack.enter_context(old_release(args.earlier, Path(folder) / "earlier")) if args.earlier else None
        soak = Soak(root, images, args.seed, args.jobs, earlier)
        try:
            soak.run(args.minutes * 60)
            left = soak.rest()
            with Fleet(Settings(redis_url=SecretStr(soak.server.url))) as fleet:
                audit = new_audit(soak, fleet)
                findings = audit.findings()
                findings.append(Finding("all jobs ended", left, [f"{left} jobs are left"] if left else []))
                errors = [repr(error) for error in (soak.producer.error, soak.retrier.error) if error]
                findings.append(Finding("the producers met no error that they do not retry", 0, errors))
                findings.append(Finding("nothing grew, and the spared worker lived", 0, find_growth(soak)))
                return 0 if report(soak, findings, audit) else 1
        finally:
            soak.close()


if __name__ == "__main__":
    sys.exit(main())
