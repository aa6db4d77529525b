"""The exception of each error code. A code that a newer release wrote is raised as the class of its category.

    SandboxError
    ├── ProgramError      ExitNonZero  Signaled
    ├── LimitError        SandboxTimeout
    │   └── ResourceLimit     OutOfMemory  OutputLimit  DiskLimit  PidsLimit
    ├── RequestError      SpecInvalid  SpecTooLarge  SecurityViolation  ImageNotFound  ImageInvalid
    │                     CommandNotFound  CommandNotExecutable  WorkingDirInvalid  UserInvalid
    ├── ControlError      Cancelled  Expired
    └── HostError         GVisorNotAvailable  DaemonUnavailable  ClientNotConfigured  SandboxCreationFailed
                          SandboxExecutionFailed  ImageUnavailable  HostResources  WorkerLost  InternalError

Invariant: these classes cross Celery, which rebuilds an exception as ``cls(*args)`` from JSON. So none has an ``__init__`` of
its own and none inherits an ``OSError`` kind (``OSError.__new__`` swallows a third argument): the job's own timeout is
``SandboxTimeout``, and only the producer's waiting error is a ``TimeoutError``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from sandfleet_config.codes import CODES, Category, ErrorCode, read_code
from sandfleet_config.outcome import Outcome, SandboxResult

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class SandboxError(Exception):
    """The ending of a job as an exception: ``args`` is ``(code, message, outcome as JSON | None[, errors])``.

    Raise a class of this tree with `of`; never call it with a bare message.
    """

    error_code: ClassVar[ErrorCode] = ErrorCode.INTERNAL
    category: ClassVar[Category] = Category.HOST
    is_retryable: ClassVar[bool] = False
    op: ClassVar[str] = "run"
    backend: ClassVar[str] = "gvisor"

    def __init_subclass__(cls) -> None:
        """Take category and `is_retryable` of a class that has a code from the table."""
        if "error_code" in vars(cls):
            cls.category, cls.is_retryable, _ = CODES[cls.error_code]

    @classmethod
    def of(
        cls,
        message: str,
        outcome: Mapping[str, Any] | None = None,
        errors: Sequence[Mapping[str, str]] | None = None,
        code: ErrorCode | None = None,
    ) -> Self:
        """Build the exception; `outcome` is an `Outcome` in its JSON form, `errors` the faults by field.

        `code` is one of a newer release where this class is the category's.
        """
        told = (code or cls.error_code).value
        args: tuple[object, ...] = (told, message, dict(outcome) if outcome is not None else None)
        return cls(*args, [dict(error) for error in errors]) if errors else cls(*args)

    @property
    def code(self) -> ErrorCode:
        """The stable code."""
        text = self.args[0] if self.args else None
        if text == self.error_code.value or text in ErrorCode.__members__:
            return self.error_code
        told = cast("dict[str, object]", self.args[2] if len(self.args) > 2 and self.args[2] else {})  # noqa: PLR2004
        try:
            return read_code(text, self.category, told.get("retryable"))
        except ValueError:
            return self.error_code

    @property
    def message(self) -> str:
        """What happened and what to do, for people."""
        return str(self.args[1]) if len(self.args) > 1 else ""

    @property
    def retryable(self) -> bool:
        """Whether running the same spec again can end better."""
        code = self.code
        return self.is_retryable if code.is_known else code.is_retryable

    @property
    def outcome(self) -> Outcome | None:
        """The whole outcome where there is one: output, exit code and signal so far are kept in every ending."""
        raw = self.args[2] if len(self.args) > 2 else None  # noqa: PLR2004  (code, message, outcome, errors)
        return None if raw is None else Outcome.read(raw)

    @property
    def errors(self) -> list[dict[str, str]]:
        """Every fault of the request as ``{"field": ..., "message": ...}``; empty where the request was not at fault."""
        return cast("list[dict[str, str]]", self.args[3]) if len(self.args) > 3 else []  # noqa: PLR2004

    def __str__(self) -> str:
        """Say code and message: the outcome holds program output, which must reach no log."""
        return f"{self.code.value}: {self.message}"

    def __repr__(self) -> str:
        """Say code and message only, as `__str__` does."""
        return f"{type(self).__name__}({self.code.value!r}, {self.message!r})"


class ProgramError(SandboxError):
    """The program ran and ended by itself, badly."""

    category = Category.PROGRAM


class ExitNonZero(ProgramError):
    """The program exited with a number other than 0 (never raised by ``result``, which returns it)."""

    error_code = ErrorCode.EXIT_NONZERO


class Signaled(ProgramError):
    """A signal ended the program, and nobody of ours had sent it."""

    error_code = ErrorCode.SIGNALED


class LimitError(SandboxError):
    """The job ran into a limit of its spec or of the host."""

    category = Category.LIMIT


class SandboxTimeout(LimitError):
    """The job ran past its ``timeout``; ``outcome.timed_out`` says whether TERM (soft) or KILL (hard) ended it."""

    error_code = ErrorCode.TIMEOUT


class ResourceLimit(LimitError):
    """The job used up something other than time."""


class OutOfMemory(ResourceLimit):
    """The kernel killed in the job's memory cgroup (files on /tmp count as memory): raise ``resources.memory_bytes``."""

    error_code = ErrorCode.OUT_OF_MEMORY


