"""Uploads and downloads of `Fleet`: the files that specs refer to, and the artifacts of jobs."""

from __future__ import annotations

from pathlib import Path
from typing import IO, TYPE_CHECKING

from sandfleet_config.files import WORK_FOLDER

from sandfleet.files.artifacts import JobArtifacts, open_object
from sandfleet.files.local import find_files
from sandfleet.threads import in_thread

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable

    from sandfleet_config.files import FileSpec
    from sandfleet_config.outcome import Artifact, Outcome, StoredObject

    from sandfleet.files.objects import Objects, Source
    from sandfleet.files.reference import FileRef


class Transfers:
    """Part of `Fleet`: what it does with the fleet's store."""

    @property
    def _objects(self) -> Objects:
        raise NotImplementedError

    def upload(self, source: Source) -> FileRef:
        """Upload a file (a path) or bytes, unless the store has them; return what specs refer to.

        Memory does not grow with a file's size. The store keeps them for a day, and for as long as
        jobs refer to them. After a crash, repeat the call: what is complete is not sent again.

        Raises:
            OSError: the file cannot be read.
            SpecInvalid: it is not a regular file, or it changed during the upload.
            SpecTooLarge: it is larger than what the store takes.
            FleetUnavailable: the store or Redis is down or full.
        """
        return self._objects.upload_all([source])[0]

    upload_async = in_thread(upload)

    def upload_many(self, sources: Iterable[Source]) -> list[FileRef]:
        """Do what `upload` does with many files, 8 at a time; return the references in order."""
        return self._objects.upload_all(sources)

    upload_many_async = in_thread(upload_many)

    def upload_folder(self, folder: str | os.PathLike[str], path: str = WORK_FOLDER) -> list[FileSpec]:
        """Upload all files of a folder; return a spec's `files`, below `path` in the sandbox.

        A file keeps its right to be executed (mode 0755, else 0644). A link to a file inside the
        folder counts as that file. Empty folders are left out.

        Raises:
            SpecInvalid: the folder has something else, such as a link that leaves it or a pipe, or
                more than 1024 files; ``errors`` has every fault, and nothing was uploaded.
            OSError, SpecTooLarge, FleetUnavailable: as `upload`.
        """
        found = find_files(Path(folder), path)
        refs = self.upload_many(file.source for file in found)
        return [ref.at(file.path, file.mode) for ref, file in zip(refs, found, strict=True)]

    upload_folder_async = in_thread(upload_folder)

    def artifacts_of(self, outcome: Outcome) -> JobArtifacts:
        """Return the artifacts of an outcome, such as one of `Fleet.as_completed`."""
        return JobArtifacts(lambda: outcome, lambda: self._objects)

    def download(self, reference: FileRef | Artifact | StoredObject) -> IO[bytes]:
        """Return an object of the store as a verified file, such as ``outcome.stdout.stored``.

        Raises:
            FileMissing: the store does not have it any more.
            FleetUnavailable: the store is down.
        """
        return open_object(self._objects, reference.sha256, reference.size)

    download_async = in_thread(download)
