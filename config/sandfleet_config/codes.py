"""Every way a job can end: the table of error codes, with category and whether another try can help.

The codes are stable strings; nothing here is ever renamed (a golden file in the tests holds the table). A code that a newer
release wrote (`read_code`) counts as its category says.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, NamedTuple, Self

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
        facts = CODES.get(self)
        return facts.category if facts else self._told_category

    @property
    def is_retryable(self) -> bool:
        """Whether running the same spec again can end better."""
        facts = CODES.get(self)
        return facts.is_retryable if facts else self._is_told_retryable

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


class CodeFacts(NamedTuple):
    """One row of the table of codes: whose doing it is, whether another try can help, and the name of its class in `errors`."""

    category: Category
    is_retryable: bool
    exception: str | None


CODES: Final[Mapping[ErrorCode, CodeFacts]] = {
    ErrorCode.OK: CodeFacts(Category.OK, False, None),
    ErrorCode.EXIT_NONZERO: CodeFacts(Category.PROGRAM, False, "ExitNonZero"),
    ErrorCode.SIGNALED: CodeFacts(Category.PROGRAM, False, "Signaled"),
    ErrorCode.TIMEOUT: CodeFacts(Category.LIMIT, False, "SandboxTimeout"),
    ErrorCode.OUT_OF_MEMORY: CodeFacts(Category.LIMIT, False, "OutOfMemory"),
    ErrorCode.OUTPUT_LIMIT: CodeFacts(Category.LIMIT, False, "OutputLimit"),
    ErrorCode.DISK_LIMIT: CodeFacts(Category.LIMIT, False, "DiskLimit"),
    ErrorCode.PIDS_LIMIT: CodeFacts(Category.LIMIT, False, "PidsLimit"),
    ErrorCode.SPEC_INVALID: CodeFacts(Category.REQUEST, False, "SpecInvalid"),
    ErrorCode.SPEC_TOO_LARGE: CodeFacts(Category.REQUEST, False, "SpecTooLarge"),
    ErrorCode.SECURITY_VIOLATION: CodeFacts(Category.REQUEST, False, "SecurityViolation"),
    ErrorCode.IMAGE_NOT_FOUND: CodeFacts(Category.REQUEST, False, "ImageNotFound"),
    ErrorCode.IMAGE_INVALID: CodeFacts(Category.REQUEST, False, "ImageInvalid"),
    ErrorCode.COMMAND_NOT_FOUND: CodeFacts(Category.REQUEST, False, "CommandNotFound"),
    ErrorCode.COMMAND_NOT_EXECUTABLE: CodeFacts(Category.REQUEST, False, "CommandNotExecutable"),
    ErrorCode.WORKING_DIR_INVALID: CodeFacts(Category.REQUEST, False, "WorkingDirInvalid"),
    ErrorCode.USER_INVALID: CodeFacts(Category.REQUEST, False, "UserInvalid"),
    ErrorCode.CANCELLED: CodeFacts(Category.CONTROL, False, "Cancelled"),
    ErrorCode.EXPIRED: CodeFacts(Category.CONTROL, True, "Expired"),
    ErrorCode.GVISOR_NOT_AVAILABLE: CodeFacts(Category.HOST, True, "GVisorNotAvailable"),
    ErrorCode.DAEMON_UNAVAILABLE: CodeFacts(Category.HOST, True, "DaemonUnavailable"),
    ErrorCode.CLIENT_NOT_CONFIGURED: CodeFacts(Category.HOST, False, "ClientNotConfigured"),
    ErrorCode.SANDBOX_CREATION_FAILED: CodeFacts(Category.HOST, True, "SandboxCreationFailed"),
    ErrorCode.SANDBOX_EXECUTION_FAILED: CodeFacts(Category.HOST, True, "SandboxExecutionFailed"),
    ErrorCode.IMAGE_UNAVAILABLE: CodeFacts(Category.HOST, True, "ImageUnavailable"),
    ErrorCode.HOST_RESOURCES: CodeFacts(Category.HOST, True, "HostResources"),
    ErrorCode.WORKER_LOST: CodeFacts(Category.HOST, True, "WorkerLost"),
    ErrorCode.INTERNAL: CodeFacts(Category.HOST, True, "InternalError"),
}
"""The table of codes. A new code is one more name above, one row here, and one class in `errors`."""


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
