"""The datasets of this host: read-only trees that many jobs share.

Each is one EROFS file beside the images.
"""

from __future__ import annotations

import contextlib
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from sandfleet_config.errors import HostResources, ImageInvalid, ImageNotFound, SpecInvalid
from sandfleet_config.units import format_count

from sandfleet_worker.sandbox.image.allowed import ALL, check_digest
from sandfleet_worker.sandbox.image.catalog import EROFS, FACTS
from sandfleet_worker.sandbox.image.image import Image
from sandfleet_worker.sandbox.image.kind import Kind
from sandfleet_worker.sandbox.image.pack import hash_whole, normalize, open_to_all, write_erofs
from sandfleet_worker.sandbox.image.references import is_digest, is_name
from sandfleet_worker.sandbox.image.staging import host_faults, locked, write_json
from sandfleet_worker.sandbox.image.store import ImageStore
from sandfleet_worker.sandbox.image.tools import Limits
from sandfleet_worker.sandbox.image.unpack import unpack_rootfs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from sandfleet_config.files import DatasetSpec

    from sandfleet_worker.sandbox.image.tools import StagingFolder
    from sandfleet_worker.sandbox.start_hooks import StartHooks

FOLDER: Final = "datasets"
"""Below the root of the images."""
MAX_NAME_CHARS: Final = 128
DATASET_LIMITS: Final = Limits(max_bytes=1 << 40, max_files=20_000_000, kind=Kind.DATASET)
NEW_SECONDS: Final = 60.0
_HEADER: Final = b"sandfleet dataset 1\0\n"


class DatasetMissing(SpecInvalid):
    """The host does not have a dataset that the job names."""


class DatasetsUnsupported(SpecInvalid):
    """The host's runsc cannot mount datasets."""


def new_unsupported(runsc_version: str) -> DatasetsUnsupported:
    """Return the error of a job with datasets on a host whose runsc cannot mount them."""
    text = (
        f"runsc {runsc_version} of this host cannot mount datasets: install a release of gVisor from 20260126 on, "
        "or send the job to a host that has one"
    )
    return DatasetsUnsupported.of(f"datasets: {text}", errors=[{"field": "datasets", "message": text}])


class DatasetMount(NamedTuple):
    """A read-only folder of a sandbox: where it is there, and the EROFS file with its content."""

    path: str
    erofs: Path


_NO_MOUNTS: Final = contextlib.nullcontext[tuple[DatasetMount, ...]](())


