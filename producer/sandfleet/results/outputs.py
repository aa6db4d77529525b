"""The outputs of jobs as files: ``FOLDER/JOB_ID/stdout`` and ``FOLDER/JOB_ID/stderr``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from sandfleet_config.outcome import Artifact
from sandfleet_config.queues import JOB_ID

from sandfleet.errors import ArtifactsNotSaved, FileMissing
from sandfleet.files.artifacts import JobArtifacts
from sandfleet.files.saving import NotSaved, save_artifact, save_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sandfleet_config.outcome import Outcome, StreamOutput

    from sandfleet.files.objects import Objects
    from sandfleet.results.rows import BatchJob

STREAMS: Final = ("stdout", "stderr")


class Saving:
    """Saves the outputs and the artifacts of jobs; None for a folder saves nothing of that kind."""

    def __init__(
        self,
        open_objects: Callable[[], Objects],
        outputs: Path | None = None,
        artifacts: Path | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        """Make the folders.

        Raises:
            OSError: one cannot be made.
        """
        self._open_objects = open_objects
        self._outputs, self._artifacts, self._overwrite = outputs, artifacts, overwrite
        for folder in (outputs, artifacts):
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True)

    def save(self, job: BatchJob) -> Iterator[str]:
        """Save what the job left; yield why a file was not saved, or lost before, one line each."""
        outcome = job.outcome
        if outcome is None or (self._outputs is None and self._artifacts is None):
            return
        if not JOB_ID.match(job.job_id):
            yield f"{job.job_id!a}: its id is no safe name of a folder"
            return
        if self._outputs is not None:
            for name in STREAMS:
                yield from self._save_output(self._outputs, job.job_id, name, getattr(outcome, name))
        if self._artifacts is not None:
            yield from self._save_artifacts(self._artifacts, outcome)

    def _save_output(self, folder: Path, job_id: str, name: str, stream: StreamOutput) -> Iterator[str]:
        path = f"{job_id}/{name}"
        try:
            if (stored := stream.stored) is not None:
                whole = Artifact(name, stored.size, stored.sha256, "0644", stored.place)
                try:
                    save_artifact(self._open_objects(), whole, folder=folder, below=job_id, overwrite=self._overwrite)
                except FileMissing as error:
                    yield f"{path}: only its kept part is saved: {error}"
                else:
                    return
            if stream.data:
                save_bytes(stream.bytes, folder, path, overwrite=self._overwrite)
        except NotSaved as error:
            yield f"{path}: {error}"

    def _save_artifacts(self, folder: Path, outcome: Outcome) -> Iterator[str]:
        artifacts = JobArtifacts(lambda: outcome, self._open_objects)
        if artifacts.lost:
            yield f"{outcome.job_id}: artifacts were lost: {artifacts.lost}"
        try:
            artifacts.save(folder, overwrite=self._overwrite, by_job=True)
        except ArtifactsNotSaved as error:
            for path, reason in error.refused.items():
                yield f"{outcome.job_id}/{path}: {reason}"

    def find_output(self, job: BatchJob, name: str) -> str | None:
        """Return the path of a job's stream below the folder, as in the table; None if empty."""
        if job.outcome is None or self._outputs is None:
            return None
        stream: StreamOutput = getattr(job.outcome, name)
        is_any = bool(stream.data) or stream.stored is not None
        return str(self._outputs / job.job_id / name) if is_any else None
