"""The exception of each error code.

A code of a newer release is raised as the class of its category.

    SandboxError
    ├── ProgramError      ExitNonZero  Signaled
    ├── LimitError        SandboxTimeout
    │   └── ResourceLimit     OutOfMemory  OutputLimit  DiskLimit  PidsLimit
    ├── RequestError      SpecInvalid  SpecTooLarge  SecurityViolation  ImageNotFound  ImageInvalid
    │                     CommandNotFound  CommandNotExecutable  WorkingDirInvalid  UserInvalid
    ├── ControlError      Cancelled  Expired
    └── HostError         GVisorNotAvailable  DaemonUnavailable  ClientNotConfigured
                          SandboxCreationFailed  SandboxExecutionFailed  ImageUnavailable
                          HostResources  StoreUnavailable  WorkerLost  InternalError

The classes cross Celery: see the invariant in `sandfleet_config.sandbox_error`. This is why the
job's own timeout is ``SandboxTimeout``, and only the producer's waiting error is a
``TimeoutError``. A result record names this module, so that a producer of another release finds the
class: no class moves away from here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sandfleet_config.codes import CODES, Category, ErrorCode
from sandfleet_config.sandbox_error import SandboxError as SandboxError  # noqa: PLC0414  users import it from here

if TYPE_CHECKING:
    from sandfleet_config.outcome import Outcome


class ProgramError(SandboxError):
    """The program ran and ended by itself, with a number other than 0 or by a signal."""

    category = Category.PROGRAM


class ExitNonZero(ProgramError):
    """The program exited with a number other than 0; ``result`` returns it and raises nothing."""

    error_code = ErrorCode.EXIT_NONZERO


class Signaled(ProgramError):
    """A signal that sandfleet did not send ended the program."""

    error_code = ErrorCode.SIGNALED


class LimitError(SandboxError):
    """The job reached a limit of its spec or of the host."""

    category = Category.LIMIT


class SandboxTimeout(LimitError):
    """The job ran past its ``timeout``.

    ``outcome.timed_out`` says whether TERM (soft) or KILL (hard) ended it.
    """

    error_code = ErrorCode.TIMEOUT


class ResourceLimit(LimitError):
    """The job reached a limit of memory, output, disk or processes."""


class OutOfMemory(ResourceLimit):
    """The kernel killed processes in the job's memory cgroup.

    Raise ``resources.memory_bytes``; files on /tmp count as memory.
    """

    error_code = ErrorCode.OUT_OF_MEMORY


class OutputLimit(ResourceLimit):
    """The job wrote more than ``output.max_bytes``, and its spec says ``on_limit: kill``."""

    error_code = ErrorCode.OUTPUT_LIMIT


class DiskLimit(ResourceLimit):
    """The program failed while its disk was full. Raise ``resources.disk_bytes``."""

    error_code = ErrorCode.DISK_LIMIT


class PidsLimit(ResourceLimit):
    """The host's hard limit on processes ended the sandbox.

    At ``pids_limit`` itself, fork fails with EAGAIN instead.
    """

    error_code = ErrorCode.PIDS_LIMIT


class RequestError(SandboxError):
    """The job cannot run as its spec asks; the same spec fails again.

    `job_ids`: the jobs that the same ``submit_many`` had already queued, if it was given an
    iterator. They do not cross Celery.
    """

    category = Category.REQUEST
    job_ids: tuple[str, ...] = ()


class SpecInvalid(RequestError):
    """The spec, or the message that carries it, breaks the contract.

    ``errors`` lists every fault.
    """

    error_code = ErrorCode.SPEC_INVALID
    op = "validate"


class SpecTooLarge(RequestError):
    """The encoded spec is larger than ``max_spec_bytes``. Send large inputs as files."""

    error_code = ErrorCode.SPEC_TOO_LARGE
    op = "validate"


class SecurityViolation(RequestError):
    """The spec asks for something that the contract or the host's policy forbids."""

    error_code = ErrorCode.SECURITY_VIOLATION
    op = "validate"


class ImageNotFound(RequestError):
    """The host has no image of that name; ``sandfleet-worker images list`` shows those it has."""

    error_code = ErrorCode.IMAGE_NOT_FOUND
    op = "image"