class DatasetStore:
    """Add, find, hold and remove datasets. Safe to use from any number of threads and processes."""

    def __init__(self, images_root: Path, limits: Limits = DATASET_LIMITS, allowed: Sequence[str] = (ALL,)) -> None:
        """Use the store below `images_root`; nothing is read or made before it is needed.

        `allowed` are the policy's patterns of datasets, for those that are named by a digest.
        """
        self._limits, self._allowed = limits, allowed
        self._store = ImageStore(images_root / FOLDER, limits, Kind.DATASET)

    def add(self, name: str, source: Path, on_progress: Callable[[str], None] = lambda _: None) -> Image:
        """Pack a folder or a tar into a dataset `name`; it replaces one of its name for later jobs.

        Its files belong to root, and every user may read them. Devices, sockets and fifos are left
        out, links stay as they are. The digest is over names, bytes, links and which files can be
        executed, so the same tree gives the same digest on every host.

        Raises:
            ImageInvalid: the name or the source is not usable; says why.
            ImageUnavailable: a tool or a right is missing on this host.
            HostResources: the disk is full. In every case nothing half-made is left.
        """
        if not _is_dataset_name(name):
            raise ImageInvalid.of(
                f"{name[:200]!r} is no name of a dataset: use lower-case letters and digits, between them dots, "
                f"underscores and hyphens, {MAX_NAME_CHARS} characters at most, such as `corpus-2026`"
            )
        root = self._store.root
        present = next(folder for folder in (root, *root.parents) if folder.exists())
        with host_faults(present), locked(self._store.new_lock("add", name), "waiting for another add", on_progress):
            made = self._store.make(lambda staging: _build(name, source, staging, on_progress), self._limits)
            return self._store.name_image(name, made)

    def list(self) -> Sequence[Image]:
        """Return every dataset by name, then those without a name under their digest."""
        return self._store.list()

    def list_with_damaged(self) -> tuple[Sequence[Image], Sequence[str]]:
        """Return what `list` does, and what is wrong with those that it leaves out."""
        return self._store.list_with_damaged()

    def remove(self, reference: str) -> None:
        """Remove a name, and with its last name the dataset.

        A digest removes it with all its names.

        Raises:
            ImageNotFound: there is no such dataset.
            ImageInvalid: a job uses it now.
        """
        if not is_digest(reference) and not _is_dataset_name(reference):
            raise ImageNotFound.of(f"{reference[:200]!r} is neither a name nor a digest of a dataset")
        self._store.remove(reference)

    def verify(self, dataset: Image) -> None:
        """Read the whole file and compare it with what was packed.

        Raises:
            ImageInvalid: it is not what was packed.
        """
        self._store.verify(dataset)

    def read_identity(self) -> tuple[int, ...]:
        """Return a value that changes when a dataset is added, named or removed. Cheap."""
        return self._store.read_identity()

    def list_references(self) -> set[str]:
        """Return the names and digests of the datasets that are here, whole or not."""
        return self._store.list_references()

    def collect(self) -> Sequence[str]:
        """Remove what killed adds have left, and datasets without a name that no job uses.

        Return the digests of the latter. What was packed within `NEW_SECONDS` stays: `add` may be
        about to name it.
        """
        self.sweep()
        before = datetime.now(UTC) - timedelta(seconds=NEW_SECONDS)
        unnamed = [found.digest for found in self._store.list() if is_digest(found.name) and found.created < before]
        return [digest for digest in unnamed if self._store.evict(digest)]

    def sweep(self) -> None:
        """Remove what killed adds have left."""
        self._store.sweep()

    def hold(
        self, wanted: Sequence[DatasetSpec], hooks: StartHooks, check: Callable[[], None]
    ) -> AbstractContextManager[tuple[DatasetMount, ...]]:
        """Find the datasets of a job, and keep them from being removed while its sandbox runs.

        `hooks` are told of a long wait. `check` is called meanwhile, and ends the wait if it
        raises.

        Raises:
            DatasetMissing: one is not here.
            HostResources: one is here and damaged.
            SecurityViolation: a digest is that of a dataset which the policy does not allow.
        """
        return self._hold(wanted, hooks, check) if wanted else _NO_MOUNTS  # most jobs have none

    @contextlib.contextmanager
    def _hold(
        self, wanted: Sequence[DatasetSpec], hooks: StartHooks, check: Callable[[], None]
    ) -> Iterator[tuple[DatasetMount, ...]]:
        with contextlib.ExitStack() as stack:
            mounts = []
            for index, dataset in enumerate(wanted):
                found = self._find(index, dataset)
                with _as_missing(index):
                    stack.enter_context(self._store.hold(found, hooks, check))
                mounts.append(DatasetMount(dataset.mount_path, found.erofs_path))
            yield tuple(mounts)

    def _find(self, index: int, dataset: DatasetSpec) -> Image:
        with _as_missing(index):
            found = self._store.resolve(dataset.reference)
        if dataset.sha256:
            check_digest(self._store.catalog, found, dataset.name or None, self._allowed, "SANDFLEET_POLICY__DATASETS")
        return found


@contextlib.contextmanager
def _as_missing(index: int) -> Iterator[None]:
    """Turn the errors of a store of images into those of a job that names a dataset."""
    try:
        yield
    except ImageNotFound as error:
        field = f"datasets.{index}"
        raise DatasetMissing.of(
            f"{field}: {error.message}", errors=[{"field": field, "message": error.message}]
        ) from error
    except ImageInvalid as error:
        raise HostResources.of(error.message) from error


def _is_dataset_name(name: str) -> bool:
    return is_name(name) and not set(name) & set("/:") and len(name) <= MAX_NAME_CHARS and name == name.lower()


def _build(name: str, source: Path, staging: StagingFolder, on_progress: Callable[[str], None]) -> Image:
    """Make the dataset's two files in the folder of `erofs_path`, ready to be moved."""
    began = time.time()
    on_progress(f"copying {source}")
    unpack_rootfs(source, staging, shown=str(source))
    if left_out := open_to_all(staging.tree):
        on_progress(f"left out {left_out} devices, sockets and fifos")
    content = normalize(staging.tree, began, staging.limits, header=_HEADER, is_all_root=True, check=staging.check)
    blob = staging.folder / "blob"
    blob.mkdir(mode=0o755)
    on_progress(f"packing {format_count(content.files, 'file')}, {content.size_bytes / 1e6:.1f} MB")
    erofs = blob / EROFS
    write_erofs(staging, erofs, content.latest)
    dataset = Image(
        name=name,
        digest=content.digest,
        erofs_path=erofs,
        size_bytes=erofs.stat().st_size,
        erofs_sha256=hash_whole(erofs),
        created=datetime.now(UTC),
        source=os.fspath(source.resolve()),
    )
    write_json(blob / FACTS, dataset.model_dump(mode="json", exclude={"name", "erofs_path"}), staging.folder / "facts")
    return dataset
