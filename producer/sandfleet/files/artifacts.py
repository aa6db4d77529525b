"""The artifacts of a job and of a batch: what `job.artifacts` and `batch.artifacts` return."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, overload

from sandfleet_config.files import WORK_FOLDER
from sandfleet_config.queues import JOB_ID

from sandfleet.errors import ArtifactsNotSaved, FileMissing
from sandfleet.files.parallel import open_pool
from sandfleet.files.saving import NotSaved, save_artifact, write_object
from sandfleet.threads import in_thread

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator

    from sandfleet_config.outcome import Artifact, Outcome

    from sandfleet.files.objects import Objects

MEMORY_BYTES: Final = 8 << 20
"""An opened artifact up to this size is in memory, a larger one in a temporary file."""


class JobArtifacts(Sequence["Artifact"]):
    """The artifacts of a job's newest run, as a list. The first use waits for its end.

    Wait with ``job.outcome(timeout=...)`` first if it should not wait for ever.
    """

    def __init__(self, wait: Callable[[], Outcome], open_objects: Callable[[], Objects]) -> None:
        self._wait = wait
        self._open_objects = open_objects

    @cached_property
    def _outcome(self) -> Outcome:
        return self._wait()

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self._outcome.job_id

    @property
    def lost(self) -> str | None:
        """Why some or all artifacts are not there; None if nothing was lost."""
        return self._outcome.artifacts_lost

    def __len__(self) -> int:
        """Return the number of artifacts."""
        return len(self._outcome.artifacts)

    @overload
    def __getitem__(self, index: int) -> Artifact: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Artifact]: ...
    def __getitem__(self, index: int | slice) -> Artifact | Sequence[Artifact]:
        """Return an artifact, or some."""
        return self._outcome.artifacts[index]

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False, by_job: bool = False) -> list[Path]:
        """Save all artifacts below `folder`, which is made if it is missing; return their paths.

        `by_job` saves them in ``folder/JOB_ID``. Each file appears when it is complete and
        verified. A file that is there with the same bytes counts as saved. No link below `folder`
        is followed.

        Raises:
            ArtifactsNotSaved: some were not saved, all others were: the name is not safe (absolute,
                ``..``, control characters), a link is in the way, another file is there and
                `overwrite` is not set, or the store does not have the bytes any more.
            FleetUnavailable: the store is down.
            OSError: a file cannot be written.
        """
        below = self.job_id if by_job else ""
        if by_job and not JOB_ID.match(below):
            raise ArtifactsNotSaved(dict.fromkeys((artifact.path for artifact in self), "the job's id is not safe"))
        return _save_all(self._open_objects(), self, Path(folder), below=below, overwrite=overwrite)

    save_async = in_thread(save)

    def open(self, path: str) -> IO[bytes]:
        """Return an artifact as a verified file; `path` is relative to ``/work`` or absolute.

        Raises:
            FileMissing: the job has no such artifact, or the store does not have it any more.
            FleetUnavailable: the store is down.
        """
        name = path.removeprefix(f"{WORK_FOLDER}/")
        for artifact in self:
            if artifact.path == name:
                return open_object(self._open_objects(), artifact.sha256, artifact.size, name)
        why = f" ({self.lost})" if self.lost else ""
        raise FileMissing(f"job {self.job_id} has no artifact {ascii(name)[1:-1]}{why}", [self.job_id])

    open_async = in_thread(open)  # noqa: A003  the method above


class BatchArtifacts:
    """The artifacts of a batch, job by job as the jobs end.

    Iterating and saving wait for all of them.
    """

    def __init__(self, outcomes: Callable[[], Iterable[Outcome]], open_objects: Callable[[], Objects]) -> None:
        self._outcomes = outcomes
        self._open_objects = open_objects

    def __iter__(self) -> Iterator[JobArtifacts]:
        """Yield the artifacts of each job as it ends."""
        for outcome in self._outcomes():
            yield JobArtifacts(partial(_same, outcome), self._open_objects)

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> list[Path]:
        """Save the artifacts of each job in ``folder/JOB_ID``; return all paths.

        As `JobArtifacts.save`. Jobs without artifacts get no folder. An error at the end names all
        artifacts that were not saved; their paths begin with the job's id.
        """
        saved: list[Path] = []
        refused: dict[str, str] = {}
        for artifacts in self:
            try:
                saved += artifacts.save(folder, overwrite=overwrite, by_job=True)
            except ArtifactsNotSaved as error:
                saved += error.saved
                refused |= {f"{artifacts.job_id}/{path}": reason for path, reason in error.refused.items()}
        if refused:
            raise ArtifactsNotSaved(refused, saved)
        return saved

    save_async = in_thread(save)


def _same(outcome: Outcome) -> Outcome:
    return outcome


def _save_all(
    objects: Objects, artifacts: Sequence[Artifact], folder: Path, *, below: str, overwrite: bool
) -> list[Path]:
    """Save artifacts in `folder`, or in its folder `below`; raises as `JobArtifacts.save`."""
    if not artifacts:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    saved: list[Path] = []
    refused: dict[str, str] = {}
    save = partial(save_artifact, objects, folder=folder, below=below, overwrite=overwrite)
    with open_pool(len(artifacts), "sandfleet-save") as (pool, check):
        calls = [(artifact, pool.submit(save, artifact, check)) for artifact in artifacts]
        for artifact, call in calls:
            try:
                saved.append(call.result())
            except (NotSaved, FileMissing) as error:
                refused[artifact.path] = str(error)
    if refused:
        raise ArtifactsNotSaved(refused, saved)
    return saved


def open_object(objects: Objects, sha256: str, size: int, name: str = "") -> IO[bytes]:
    """Return a verified object of `size` bytes as a file to read; `name` is for messages.

    Raises:
        FileMissing: the store does not have it, or it is altered.
    """
    file: IO[bytes] = io.BytesIO() if size <= MEMORY_BYTES else tempfile.TemporaryFile()  # noqa: SIM115  the caller closes it
    try:
        write_object(objects, sha256, size, file, name or sha256)
    except BaseException:
        file.close()
        raise
    file.seek(0)
    return file