class ImageInvalid(RequestError):
    """The image is damaged, or a sandbox cannot run it."""

    error_code = ErrorCode.IMAGE_INVALID
    op = "image"


class CommandNotFound(RequestError):
    """The image has no such program, or the program's interpreter is missing."""

    error_code = ErrorCode.COMMAND_NOT_FOUND
    op = "exec"


class CommandNotExecutable(RequestError):
    """The job's user may not execute the file, or the kernel does not know its format."""

    error_code = ErrorCode.COMMAND_NOT_EXECUTABLE
    op = "exec"


class WorkingDirInvalid(RequestError):
    """The job's user cannot change to ``working_dir``."""

    error_code = ErrorCode.WORKING_DIR_INVALID
    op = "exec"


class UserInvalid(RequestError):
    """``security.user`` is neither numeric nor a name in the image's passwd and group."""

    error_code = ErrorCode.USER_INVALID
    op = "image"


class ControlError(SandboxError):
    """A person, or the time limit of the queue, ended the job."""

    category = Category.CONTROL


class Cancelled(ControlError):
    """The job was cancelled or revoked; if it was running, its sandbox was destroyed."""

    error_code = ErrorCode.CANCELLED


class Expired(ControlError):
    """No worker took the job within its ``queue_ttl``."""

    error_code = ErrorCode.EXPIRED


class HostError(SandboxError):
    """The host or the fleet failed, not the program; another attempt can succeed."""

    is_retryable = True


class GVisorNotAvailable(HostError):
    """No runsc works on the host: it is missing or too old, or its platform boots too late."""

    error_code = ErrorCode.GVISOR_NOT_AVAILABLE
    op = "create"


class DaemonUnavailable(HostError):
    """The backend's health check failed."""

    error_code = ErrorCode.DAEMON_UNAVAILABLE
    op = "ping"


class ClientNotConfigured(HostError):
    """The backend was given no runner."""

    error_code = ErrorCode.CLIENT_NOT_CONFIGURED


class SandboxCreationFailed(HostError):
    """runsc could not create the sandbox; the message has its log."""

    error_code = ErrorCode.SANDBOX_CREATION_FAILED
    op = "create"


class SandboxExecutionFailed(HostError):
    """The sandbox ended before the program: its sentry panicked, or was killed from outside."""

    error_code = ErrorCode.SANDBOX_EXECUTION_FAILED


class ImageUnavailable(HostError):
    """The image exists, but the host could not get it now."""

    error_code = ErrorCode.IMAGE_UNAVAILABLE
    op = "image"


class HostResources(HostError):
    """The host has no disk, memory or file descriptors left, or cannot enforce a limit."""

    error_code = ErrorCode.HOST_RESOURCES
    op = "create"


class StoreUnavailable(HostError):
    """The store of files cannot be reached now, or a file of the job is not in it."""

    error_code = ErrorCode.STORE_UNAVAILABLE
    op = "store"


class WorkerLost(HostError):
    """The worker or its host died while it ran the job, and no attempt is left."""

    error_code = ErrorCode.WORKER_LOST


class InternalError(HostError):
    """A fault in sandfleet itself; the worker's log has the traceback."""

    error_code = ErrorCode.INTERNAL


ERROR_CLASSES: dict[ErrorCode, type[SandboxError]] = {
    code: globals()[facts.exception] for code, facts in CODES.items() if facts.exception
}
"""The exception class of each code; ``OK`` has none."""
_CATEGORY_CLASSES: dict[Category, type[SandboxError]] = {
    cls.category: cls for cls in (ProgramError, LimitError, RequestError, ControlError, HostError)
}


def error_class(code: ErrorCode) -> type[SandboxError]:
    """Return the class of `code`, not ``OK``; of its category for a code of a newer release."""
    return ERROR_CLASSES.get(code) or _CATEGORY_CLASSES.get(code.category, HostError)


def new_error(outcome: Outcome) -> SandboxError | None:
    """Return the exception of the outcome's code, with a refused request's faults; None: ``OK``."""
    if outcome.is_ok:
        return None
    return error_class(outcome.code).of(outcome.message, outcome.to_json(), outcome.faults, code=outcome.code)
