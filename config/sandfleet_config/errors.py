"""Every way a job can end, and the exception of each.

The codes are stable strings; nothing here is ever renamed (a golden file in the tests holds the table). A code that a newer
release wrote (`read_code`) counts as its category says, and is raised as the category's class.

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

import re
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandfleet_config.outcome import Outcome


CODE_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
"""The form of a code, in any release. Any other text is no code."""
KEPT_CODES = 128


class Category(StrEnum):
    """Whose doing an ending is."""

    OK = "ok"
    PROGRAM = "program"
    LIMIT = "limit"
    REQUEST = "request"
    CONTROL = "control"
    HOST = "host"


class ErrorCode(StrEnum):
    """How a job ended; the value is what travels and what users match on.

    A code of a newer release is an instance too, made by `read_code`, but none of the names below and in no loop over them.
    """

    _told_category: Category
    _is_told_retryable: bool

    OK = "OK"
    EXIT_NONZERO = "EXIT_NONZERO"
    SIGNALED = "SIGNALED"
    TIMEOUT = "TIMEOUT"
    OUT_OF_MEMORY = "OUT_OF_MEMORY"
    OUTPUT_LIMIT = "OUTPUT_LIMIT"
    DISK_LIMIT = "DISK_LIMIT"
    PIDS_LIMIT = "PIDS_LIMIT"
    SPEC_INVALID = "SPEC_INVALID"
    SPEC_TOO_LARGE = "SPEC_TOO_LARGE"
    SECURITY_VIOLATION = "SECURITY_VIOLATION"
    IMAGE_NOT_FOUND = "IMAGE_NOT_FOUND"
    IMAGE_INVALID = "IMAGE_INVALID"
    COMMAND_NOT_FOUND = "COMMAND_NOT_FOUND"
    COMMAND_NOT_EXECUTABLE = "COMMAND_NOT_EXECUTABLE"
    WORKING_DIR_INVALID = "WORKING_DIR_INVALID"
    USER_INVALID = "USER_INVALID"
    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"
    GVISOR_NOT_AVAILABLE = "GVISOR_NOT_AVAILABLE"
    DAEMON_UNAVAILABLE = "DAEMON_UNAVAILABLE"
    CLIENT_NOT_CONFIGURED = "CLIENT_NOT_CONFIGURED"
    SANDBOX_CREATION_FAILED = "SANDBOX_CREATION_FAILED"
    SANDBOX_EXECUTION_FAILED = "SANDBOX_EXECUTION_FAILED"
    IMAGE_UNAVAILABLE = "IMAGE_UNAVAILABLE"
    HOST_RESOURCES = "HOST_RESOURCES"
    WORKER_LOST = "WORKER_LOST"
    INTERNAL = "INTERNAL"

    @property
    def is_known(self) -> bool:
        """Whether this release has the code; else its category and `is_retryable` are what the record told."""
        return self._name_ in ErrorCode.__members__

    @property
    def category(self) -> Category:
        """Whose doing this ending is."""
        if self in ERROR_CLASSES:
            return ERROR_CLASSES[self].category
        return Category.OK if self is ErrorCode.OK else self._told_category

    @property
    def is_retryable(self) -> bool:
        """Whether running the same spec again can end better."""
        if self in ERROR_CLASSES:
            return ERROR_CLASSES[self].is_retryable
        return self is not ErrorCode.OK and self._is_told_retryable

    @property
    def is_own_end(self) -> bool:
        """Whether the program ran and exited by itself, whatever its number: Celery's ``SUCCESS``."""
        return self is ErrorCode.EXIT_NONZERO or self.category is Category.OK

    @classmethod
    @lru_cache(KEPT_CODES)
    def of_newer_release(cls, name: str, category: Category, *, is_retryable: bool) -> Self:
        """Return the code `name`, the same instance for the same arguments: codes are compared by identity."""
        # As `enum.Flag` makes its combinations: an instance, but no name of the class.
        code = str.__new__(cls, name)
        code._name_ = code._value_ = name
        code._told_category, code._is_told_retryable = category, is_retryable  # noqa: SLF001  its own class
        return code

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        """Pickle what a code of a newer release was made of, too."""
        return read_code, (self.value, self.category, self.is_retryable)


def read_code(text: object, category: object = None, retryable: object = None) -> ErrorCode:
    """Return the code `text`; for one of a newer release the record's `category` and `retryable` count.

    A category that this release does not know counts as `Category.HOST`: the fleet's fault, and worth another try.

    Raises:
        ValueError: no release has such a code.
    """
    name = str(text)
    if name in ErrorCode.__members__:
        return ErrorCode(name)
    if not isinstance(text, str) or not CODE_NAME.fullmatch(name):
        raise ValueError("no code is called so")
    told = read_category(category)
    return ErrorCode.of_newer_release(
        name, told, is_retryable=retryable if isinstance(retryable, bool) else told is Category.HOST
    )


def read_category(value: object) -> Category:
    """Return the category `value`, or `Category.HOST` for one that this release does not know."""
    return Category(value) if isinstance(value, str) and value in set(Category) else Category.HOST


class SandboxError(Exception):
    """The ending of a job as an exception: ``args`` is ``(code, message, outcome as JSON | None[, errors])``.

    Raise a class of this tree with `of`; never call it with a bare message.
    """

    error_code: ClassVar[ErrorCode] = ErrorCode.INTERNAL
    category: ClassVar[Category] = Category.HOST
    is_retryable: ClassVar[bool] = False
    op: ClassVar[str] = "run"
    backend: ClassVar[str] = "gvisor"

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
        from sandfleet_config.outcome import Outcome

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
    is_retryable = True


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
    is_retryable = False


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


def _collect(base: type[SandboxError]) -> dict[ErrorCode, type[SandboxError]]:
    found: dict[ErrorCode, type[SandboxError]] = {}
    for cls in base.__subclasses__():
        if "error_code" in vars(cls):
            found[cls.error_code] = cls
        found |= _collect(cls)
    return found


ERROR_CLASSES: dict[ErrorCode, type[SandboxError]] = _collect(SandboxError)
"""The one exception class of each code but ``OK``."""
_CATEGORY_CLASSES: dict[Category, type[SandboxError]] = {
    cls.category: cls for cls in (ProgramError, LimitError, RequestError, ControlError, HostError)
}


def error_class(code: ErrorCode) -> type[SandboxError]:
    """Return the exception class of any code but ``OK``: for one of a newer release, that of its category."""
    return ERROR_CLASSES.get(code) or _CATEGORY_CLASSES.get(code.category, HostError)
