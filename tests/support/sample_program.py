"""A user's program: pyright checks it in its strict mode, a test runs it on a fleet in memory."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

from sandfleet import BatchUnknown, ErrorCode, Fleet, OutOfMemory, SandboxError, SandboxSpec


def spec_of(seed: int) -> SandboxSpec:
    """Return the job of one seed."""
    return SandboxSpec(image="python", command=["python3", "solve.py", str(seed)], labels={"seed": str(seed)})


def run_one(fleet: Fleet) -> str:
    """Run one job and raise what it failed by."""
    outcome = fleet.run({"image": "python", "command": ["python3", "-c", "print(42)"]}, timeout=60)
    print(outcome)
    try:
        return outcome.raise_for_code().stdout.text
    except OutOfMemory as error:
        return f"more memory, please: {error.message}"
    except SandboxError as error:
        return error.code.value


def count_codes(fleet: Fleet) -> Counter[ErrorCode]:
    """Run many jobs, and count how they ended."""
    counts: Counter[ErrorCode] = Counter()
    for seed, outcome in fleet.map(spec_of, range(100), batch="night", ahead=20):
        assert outcome.labels["seed"] == str(seed)
        counts[outcome.code] += 1
    return counts


def save_table(fleet: Fleet, folder: Path) -> int:
    """Write the table of a batch."""
    batch = fleet.batch("night")
    codes: dict[str, int] = batch.wait(timeout=60)
    written = batch.save_results(folder / "night.csv", columns=["labels.seed", "code", "exit_code"])
    states = {row["state"] for row in batch.rows(["state"])}
    return written.rows if states == {"ended"} and codes else 0


async def run_async(fleet: Fleet) -> list[str]:
    """Do the same in an event loop."""
    async with fleet:
        await fleet.ping_async()
        job = await fleet.submit_async(spec_of(1), batch="async")
        first = await job.outcome_async(timeout=60)
        second = await fleet.run_async(spec_of(2), batch="async")
        jobs = await fleet.submit_many_async([spec_of(3), spec_of(4)], batch="async")
        seen = [outcome.job_id async for outcome in fleet.as_completed(jobs, timeout=60)]
        async for seed, outcome in fleet.map(spec_of, range(5, 8), batch="async"):
            seen.append(f"{seed + 1}: {outcome.code.value}")
        batch = await fleet.batch_async("async")
        codes = await batch.wait_async(timeout=60)
        cancelled = await job.cancel_async()
        try:
            await fleet.batch_async("none")
        except BatchUnknown as error:
            seen.append(error.message)
        return [first.code.value, second.code.value, str(cancelled), *codes, *seen]


if __name__ == "__main__":
    with Fleet() as real:
        print(run_one(real), count_codes(real), save_table(real, Path()), asyncio.run(run_async(real)))
