"""A job as a sandbox gets it: init's message, the files after it, and what to collect."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, TypeAlias

from sandfleet_config.errors import SpecInvalid

from sandfleet_worker.sandbox.process.bundle import check_data_folder, new_init_job
from sandfleet_worker.sandbox.process.init_job import encode_job
from sandfleet_worker.sandbox.process.inputs import check_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from sandfleet_worker.sandbox.image.image import Image
    from sandfleet_worker.sandbox.image.users import ResolvedUser
    from sandfleet_worker.sandbox.policy import Admitted
    from sandfleet_worker.sandbox.process.artifacts import ArtifactRequest
    from sandfleet_worker.sandbox.process.init_job import InitJob
    from sandfleet_worker.sandbox.process.inputs import InputFile


@dataclass(frozen=True, slots=True)
class Transfer:
    """Files that enter a job's sandbox beside its message, and files that leave it after its end.

    `files` are written before its start. `stdin` comes after the spec's own; its path only stands
    in messages.
    """

    files: Sequence[InputFile] = ()
    artifacts: ArtifactRequest | None = None
    stdin: InputFile | None = None
    keep_output: Callable[[str], Callable[[bytes], None]] | None = None
    """Given ``stdout`` or ``stderr``, returns a function that gets all bytes of that stream.

    It must not raise.
    """

    @property
    def uses_work(self) -> bool:
        """Whether the job needs the folder ``/work``."""
        return bool(self.files) or self.artifacts is not None


NO_TRANSFER: Final = Transfer()
TransferSource: TypeAlias = "Transfer | Callable[[], Transfer]"
"""The files of a job, or a function that gets them.

It is called when its image is there, in the job's thread.
"""


def open_transfer(source: TransferSource) -> Transfer:
    """Return the files; get them first if `source` is a function."""
    return source if isinstance(source, Transfer) else source()


@dataclass(frozen=True)
class PackedJob:
    """The message that gives init its job.

    With it the first word of the command, the size of the longest argument or variable, the job
    that the message holds, and what is transferred.
    """

    message: bytes
    command: str
    longest_argument_bytes: int
    transfer: Transfer = NO_TRANSFER
    init: InitJob | None = None


def pack_job(job: InitJob, transfer: Transfer = NO_TRANSFER) -> PackedJob:
    """Return the job as a message.

    Raises:
        SpecInvalid: the job does not fit into a message.
    """
    try:
        longest = max(len(item.encode(errors="surrogateescape")) for item in (*job.argv, *job.envp))
        return PackedJob(encode_job(job), job.argv[0], longest, transfer, job)
    except ValueError as error:
        raise SpecInvalid.of(str(error)) from error


def pack_spec(limits: Admitted, image: Image, user: ResolvedUser, transfer: Transfer) -> PackedJob:
    """Return the job of an admitted spec, with its files and artifacts.

    Raises:
        SandboxError: `new_init_job` refuses it; ``SpecInvalid`` for files and artifacts that cannot
            be used.
    """
    if limits.spec.datasets:
        check_data_folder(image)
    if not transfer.uses_work:
        return pack_job(new_init_job(limits, image, user), transfer)
    job = new_init_job(limits, image, user, uses_work=True)
    check_inputs(transfer.files, job, limits)
    if transfer.artifacts is not None:
        transfer.artifacts.check()
    flagged = replace(job, has_files=bool(transfer.files), has_artifacts=transfer.artifacts is not None)
    return pack_job(flagged, transfer)
