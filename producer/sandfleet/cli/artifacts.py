"""``sandfleet artifacts``: list and save the files that jobs left."""

from __future__ import annotations

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sandfleet_config.units import format_bytes, format_count

from sandfleet.cli.exits import SOME_NOT_OK
from sandfleet.cli.show import note, safe_line
from sandfleet.errors import ArtifactsNotSaved, ResultTimeout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sandfleet_config.outcome import Artifact, Outcome

    from sandfleet.batch import Batch
    from sandfleet.files.artifacts import JobArtifacts
    from sandfleet.fleet import Fleet


class SaveOptions(NamedTuple):
    """Where artifacts are saved, None for nowhere; and whether existing files are replaced."""

    folder: str | None = None
    overwrite: bool = False


def show_job(fleet: Fleet, job_id: str, run: int | None, options: SaveOptions, *, is_json: bool) -> int:
    """List or save the artifacts of a job that has ended; return the exit code."""
    job = fleet.job(job_id)
    try:
        artifacts = fleet.artifacts_of(job.outcome(0, run=run))
    except ResultTimeout:
        note(f"job {job_id} has not ended: its artifacts are collected at its end (sandfleet wait {job_id})")
        return SOME_NOT_OK
    if is_json:
        print(json.dumps(_describe(artifacts), indent=2))
    elif options.folder is None:
        for artifact in artifacts:
            print(_to_line(artifact))
    if options.folder is not None:
        return 0 if Saver(fleet, options).save(artifacts, is_batch=False) else SOME_NOT_OK
    return 0 if tell_lost(artifacts) else SOME_NOT_OK


def show_batch(fleet: Fleet, name: str, options: SaveOptions, *, is_json: bool) -> int:
    """List or save the artifacts of the jobs of a batch that have ended; return the exit code."""
    batch, saver = fleet.batch(name), Saver(fleet, options)
    for artifacts in _ended(fleet, batch):
        if is_json:
            print(json.dumps(_describe(artifacts)))
        elif options.folder is None:
            for artifact in artifacts:
                print(f"{artifacts.job_id}\t{_to_line(artifact)}")
        if options.folder is not None:
            saver.save(artifacts, is_batch=True, is_told=False)
        else:
            saver.is_complete = tell_lost(artifacts) and saver.is_complete
    saver.sum_up()
    total, done = batch.counts
    if done < total:
        waiting = shlex.join(["sandfleet", "batch", "wait", batch.name])
        note(f"{total - done} of {format_count(total, 'job has', 'jobs have')} not ended. To wait: {waiting}")
    return 0 if saver.is_complete and done >= total else SOME_NOT_OK


def _ended(fleet: Fleet, batch: Batch) -> Iterator[JobArtifacts]:
    """Yield the artifacts of each job that has ended."""
    try:
        for outcome in batch.as_completed(0):
            yield fleet.artifacts_of(outcome)
    except ResultTimeout:
        return


def _describe(artifacts: JobArtifacts) -> dict[str, object]:
    files = [asdict(artifact) for artifact in artifacts]
    return {"job_id": artifacts.job_id, "artifacts": files, "artifacts_lost": artifacts.lost}


def _to_line(artifact: Artifact) -> str:
    return f"{safe_line(artifact.path)}\t{artifact.size}\t{safe_line(artifact.sha256)}"


def tell_lost(artifacts: JobArtifacts) -> bool:
    """Print why artifacts were lost; return whether none was."""
    if artifacts.lost:
        note(f"artifacts of job {artifacts.job_id} were lost: {artifacts.lost}")
    return not artifacts.lost


class Saver:
    """Saves artifacts of one job after the other, and says what happened."""

    def __init__(self, fleet: Fleet, options: SaveOptions) -> None:
        """Make the folder.

        Raises:
            OSError: it cannot be made.
        """
        self.is_complete = True
        """Whether all artifacts so far were there and were saved."""
        self._fleet = fleet
        self._options = options
        self._files = self._bytes = self._jobs = 0
        if options.folder is not None:
            Path(options.folder).mkdir(parents=True, exist_ok=True)

    def take(self, outcome: Outcome) -> None:
        """Save the artifacts of one job of many, if there is a folder."""
        if self._options.folder is not None:
            self.save(self._fleet.artifacts_of(outcome), is_batch=True, is_told=False)

    def save(self, artifacts: JobArtifacts, *, is_batch: bool, is_told: bool = True) -> bool:
        """Save a job's artifacts, of a batch in a folder of its own; return whether all were saved.

        Each that was not is told. `is_told` also prints what was saved.
        """
        refused: dict[str, str] = {}
        is_there = tell_lost(artifacts)
        try:
            saved = artifacts.save(self._options.folder or ".", overwrite=self._options.overwrite, by_job=is_batch)
        except ArtifactsNotSaved as error:
            saved, refused = error.saved, error.refused
        for path, reason in refused.items():
            note(f"not saved: {artifacts.job_id}: {path}: {reason}")
        self._count(saved)
        if is_told:
            self.sum_up()
        is_complete = is_there and not refused
        self.is_complete = self.is_complete and is_complete
        return is_complete

    def _count(self, saved: list[Path]) -> None:
        self._jobs += bool(saved)
        self._files += len(saved)
        self._bytes += sum(path.stat(follow_symlinks=False).st_size for path in saved)

    def sum_up(self) -> None:
        """Print how many files were saved, if there is a folder."""
        if self._options.folder is None:
            return
        of_jobs = f" of {self._jobs} jobs" if self._jobs > 1 else ""
        count = f"{self._files} artifact{'s' if self._files != 1 else ''}"
        note(f"{count}{of_jobs} ({format_bytes(self._bytes)}) saved in {self._options.folder}")