class OutputLimit(ResourceLimit):
    """The job wrote more than ``output.max_bytes`` and asked to be killed for it (``on_limit: kill``)."""

    error_code = ErrorCode.OUTPUT_LIMIT


class DiskLimit(ResourceLimit):
    """The program ended badly on a full disk: raise ``resources.disk_bytes``."""

    error_code = ErrorCode.DISK_LIMIT


class PidsLimit(ResourceLimit):
    """The host's process fuse fired; inside the limit the program itself sees EAGAIN and ends as it likes."""

    error_code = ErrorCode.PIDS_LIMIT


class RequestError(SandboxError):
    """The job cannot run as it was asked for; the same spec fails again.

    `job_ids` are the jobs of the same ``submit_many`` of an iterator that had been queued before; they do not cross Celery.
    """

    category = Category.REQUEST
    job_ids: tuple[str, ...] = ()


class SpecInvalid(RequestError):
    """The spec, or the message that carried it, breaks the contract; ``errors`` lists every fault."""

    error_code = ErrorCode.SPEC_INVALID
    op = "validate"


class SpecTooLarge(RequestError):
    """The encoded spec is over ``max_spec_bytes``: ship big inputs inside the image or fetch them by reference."""

    error_code = ErrorCode.SPEC_TOO_LARGE
    op = "validate"


class SecurityViolation(RequestError):
    """The spec asks for what the contract or the host's policy forbids."""

    error_code = ErrorCode.SECURITY_VIOLATION
    op = "validate"


class ImageNotFound(RequestError):
    """No image of that name is on the host: ``sandfleet-worker images list`` shows what is."""

    error_code = ErrorCode.IMAGE_NOT_FOUND
    op = "image"


class ImageInvalid(RequestError):
    """The image is there but is damaged, or not one a sandbox can run."""

    error_code = ErrorCode.IMAGE_INVALID
    op = "image"


class CommandNotFound(RequestError):
    """The image has no such program, or the program's interpreter is missing."""

    error_code = ErrorCode.COMMAND_NOT_FOUND
    op = "exec"


class CommandNotExecutable(RequestError):
    """The file is there, but the job's user may not execute it or the kernel does not know its format."""

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
    """Somebody, or the queue's own clock, ended the job."""

    category = Category.CONTROL


class Cancelled(ControlError):
    """The job was cancelled or revoked; where it was running, its sandbox is gone."""

    error_code = ErrorCode.CANCELLED


class Expired(ControlError):
    """Nobody took the job within its time in the queue."""

    error_code = ErrorCode.EXPIRED


class HostError(SandboxError):
    """Trouble of ours: the program is not to blame, and another try may well end better."""

    is_retryable = True


class GVisorNotAvailable(HostError):
    """No working runsc on the host: no binary, one too old, or a platform that does not boot in time."""

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
    """runsc could not build the sandbox; its own log is in the message."""

    error_code = ErrorCode.SANDBOX_CREATION_FAILED
    op = "create"


class SandboxExecutionFailed(HostError):
    """The sandbox died under the program: the sentry panicked or was killed from outside."""

    error_code = ErrorCode.SANDBOX_EXECUTION_FAILED


class ImageUnavailable(HostError):
    """The image exists elsewhere, and the host could not get it now."""

    error_code = ErrorCode.IMAGE_UNAVAILABLE
    op = "image"


class HostResources(HostError):
    """The host is out of something it needs: disk, memory, file descriptors, or a limit it cannot enforce."""

    error_code = ErrorCode.HOST_RESOURCES
    op = "create"


class WorkerLost(HostError):
    """The worker or its host died with the job, and no try is left."""

    error_code = ErrorCode.WORKER_LOST


class InternalError(HostError):
    """A fault in sandfleet itself; the worker's log has the traceback."""

    error_code = ErrorCode.INTERNAL


ERROR_CLASSES: dict[ErrorCode, type[SandboxError]] = {
    code: globals()[facts.exception] for code, facts in CODES.items() if facts.exception
}
"""The one exception class of each code but ``OK``."""
_CATEGORY_CLASSES: dict[Category, type[SandboxError]] = {
    cls.category: cls for cls in (ProgramError, LimitError, RequestError, ControlError, HostError)
}


def error_class(code: ErrorCode) -> type[SandboxError]:
    """Return the exception class of any code but ``OK``: for one of a newer release, that of its category."""
    return ERROR_CLASSES.get(code) or _CATEGORY_CLASSES.get(code.category, HostError)


def new_error(outcome: Outcome) -> SandboxError | None:
    """Return the exception of the outcome's code with the faults of its request, or None for ``OK``."""
    if outcome.is_ok:
        return None
    return error_class(outcome.code).of(outcome.message, outcome.to_json(), outcome.faults, code=outcome.code)


def to_result(outcome: Outcome) -> SandboxResult:
    """Return the seed's result where the program ran to its own end (any exit), else raise the code's exception.

    Raises:
        SandboxError: the class of the code; the whole outcome is on it.
    """
    if outcome.code.is_own_end and outcome.exit_code is not None:
        return SandboxResult(
            exit_code=outcome.exit_code,
            stdout=outcome.stdout.text,
            stderr=outcome.stderr.text,
            duration=outcome.duration or 0.0,
        )
    raise new_error(outcome) or InternalError.of("an outcome OK came without an exit code", outcome.to_json())
