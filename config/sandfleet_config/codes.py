"""The table of error codes: code, category, whether another attempt can help, and exception class.

The codes are stable strings and are never renamed; a golden file in the tests has the table. A code
of a newer release (`read_code`) is treated by its category.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final, NamedTuple, Self

CODE_NAME = re.compile(r"[A-Z][A-Z0-9_]{0,63}")
"""The form of a code in every release."""
KEPT_CODES = 128
"""Codes of newer releases that are cached."""


class Category(StrEnum):
    """The party that caused an ending."""

    OK = "ok"
    PROGRAM = "program"
    LIMIT = "limit"
    REQUEST = "request"
    CONTROL = "control"
    HOST = "host"


class ErrorCode(StrEnum):
    """How a job ended. The value is sent, and users match on it.

    `read_code` makes an instance of a code of a newer release, too. It is not a member of the
    class.
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
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    WORKER_LOST = "WORKER_LOST"
    INTERNAL = "INTERNAL"

    @property
    def is_known(self) -> bool:
        """Whether this release has the code.

        For any other, the record says category and `is_retryable`.
        """
        return self._name_ in ErrorCode.__members__

    @property
    def category(self) -> Category:
        """The party that caused this ending."""
        facts = CODES.get(self)
        return facts.category if facts else self._told_category

    @property
    def is_retryable(self) -> bool:
        """Whether another run of the same spec can succeed."""
        facts = CODES.get(self)
        return facts.is_retryable if facts else self._is_told_retryable

    @property
    def is_own_end(self) -> bool:
        """Whether the program exited by itself, with any number: Celery's ``SUCCESS``."""
        return self is ErrorCode.EXIT_NONZERO or self.category is Category.OK

    @classmethod
    @lru_cache(KEPT_CODES)
    def of_newer_release(cls, name: str, category: Category, *, is_retryable: bool) -> Self:
        """Return the code `name`.

        Equal arguments give the same instance, since codes are compared by identity.
        """
        # As `enum.Flag` makes its combinations: an instance that is not a member.
        code = str.__new__(cls, name)
        code._name_ = code._value_ = name
        code._told_category, code._is_told_retryable = category, is_retryable  # noqa: SLF001  its own class
        return code

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        """Pickle name, category and `is_retryable`; a code of a newer release needs all three."""
        return read_code, (self.value, self.category, self.is_retryable)


class CodeFacts(NamedTuple):
    """One row of the table of codes.

    `exception` is the name of its class in `sandfleet_config.errors`.
    """

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
    ErrorCode.STORE_UNAVAILABLE: CodeFacts(Category.HOST, True, "StoreUnavailable"),
    ErrorCode.WORKER_LOST: CodeFacts(Category.HOST, True, "WorkerLost"),
    ErrorCode.INTERNAL: CodeFacts(Category.HOST, True, "InternalError"),
}
"""The table of codes. A new code needs a member above, a row here, and a class in `errors`."""


def read_code(text: object, category: object = None, retryable: object = None) -> ErrorCode:
    """Return the code `text`.

    A code of a newer release gets the `category` and `retryable` of its record. An unknown category
    counts as `Category.HOST`: the fleet's fault, and retryable.

    Raises:
        ValueError: `text` does not have the form of a code.
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
    """Return the category `value`; an unknown one counts as `Category.HOST`."""
    return Category(value) if isinstance(value, str) and value in set(Category) else Category.HOST
