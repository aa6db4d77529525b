"""The base class of `sandfleet_config.errors`: a job's ending as an exception that crosses Celery.

Invariant: Celery rebuilds an exception as ``cls(*args)`` from JSON. So no class of the tree has an
``__init__`` of its own, and none inherits an ``OSError`` kind: ``OSError.__new__`` swallows a third
argument.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from sandfleet_config.codes import CODES, Category, ErrorCode, read_code

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from sandfleet_config.outcome import Outcome


class SandboxError(Exception):
    """The ending of a job; ``args`` is ``(code, message, outcome as JSON | None[, errors])``.

    Build an instance with `of`, never with a bare message.
    """

    error_code: ClassVar[ErrorCode] = ErrorCode.INTERNAL
    category: ClassVar[Category] = Category.HOST
    is_retryable: ClassVar[bool] = False
    op: ClassVar[str] = "run"
    backend: ClassVar[str] = "gvisor"

    def __init_subclass__(cls) -> None:
        """Set `category` and `is_retryable` from the table of codes, if the class has a code."""
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
        """Build the exception.

        `outcome` is an `Outcome` in its JSON form, `errors` the faults by field. `code` is needed
        only for a code of a newer release, whose class is that of its category.
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
        """The message for people: what happened, and what to do."""
        return str(self.args[1]) if len(self.args) > 1 else ""

    @property
    def retryable(self) -> bool:
        """Whether another run of the same spec can succeed."""
        code = self.code
        return self.is_retryable if code.is_known else code.is_retryable

    @property
    def outcome(self) -> Outcome | None:
        """The whole outcome, if there is one.

        It has the output, exit code and signal up to the end, however the job ended.
        """
        from sandfleet_config.outcome import Outcome  # a submit would pay 20 ms for it

        raw = self.args[2] if len(self.args) > 2 else None  # noqa: PLR2004  (code, message, outcome, errors)
        return None if raw is None else Outcome.read(raw)

    @property
    def errors(self) -> list[dict[str, str]]:
        """Every fault of a refused request as ``{"field": ..., "message": ...}``.

        Empty for any other ending.
        """
        return cast("list[dict[str, str]]", self.args[3]) if len(self.args) > 3 else []  # noqa: PLR2004

    def __str__(self) -> str:
        """Return code and message.

        The outcome is left out: it holds program output, which must not get into a log.
        """
        return f"{self.code.value}: {self.message}"

    def __repr__(self) -> str:
        """Return class, code and message; the outcome is left out, as in `__str__`."""
        return f"{type(self).__name__}({self.code.value!r}, {self.message!r})"
